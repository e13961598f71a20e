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


def wkv(k, v, log_decay, bonus, *, initial_state=None, segment_ids=None):
    """(y [B, T, D] in v's dtype, what the state says [B, 2, D]: mean value, logarithm of the whole weight).

    All pairs of tokens at once; `initial_state` [B, 3, D] is one more, before the first.
    """
    wide = jnp.promote_types(v.dtype, jnp.float32)
    batch, length, width = v.shape
    k, values, w, u = (x.astype(wide) for x in (k, v, log_decay, bonus))
    ids = jnp.zeros((batch, length), int) if segment_ids is None else segment_ids
    segment = jnp.cumsum(jnp.pad(ids[:, 1:] != ids[:, :-1], ((0, 0), (1, 0))), axis=1)
    if initial_state is not None:  # a token of weight den e^m and value num / den
        num, den, m = jnp.moveaxis(initial_state, 1, 0)
        k = jnp.concatenate([(m + jnp.log(den))[:, None], k], axis=1)
        values = jnp.concatenate([(num / den)[:, None], values], axis=1)
        segment = jnp.concatenate([jnp.zeros((batch, 1), int), segment], axis=1)
    at = jnp.arange(k.shape[1])
    past = (at[:, None] > at) & (segment[:, :, None] == segment[:, None])
    weights = k[:, None] + ((at[:, None] - 1 - at)[:, :, None] * w)
    weights = jnp.where(past[..., None], weights, -jnp.inf)
    weights = jnp.where(jnp.eye(k.shape[1], dtype=bool)[:, :, None], (u + k)[:, None], weights)
    y = jnp.einsum("btsd,bsd->btd", jax.nn.softmax(weights, axis=2), values, precision="highest")
    last = jnp.where((segment == segment[:, -1:])[..., None], k + (at[-1] - at)[:, None] * w, -jnp.inf)
    mean = jnp.einsum("bsd,bsd->bd", jax.nn.softmax(last, axis=1), values, precision="highest")
    return y[:, -length:].astype(v.dtype), jnp.stack([mean, jax.nn.logsumexp(last, axis=1)], axis=1)
