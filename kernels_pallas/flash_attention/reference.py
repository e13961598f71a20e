"""The definition of attention: every score at once, in the dtype of the arguments."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from kernels_pallas.flash_attention.mask import Mask


def attention(query, key, value, bias, sinks, query_segments, key_segments, *, mask: Mask, scale, logits_soft_cap):
    """Attention by its definition, differentiable.

    Args:
      query: [B, T, N, H]; key, value: [B, S, K, H], each of the K heads serving N / K adjacent heads of `query`.
      bias: None or [1 | B, 1 | N, T, S]; sinks: None or [1, N]; segments: both None, or [B, T] and [B, S].

    Returns:
      [B, T, N, H], and the log-sum-exp [B, T, N] of each query's scores (and sink); -inf where there is none.
    """
    groups = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
    exact = lax.Precision.HIGHEST
    x_BNTS = jnp.einsum("btnh,bsnh->bnts", query, key, precision=exact) * scale
    if bias is not None:
        x_BNTS = x_BNTS + bias
    if logits_soft_cap is not None:
        x_BNTS = logits_soft_cap * jnp.tanh(x_BNTS / logits_soft_cap)
    seen = jnp.ones(x_BNTS.shape, bool)
    if mask.bounded:
        seen &= mask.visible(jnp.arange(mask.queries)[:, None], jnp.arange(mask.keys))
    if query_segments is not None:
        seen &= (query_segments[:, :, None] == key_segments[:, None, :])[:, None]
    low = jnp.finfo(x_BNTS.dtype).min
    most = jnp.max(jnp.where(seen, x_BNTS, low), -1, initial=low)
    if sinks is not None:
        most = jnp.maximum(most, sinks[..., None])
    most = lax.stop_gradient(jnp.where(most == low, 0, most))
    e_BNTS = jnp.where(seen, jnp.exp(jnp.where(seen, x_BNTS - most[..., None], 0)), 0)
    total = e_BNTS.sum(-1)
    if sinks is not None:
        total = total + jnp.exp(sinks[..., None] - most)
    some = total > 0
    safe = jnp.where(some, total, 1)
    out = jnp.einsum("bnts,bsnh->btnh", e_BNTS / safe[..., None], value, precision=exact)
    log_sum_exp = jnp.where(some, most + jnp.log(safe), -jnp.inf)
    return out, jnp.swapaxes(log_sum_exp, 1, 2)
