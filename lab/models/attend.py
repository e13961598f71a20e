"""Causal attention in plain XLA operations, shaped for CPU, where it halves the time of the textbook's order of axes.

Four things make the difference, measured at batch 8, length 128, 4 heads of 16:
- a gradient of its own that keeps the exponentials, where autodiff reads and writes more [T, T] arrays;
- blocks of queries that meet only the keys up to their end, so that little is computed above the diagonal;
- time as the minor axis, scores as [keys, queries]: reductions over a major axis are vectorised, others are not;
- exponentials are never normalised: their sums divide the [features, queries] results.
Plain operations, batch and heads being axes of their own, stay correct under vmap, lax.map, shard_map, sharded heads.

Suffixes: B batch, K key-value heads, G query heads of each, d head width, T queries, S keys, Q queries of a block with
their G heads side by side.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

MOST_BLOCKS, SHORTEST_BLOCK = 4, 64


def blocks(length: int) -> list[tuple[int, int]]:
    """First query and end of each block of queries; a block's queries are multiplied with all keys before its end."""
    size = max(SHORTEST_BLOCK, -(-length // MOST_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _queries(x_BKGdT, start: int, end: int):
    cut = jnp.moveaxis(x_BKGdT[..., start:end], 2, 3)
    return cut.reshape(*cut.shape[:3], -1)


def _outer(x_BKdS, y_BKdQ):
    return jnp.einsum("bkds,bkdq->bksq", x_BKdS, y_BKdQ)


def _mix(x_BKdS, e_BKSQ):
    return jnp.einsum("bkds,bksq->bkdq", x_BKdS, e_BKSQ)


def _unmix(y_BKdQ, e_BKSQ):
    return jnp.einsum("bkdq,bksq->bkds", y_BKdQ, e_BKSQ)


def _block(q_BKdQ, k_BKdS, v_BKdS, start: int):
    """Results [B, K, d, Q] of one block, its exponentials and the reciprocals of their sums, in float32 or wider."""
    scores = _outer(k_BKdS, q_BKdQ)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    keys, queries = scores.shape[-2:]
    ahead = np.arange(keys)[:, None] > start + np.arange(keys - start)[None, :]
    ahead = np.tile(ahead, (1, queries // (keys - start)))
    scores = jnp.where(ahead, -jnp.inf, scores)
    e_BKSQ = jnp.exp(scores - jnp.max(scores, axis=-2, keepdims=True))
    inverse_BK1Q = 1 / jnp.sum(e_BKSQ, axis=-2, keepdims=True)
    e_BKSQ = e_BKSQ.astype(v_BKdS.dtype)
    return _mix(v_BKdS, e_BKSQ) * inverse_BK1Q.astype(v_BKdS.dtype), e_BKSQ, inverse_BK1Q


def _join(parts, groups: int):
    """Blocks [B, K, d, G x queries] -> [B, K, G, d, T]."""
    apart = [part.reshape(*part.shape[:3], groups, -1) for part in parts]
    return jnp.moveaxis(jnp.concatenate(apart, axis=-1), 3, 2)


@jax.custom_vjp
def _attend(q_BKGdT, k_BKdT, v_BKdT):
    return _forward(q_BKGdT, k_BKdT, v_BKdT)[0]


def _forward(q_BKGdT, k_BKdT, v_BKdT):
    parts, exponentials, inverses = [], [], []
    for start, end in blocks(q_BKGdT.shape[-1]):
        part, e_BKSQ, inverse_BK1Q = _block(_queries(q_BKGdT, start, end), k_BKdT[..., :end], v_BKdT[..., :end], start)
        parts.append(part)
        exponentials.append(e_BKSQ)
        inverses.append(inverse_BK1Q)
    return _join(parts, q_BKGdT.shape[2]), (q_BKGdT, k_BKdT, v_BKdT, parts, exponentials, inverses)


def _backward(saved, g_BKGdT):
    q_BKGdT, k_BKdT, v_BKdT, parts, exponentials, inverses = saved
    length = q_BKGdT.shape[-1]
    dq, dk_BKdT, dv_BKdT = [], jnp.zeros_like(k_BKdT), jnp.zeros_like(v_BKdT)
    for (start, end), part, e_BKSQ, inverse_BK1Q in zip(blocks(length), parts, exponentials, inverses, strict=True):
        rest = [(0, 0)] * 3 + [(0, length - end)]
        g_BKdQ = _queries(g_BKGdT, start, end) * inverse_BK1Q.astype(g_BKGdT.dtype)
        mean_BK1Q = jnp.sum(g_BKdQ * part, axis=-2, keepdims=True)
        dv_BKdT = dv_BKdT + jnp.pad(_unmix(g_BKdQ, e_BKSQ), rest)
        ds_BKSQ = e_BKSQ * (_outer(v_BKdT[..., :end], g_BKdQ) - mean_BK1Q)
        dq.append(_mix(k_BKdT[..., :end], ds_BKSQ))
        dk_BKdT = dk_BKdT + jnp.pad(_unmix(_queries(q_BKGdT, start, end), ds_BKSQ), rest)
    return _join(dq, q_BKGdT.shape[2]), dk_BKdT, dv_BKdT


_attend.defvjp(_forward, _backward)


def attend(q_BHdT, k_BKdT, v_BKdT):
    """Causal attention [batch, heads, head_width, length]; q carries the scale of its scores.

    Each of the K key-value heads serves H / K query heads, which are adjacent. Softmax in float32 or wider.
    """
    batch, heads, head_width, length = q_BHdT.shape
    kv_heads = k_BKdT.shape[1]
    grouped = q_BHdT.reshape(batch, kv_heads, heads // kv_heads, head_width, length)
    return _attend(grouped, k_BKdT, v_BKdT).reshape(q_BHdT.shape)
