"""The definition of gated linear attention, token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gated_linear_attention(q, k, v, g=None, *, scale=None, initial_state=None, segment_ids=None):
    """As `api.gated_linear_attention`, in float32 or, of float64 arguments, in float64; returns (o, final state).

        S_t = exp(g_t) * S_{t-1} + k_t v_t^T        (rows of S decay each by its own gate where g has K of them)
        o_t = scale * q_t S_t

    with S_{t-1} = 0 where token t starts a segment, t > 0.
    """
    batch, length, heads, width = v.shape
    dtype = jnp.promote_types(v.dtype, jnp.float32)
    q, k = (jnp.repeat(x.astype(dtype), heads // x.shape[2], axis=2) for x in (q, k))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    gates = jnp.zeros((), dtype) if g is None else g.astype(dtype)
    gates = jnp.broadcast_to(gates if gates.ndim == 4 else gates[..., None], q.shape)
    keep = jnp.ones((batch, length), bool)
    if segment_ids is not None:
        keep = keep.at[:, 1:].set(segment_ids[:, 1:] == segment_ids[:, :-1])
    if initial_state is None:
        initial_state = jnp.zeros((batch, heads, q.shape[-1], width), dtype)

    def token(state, now):
        q_t, k_t, v_t, g_t, keep_t = now
        decay = jnp.where(keep_t[:, None, None], jnp.exp(g_t), 0)
        state = decay[..., None] * state + k_t[..., None] * v_t[..., None, :]
        return state, scale * jnp.einsum("bnk,bnkv->bnv", q_t, state, precision=jax.lax.Precision.HIGHEST)

    by_token = [jnp.moveaxis(x, 1, 0) for x in (q, k, v.astype(dtype), gates, keep)]
    state, o = jax.lax.scan(token, initial_state.astype(dtype), tuple(by_token))
    return jnp.moveaxis(o, 0, 1).astype(v.dtype), state
