"""The definition, a token at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def selective_scan(
    x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, *, initial_state=None, segment_ids=None
):
    """(y [B, T, D] in x's dtype, last state [B, D, N])."""
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    x, dt, A, B, C = (y.astype(wide) for y in (x, dt, A, B, C))
    if dt_bias is not None:
        dt = dt + dt_bias.astype(wide)
    if dt_softplus:
        dt = jax.nn.softplus(dt)
    keep = jnp.ones(x.shape[:2], wide)
    if segment_ids is not None:
        keep = keep.at[:, 1:].set((segment_ids[:, 1:] == segment_ids[:, :-1]).astype(wide))

    def token(h, now):
        x, dt, B, C, keep = now
        a = jnp.exp(dt[:, :, None] * A) * keep[:, None, None]
        h = a * h + (dt * x)[:, :, None] * B[:, None]
        return h, jnp.sum(h * C[:, None], axis=-1)

    first = jnp.zeros((x.shape[0], *A.shape), wide) if initial_state is None else initial_state
    last, y = jax.lax.scan(token, first, [jnp.swapaxes(v, 0, 1) for v in (x, dt, B, C, keep)])
    y = jnp.swapaxes(y, 0, 1)
    if D is not None:
        y = y + D.astype(wide) * x
    if z is not None:
        y = y * jax.nn.silu(z.astype(wide))
    return y.astype(dtype), last
