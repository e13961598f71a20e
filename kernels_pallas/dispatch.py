"""One traced program for every platform, and the run axis of a pack folded into the batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def by_platform(*args: Any, tpu: Callable | None, gpu: Callable | None, cpu: Callable, what: str) -> Any:
    """Calls the form of the platform that the program is lowered for; all three are traced, one is compiled.

    Kernels take bfloat16, float32, integers and booleans: with an array of another dtype (float64, float16) every
    platform takes the plain form.

    Args:
      tpu, gpu: kernels; None where there is none (then lowering for that platform takes `cpu`'s plain XLA form).
      cpu: plain XLA operations, right on any platform.
      what: the operation's name, under which its kernel is found in profiles and HLO.
    """
    floats = {x.dtype.name for x in jax.tree.leaves(args) if jnp.issubdtype(x.dtype, jnp.inexact)}
    kernels = {"tpu": tpu, "cuda": gpu} if floats <= {"bfloat16", "float32"} else {}
    forms = {platform: jax.named_call(_in_32_bits(run), name=what) for platform, run in kernels.items() if run}
    return jax.lax.platform_dependent(*args, default=jax.named_call(cpu, name=what), **forms)


def _in_32_bits(kernel):
    """`kernel` traced as without `jax_enable_x64`, under which the TPU compiler refuses its indices, or aborts."""

    def call(*args):
        with jax.enable_x64(False):
            return kernel(*args)

    return call


def folded(function: Callable) -> Callable:
    """`function` of arrays with a leading batch axis, whose `vmap` is one call with a larger batch.

    All arguments and results have the batch axis first, of one size B, or of a size that divides B: such an argument
    serves B / size consecutive entries each. A vmapped pallas_call would prepend a grid axis instead, which its
    compiler parameters do not know of.
    """

    @jax.custom_batching.custom_vmap
    @functools.wraps(function)
    def call(*args):
        return function(*args)

    @call.def_vmap
    def _(axis_size, in_batched, *args):
        def fold(x, batched):
            if not batched:
                x = jnp.broadcast_to(x, (axis_size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        results = call(*(fold(x, batched) for x, batched in zip(args, in_batched)))

        def unfold(y):
            return y.reshape(axis_size, -1, *y.shape[1:])

        return jax.tree.map(unfold, results), jax.tree.map(lambda _: True, results)

    return call
