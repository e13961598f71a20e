"""Gated linear attention: the public functions."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from kernels_pallas import blocks, dispatch, gpu_chunks
from kernels_pallas.gated_linear_attention import cpu, gpu, tpu
from kernels_pallas.gated_linear_attention.chunk import least
from kernels_pallas.segments import resets

OPERATION = "gated_linear_attention"
DTYPES = ("bfloat16", "float32", "float64")


def gated_linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array | None = None,
    *,
    scale: float | None = None,
    initial_state: jax.Array | None = None,
    output_final_state: bool = False,
    segment_ids: jax.Array | None = None,
    block_sizes: Mapping[str, int] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Linear attention whose state decays, per head (RetNet, lightning attention, Mamba-2's SSD) or per key channel
    (GLA, HGRN2).

        S_t = exp(g_t) S_{t-1} + k_t v_t^T,     o_t = scale q_t S_t

    A token reads itself: the sum is inclusive. Equation 4 of GLA (arXiv:2312.06635), in chunks as in its section 4;
    with a gate per head, equation 16 of Mamba-2 (arXiv:2405.21060), where k, v, q are its B, x times dt, C.

    Args:
      q, k: [B, T, N, K], or [B, T, M, K] where M divides N: head n reads those of number n // (N / M).
      v: [B, T, N, V], of q's dtype: bfloat16, float32, or float64, for which plain XLA is taken.
      g: logarithms of the decay, at most zero: None for no decay, [N] for one constant a head, [B, T, N], or
        [B, T, N, K] for one per key channel. -inf is allowed and forgets all. That none is positive is checked where
        the values are known, outside of `jax.jit`.
      scale: of the result; default K ** -0.5. A Python number.
      initial_state: S_0 [B, N, K, V], float32 (float64 beside such q); it belongs to the segment of the first token.
      output_final_state: return (o, S_T).
      segment_ids: integers [B, T]; where they change between two tokens, the state starts from zero.
      block_sizes: of the TPU kernels, "chunk" and "heads" (see `tpu`), in place of the table's. The GPU kernels have
        tiles of their own; they serve up to 256 keys and values a head, beyond which a GPU takes the plain XLA form.

    Returns:
      o [B, T, N, V] in v's dtype, and on request S_T [B, N, K, V]; gradients for q, k, v, g and initial_state.
      With T = 0, o is empty and S_T the initial state.

    Raises:
      ValueError, TypeError: name the argument and its limit.
    """
    check(q, k, v, g, scale, initial_state, segment_ids, block_sizes)
    batch, length, heads, width = v.shape
    wide = jnp.promote_types(v.dtype, jnp.float32)
    if initial_state is None:
        initial_state = jnp.zeros((batch, heads, q.shape[-1], width), wide)
    if length == 0:
        o = jnp.zeros(v.shape, v.dtype)
        return (o, initial_state) if output_final_state else o
    gate = gates(g, segment_ids, v.shape[:3], wide)
    sizes = _sizes(v, q.shape[-1], "vector" if gate.ndim == 4 else "scalar", block_sizes)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    heads_first = [jnp.swapaxes(x, 1, 2) for x in (q, k, v, gate)]
    o, final = _attend(*heads_first, initial_state, scale, sizes)
    o = jnp.swapaxes(o, 1, 2)
    return (o, final) if output_final_state else o


def step(q, k, v, g=None, *, state, scale=None) -> tuple[jax.Array, jax.Array]:
    """One token of `gated_linear_attention`, for decoding: memory and time do not depend on how many came before.

    Args:
      q, k: [B, N, K] or [B, M, K]; v [B, N, V]; g: None, [N], [B, N] or [B, N, K].
      state: [B, N, K, V], float32 (float64).

    Returns:
      o [B, N, V] in v's dtype, and the next state.
    """
    one = [x[:, None] for x in (q, k, v)]
    one_g = g if g is None or g.ndim == 1 else g[:, None]
    check(*one, one_g, scale, state, None, None)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    groups = v.shape[1] // q.shape[1]
    q, k = (jnp.repeat(x, groups, axis=1).astype(state.dtype) for x in (q, k))
    if g is not None:
        decay = jnp.exp(g.astype(state.dtype))
        state = state * (decay[..., None] if g.ndim == 3 else decay[..., None, None])
    state = state + k[..., None] * v[..., None, :].astype(state.dtype)
    o = scale * jnp.einsum("bnk,bnkv->bnv", q, state, precision=jax.lax.Precision.HIGHEST)
    return o.astype(v.dtype), state


def gates(g, segment_ids, shape, dtype):
    """[B, T, N] or [B, T, N, K]; a token that starts a segment forgets all."""
    g = jnp.zeros((), dtype) if g is None else g.astype(dtype)
    g = g if g.ndim == 4 else jnp.broadcast_to(g, shape)
    if segment_ids is None:
        return g
    starts = resets(segment_ids)
    return jnp.where(starts.reshape(*starts.shape, *[1] * (g.ndim - 2)), least(dtype), g)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, g, state, scale, sizes):
    o, final, _ = _forward(q, k, v, g, state, scale, sizes, save=False)
    return o, final


def _attend_forward(q, k, v, g, state, scale, sizes):
    o, final, states = _forward(q, k, v, g, state, scale, sizes, save=True)
    return (o, final), (q, k, v, g, states)


def _attend_backward(scale, sizes, residuals, cotangents):
    common = {"scale": scale, "chunk": dict(sizes)["chunk"]}
    kernel = functools.partial(tpu.backward, scale=scale, **dict(sizes))
    forms = kernel, *(functools.partial(form.backward, **common) for form in (gpu, cpu))
    return _on_platform(forms, *residuals, *cotangents)


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(q, k, v, g, state, scale, sizes, save):
    common = {"scale": scale, "save": save, "chunk": dict(sizes)["chunk"]}
    kernel = functools.partial(tpu.forward, scale=scale, save=save, **dict(sizes))
    forms = kernel, *(functools.partial(form.forward, **common) for form in (gpu, cpu))
    return _on_platform(forms, q, k, v, g, state)


def _on_platform(forms, q, k, v, *rest):
    on_tpu, on_gpu, plain = forms
    forms = {"tpu": on_tpu, "gpu": on_gpu if gpu_chunks.serves(q, v) else None}
    call = functools.partial(dispatch.by_platform, **forms, cpu=plain, what=OPERATION)
    return dispatch.folded(call)(q, k, v, *rest)


def _sizes(v, k_width: int, kind: str, asked: Mapping[str, int] | None) -> tuple[tuple[str, int], ...]:
    width = max(k_width, v.shape[-1])
    default = tpu.default_sizes(kind, v.dtype, width)
    sizes = blocks.pick(OPERATION, kind, v.dtype, width, default=default) | dict(asked or {})
    if sizes["chunk"] not in (128, 256, 512):
        raise ValueError(f"block_sizes: found chunk {sizes['chunk']}, expected 128, 256 or 512")
    if sizes["heads"] < 1:
        raise ValueError(f"block_sizes: found heads {sizes['heads']}, expected at least 1")
    return tuple(sorted(sizes.items()))


def check(q, k, v, g, scale, initial_state, segment_ids, block_sizes) -> None:
    """Raises what `gated_linear_attention` does of such arguments."""
    for name, x, width in (("q", q, "K"), ("k", k, "K"), ("v", v, "V")):
        if x.ndim != 4:
            raise ValueError(f"{name}: found shape {x.shape}, expected four axes [B, T, N, {width}]")
        if str(x.dtype) not in DTYPES or x.dtype != q.dtype:
            raise TypeError(f"{name}: found {x.dtype}, expected one of {', '.join(DTYPES)}, the same in q, k and v")
    batch, length, heads, width = v.shape
    if q.shape != k.shape:
        raise ValueError(f"k: found shape {k.shape}, expected q's, {q.shape}")
    if q.shape[:2] != (batch, length):
        raise ValueError(f"v: found shape {v.shape}, expected [B, T] = {q.shape[:2]} as in q")
    if heads == 0 or q.shape[2] == 0 or heads % q.shape[2]:
        raise ValueError(f"q: found {q.shape[2]} heads, expected a divisor of v's {heads}")
    if g is not None:
        shapes = ((heads,), (batch, length, heads), (batch, length, heads, q.shape[3]))
        if g.shape not in shapes:
            raise ValueError(f"g: found shape {g.shape}, expected None or one of {', '.join(map(str, shapes))}")
        if not jnp.issubdtype(g.dtype, jnp.floating):
            raise TypeError(f"g: found {g.dtype}, expected a floating dtype")
        if not isinstance(g, jax.core.Tracer) and bool(jnp.any(g > 0)):
            raise ValueError(f"g: found {float(jnp.max(g)):g}, expected log-gates of at most 0")
    if scale is not None and not (isinstance(scale, (int, float)) and math.isfinite(scale)):
        raise TypeError(f"scale: found {scale!r}, expected a finite Python number or None")
    if initial_state is not None:
        expected = (batch, heads, q.shape[3], width)
        wide = jnp.promote_types(v.dtype, jnp.float32)
        if initial_state.shape != expected or initial_state.dtype != wide:
            found = f"{initial_state.dtype}{list(initial_state.shape)}"
            raise ValueError(f"initial_state: found {found}, expected {wide}{list(expected)}")
    if segment_ids is not None:
        if segment_ids.shape != (batch, length) or not jnp.issubdtype(segment_ids.dtype, jnp.integer):
            found = f"{segment_ids.dtype}{list(segment_ids.shape)}"
            raise ValueError(f"segment_ids: found {found}, expected integers [{batch}, {length}]")
    unknown = set(block_sizes or {}) - {"chunk", "heads"}
    if unknown:
        raise ValueError(f"block_sizes: found {', '.join(sorted(unknown))}, expected some of chunk, heads")
