"""One traced program for every platform, and the run axis of a pack folded into the batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def by_platform(*args: Any, tpu: Callable | None, gpu: Callable | None, cpu: Callable, what: str) -> Any:
    """Calls the form of the platform that the program is lowered for; all three are traced, one is compiled.

    Args:
      tpu, gpu: kernels; None where there is none (then lowering for that platform takes `cpu`'s plain XLA form).
      cpu: plain XLA operations, right on any platform.
      what: the operation's name, under which its kernel is found in profiles and HLO.
    """
    forms = {"tpu": tpu, "cuda": gpu}
    forms = {platform: jax.named_call(form, name=what) for platform, form in forms.items() if form is not None}
    return jax.lax.platform_dependent(*args, default=jax.named_call(cpu, name=what), **forms)


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
