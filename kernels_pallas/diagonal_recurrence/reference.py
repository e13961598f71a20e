"""The definition, a token at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def diagonal_recurrence(x, log_a, *, initial_state=None, segment_ids=None):
    """(h [B, T, D] in x's dtype, h_T [B, D]) of h_t = exp(log_a_t) h_{t-1} + x_t."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    batch, length, width = x.shape
    a = jnp.broadcast_to(jnp.exp(log_a.astype(wide)), x.shape)
    if segment_ids is not None:
        starts = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
        a = jnp.where(starts[:, :, None], 0, a)

    def token(h, now):
        a, x = now
        h = a * h + x
        return h, h

    first = jnp.zeros((batch, width), wide) if initial_state is None else initial_state
    last, h = jax.lax.scan(token, first, (jnp.swapaxes(a, 0, 1), jnp.swapaxes(x.astype(wide), 0, 1)))
    return jnp.swapaxes(h, 0, 1).astype(x.dtype), last
