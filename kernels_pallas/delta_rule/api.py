"""The delta rule: a state that corrects what it would answer, with a decay or none; one signature for all platforms."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas import blocks, dispatch, gpu_chunks
from kernels_pallas.delta_rule import cpu, gpu, gpu_backward, reference, tpu
from kernels_pallas.segments import resets

CHUNKS = (16, 32, 64, 128)
DTYPES = ("bfloat16", "float32", "float64")
OPERANDS = ("q", "k", "v", "beta", "g", "resets")


def delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    g: jax.Array | None = None,
    *,
    scale: float | None = None,
    initial_state: jax.Array | None = None,
    output_final_state: bool = False,
    segment_ids: jax.Array | None = None,
    block_sizes: Mapping[str, int] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_{t-1} + beta_t k_t v_t^T,  o_t = scale S_t^T q_t.

    Keys should have length 1: then no error in the state grows. Keys that are alike (cosine 0.9) with beta 2 are
    ill-conditioned: there the float32 error of the chunked forms is up to seven times that of one step after the other.
    The delta rule is that of Yang et al. 2024 (arXiv:2406.06484), with a decay per head Gated DeltaNet
    (arXiv:2412.06464), per channel Kimi Delta Attention (arXiv:2510.26692). Differentiable in every float argument;
    `vmap` makes a larger batch.

    Args:
      q, k: [B, T, N, K], bfloat16 or float32 (float64 in the plain XLA form). v: [B, T, N, V], the same dtype.
      beta: [B, T, N], from 0 to 2.
      g: log of the decay, at most 0: [B, T, N], [B, T, N, K], or None for no decay. Below -100 is as -100.
      scale: K ** -0.5 by default.
      initial_state: [B, N, K, V] float32; zeros by default.
      segment_ids: [B, T] integers; where they change the state is cleared. The first segment goes on from
        `initial_state`.
      block_sizes: overrides of the table's "chunk" (16, 32, 64 or 128 steps; on TPU 128) and "heads" (a TPU kernel
        program's heads). The GPU kernels serve up to 256 keys and values a head in bfloat16 and float32; what they
        do not serve takes the plain XLA form.

    Returns:
      o [B, T, N, V] in the dtype of `v`; with `output_final_state` (o, [B, N, K, V] float32). With T = 0 the final
      state is the initial one.

    Raises:
      ValueError: shapes, dtypes or block sizes that do not fit; outside of `jit` also beta or g out of range.
    """
    check(q, k, v, beta, g, segment_ids)
    starts = None if segment_ids is None else resets(segment_ids)
    o, final = in_chunks(q, k, v, beta, g, starts, initial_state, scale=scale, block_sizes=block_sizes)
    return (o, final) if output_final_state else o


def in_chunks(q, k, v, beta, g, starts, initial_state, *, scale, block_sizes):
    """`delta_rule` of operands that `check` has seen; `starts` [B, T] bool: where the state is cleared, or None."""
    batch, length, heads, keys = q.shape
    state_dtype = jnp.promote_types(q.dtype, jnp.float32)
    initial_state = _state(initial_state, (batch, heads, keys, v.shape[-1]), state_dtype)
    scale = keys**-0.5 if scale is None else float(scale)
    sizes = _block_sizes(q.dtype, keys, block_sizes)
    if length == 0:
        return jnp.zeros(v.shape, v.dtype), initial_state
    return _delta_rule((scale, *sizes), q, k, v, beta, g, starts, initial_state)


def step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    g: jax.Array | None = None,
    *,
    state: jax.Array,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One token: arguments as `delta_rule`'s without T, `state` [B, N, K, V] float32. Returns (o [B, N, V], state)."""
    check(*(None if x is None else x[:, None] for x in (q, k, v, beta, g)), None)
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    state = _state(state, (q.shape[0], *k.shape[1:], v.shape[-1]), dtype)
    inputs = [None if x is None else x.astype(dtype) for x in (q, k, v, beta, g)]
    if g is not None and g.ndim == 2:
        inputs[4] = inputs[4][..., None]
    o, state = reference.step(*inputs, state, scale=q.shape[-1] ** -0.5 if scale is None else float(scale))
    return o.astype(v.dtype), state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _delta_rule(static, *operands):
    return _forward(static, *operands)[:2]


def _run(what, function_tpu, function_gpu, function_cpu, operands, names, static):
    """`folded` and by platform; operands that are None stay out of the call."""
    scale, chunk, heads = static
    given = [name for name, x in zip(names, operands) if x is not None]

    def form(function, **sizes):
        return lambda *xs: function(**{**dict.fromkeys(names), **dict(zip(given, xs))}, scale=scale, **sizes)

    on_cpu, on_gpu = (form(function, chunk=chunk) for function in (function_cpu, function_gpu))
    on_gpu = on_gpu if gpu_chunks.serves(operands[0], operands[2]) else None
    on_tpu = form(function_tpu, heads=heads)
    on_tpu = on_tpu if chunk == tpu.CHUNK else None
    call = dispatch.folded(lambda *xs: dispatch.by_platform(*xs, tpu=on_tpu, gpu=on_gpu, cpu=on_cpu, what=what))
    return call(*(x for x in operands if x is not None))


def _forward(static, *operands):
    names = (*OPERANDS, "initial_state")
    return _run("delta_rule", tpu.forward, gpu.forward, cpu.forward, operands, names, static)


def _keep(static, *operands):
    o, final, states = _forward(static, *operands)
    return (o, final), (operands[:-1], states)


def _backward(static, kept, cotangents):
    operands, states = kept
    names = (*OPERANDS, "states", "do", "dfinal")
    forms = tpu.backward, gpu_backward.backward, cpu.backward
    grads = _run("delta_rule_grad", *forms, (*operands, states, *cotangents), names, static)
    dq, dk, dv, dbeta, dg, dinitial = grads
    starts = operands[5]
    return dq, dk, dv, dbeta, dg, None if starts is None else np.zeros(starts.shape, jax.dtypes.float0), dinitial


_delta_rule.defvjp(_keep, _backward)


def fail(argument, found, expected):
    raise ValueError(f"delta_rule: {argument}: found {found}, expected {expected}")


def check(q, k, v, beta, g, segment_ids) -> None:
    """Raises what `delta_rule` raises of these."""
    if q.ndim != 4:
        fail("q", f"shape {q.shape}", "[B, T, N, K]")
    batch, length, heads, keys = q.shape
    if k.shape != q.shape:
        fail("k", f"shape {k.shape}", f"that of q, {q.shape}")
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        fail("v", f"shape {v.shape}", f"[B, T, N, V] with B, T, N = {q.shape[:3]}")
    if str(q.dtype) not in DTYPES:
        fail("q", f"dtype {q.dtype}", " or ".join(DTYPES))
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            fail(name, f"dtype {x.dtype}", f"that of q, {q.dtype}")
    if min(heads, keys, v.shape[-1]) == 0:
        fail("q, v", f"shapes {q.shape}, {v.shape}", "at least one head, one key and one value channel")
    if beta.shape != q.shape[:3]:
        fail("beta", f"shape {beta.shape}", f"[B, T, N] = {q.shape[:3]}")
    if g is not None and g.shape not in (q.shape[:3], q.shape):
        fail("g", f"shape {g.shape}", f"[B, T, N] = {q.shape[:3]} or [B, T, N, K] = {q.shape}")
    for name, x in (("beta", beta), ("g", g)):
        if x is not None and str(x.dtype) not in DTYPES:
            fail(name, f"dtype {x.dtype}", " or ".join(DTYPES))
    if segment_ids is not None:
        if segment_ids.shape != (batch, length):
            fail("segment_ids", f"shape {segment_ids.shape}", f"[B, T] = {(batch, length)}")
        if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
            fail("segment_ids", f"dtype {segment_ids.dtype}", "integers")
    if length and not isinstance(beta, jax.core.Tracer) and not bool(jnp.all((beta >= 0) & (beta <= 2))):
        fail("beta", f"values from {float(beta.min())} to {float(beta.max())}", "0 to 2")
    if length and g is not None and not isinstance(g, jax.core.Tracer) and not bool(jnp.all(g <= 0)):
        fail("g", f"a largest value of {float(g.max())}", "logarithms of decays, at most 0")


def _state(state, shape, dtype):
    if state is None:
        return jnp.zeros(shape, dtype)
    if state.shape != shape or state.dtype != dtype:
        fail("initial_state", f"{state.dtype}{list(state.shape)}", f"{dtype}{list(shape)} ([B, N, K, V])")
    return state


def _block_sizes(dtype, width, overrides) -> tuple[int, int]:
    """(chunk, heads a program)."""
    sizes = blocks.pick("delta_rule", "forward", dtype, width, default={"chunk": 128, "heads": 8})
    unknown = sorted(set(overrides or {}) - set(sizes))
    if unknown:
        fail("block_sizes", f"{unknown[0]!r}", "chunk or heads")
    sizes |= overrides or {}
    if sizes["chunk"] not in CHUNKS:
        fail("block_sizes", f"chunk {sizes['chunk']}", f"one of {CHUNKS}")
    if sizes["heads"] < 1:
        fail("block_sizes", f"heads {sizes['heads']}", "at least 1")
    return sizes["chunk"], sizes["heads"]
