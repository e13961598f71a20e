"""The delta rule as it is defined, one step after the other; float32 or float64, no tricks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels_pallas.segments import resets


def step(q, k, v, beta, g, state, *, scale):
    """One token: q, k [B, N, K], v [B, N, V], beta [B, N], g [B, N, K] or [B, N, 1] or None, state [B, N, K, V].

    Returns o [B, N, V] and the next state. The mixed form of Yang et al. 2024 (arXiv:2412.06464, eq. 10) and, with a
    decay per channel, Kimi Linear (arXiv:2510.26692, eq. 1): decay, then the error of what is read, then the write.
    """
    if g is not None:
        state = jnp.exp(g)[..., None] * state
    read = jnp.einsum("bnk,bnkv->bnv", k, state, precision="highest")
    written = beta[..., None] * (v - read)
    state = state + k[..., :, None] * written[..., None, :]
    return scale * jnp.einsum("bnk,bnkv->bnv", q, state, precision="highest"), state


def delta_rule(q, k, v, beta, g=None, *, scale=None, initial_state=None, segment_ids=None):
    """(o, final state); arguments as `api.delta_rule`. Everything is computed in the dtype of `q`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    batch, _, heads, keys = k.shape
    if initial_state is None:
        initial_state = jnp.zeros((batch, heads, keys, v.shape[-1]), q.dtype)
    if g is not None and g.ndim == 3:
        g = g[..., None]
    starts = None if segment_ids is None else resets(segment_ids)

    def body(state, x):
        q, k, v, beta, g, start = x
        if start is not None:
            state = jnp.where(start[:, None, None, None], 0, state)
        o, state = step(q, k, v, beta, g, state, scale=scale)
        return state, o

    in_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, beta, g, starts))
    state, o = jax.lax.scan(body, initial_state, in_time)
    return jnp.moveaxis(o, 0, 1), state
