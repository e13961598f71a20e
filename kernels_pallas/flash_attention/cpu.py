"""Attention in plain XLA operations, shaped for CPU and right on any platform; no T x S buffer beyond short sequences.

Measured on CPU, these make the difference: time is the minor axis and scores are [keys, queries], because reductions
over a major axis are vectorised and others are not; exponentials are never normalised, their sums divide the [width,
queries] results; short sequences keep their exponentials for the gradient and meet only the keys that a block of
queries can see; long ones are met in tiles, each recomputed in the gradient. Batch and heads stay axes, so that the
form is right under shardings of either.

Suffixes: B batch, K key-value heads, G query heads of each, d head width, T queries, S keys of all or of a block, Q
queries of a block with their G heads side by side.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels_pallas.flash_attention.mask import Mask

SHORT = 512  # queries and keys up to which exponentials are kept
PARTS, LEAST_PART = 4, 64  # blocks of queries of a short sequence
TILE_BYTES = 8 << 20  # of the scores of one tile, all batch entries and heads together


def turned(x_BTNd, kv_heads: int):
    """[B, T, N, d] -> [B, K, G, d, T]."""
    batch, length, heads, width = x_BTNd.shape
    return x_BTNd.transpose(0, 2, 3, 1).reshape(batch, kv_heads, heads // kv_heads, width, length)


def _returned(x_BKGdT):
    batch, kv_heads, groups, width, length = x_BKGdT.shape
    return x_BKGdT.reshape(batch, kv_heads * groups, width, length).transpose(0, 3, 1, 2)


def _row(x_BTN, kv_heads: int):
    """Statistics [B, T, N] -> [B, K, G, 1, T]."""
    return turned(x_BTN[..., None], kv_heads)


def _side_by_side(x_BKGdT, start, size: int):
    """A block of queries -> [B, K, d, Q]."""
    x = jnp.moveaxis(lax.dynamic_slice_in_dim(x_BKGdT, start, size, -1), 2, 3)
    return x.reshape(*x.shape[:3], -1)


def _apart(x_BKdQ, groups: int):
    x = x_BKdQ.reshape(*x_BKdQ.shape[:3], groups, -1)
    return jnp.moveaxis(x, 3, 2)


def _dot(equation: str, x, y):
    """A product in float32 or wider; the operands' own precision, whatever the ambient one."""
    precision = lax.Precision.DEFAULT if x.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(equation, x, y, precision=precision, preferred_element_type=wide)


def _outer(x_BKdS, y_BKdQ):
    return _dot("bkds,bkdq->bksq", x_BKdS, y_BKdQ)


def _mix(x_BKdS, e_BKSQ):
    return _dot("bkds,bksq->bkdq", x_BKdS, e_BKSQ)


def _unmix(y_BKdQ, e_BKSQ):
    return _dot("bkdq,bksq->bkds", y_BKdQ, e_BKSQ)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What turns products of queries and keys into scores; `bias` and `sinks` may serve several batch entries each."""

    bias: Any  # [batch, 1 | N, T, S]
    sinks: Any  # [batch, N]
    query_segments: Any
    key_segments: Any
    mask: Mask
    scale: float
    logits_soft_cap: float | None

    def sink_row(self, batch: int, kv_heads: int, size: int):
        """[B, K, 1, Q] in float32 or wider; None without sinks."""
        if self.sinks is None:
            return None
        wide = self.sinks.astype(jnp.promote_types(self.sinks.dtype, jnp.float32))
        rows = jnp.repeat(wide.reshape(wide.shape[0], kv_heads, 1, -1), size, axis=-1)
        return jnp.repeat(rows, batch // wide.shape[0], axis=0)

    def of(self, k_BKdS, q_BKdQ, groups: int, query, key):
        """Scores of the block at (query, key), -inf where unseen, and the soft cap's slope (None without one)."""
        batch, kv_heads, _, queries = q_BKdQ.shape
        queries, keys = queries // groups, k_BKdS.shape[-1]
        x_BKSQ = _outer(k_BKdS, q_BKdQ) * self.scale
        if self.bias is not None:
            x_BKSQ = x_BKSQ + self._bias(batch, kv_heads, groups, query, queries, key, keys).astype(x_BKSQ.dtype)
        slope = None
        if self.logits_soft_cap is not None:
            bent = jnp.tanh(x_BKSQ / self.logits_soft_cap)
            x_BKSQ, slope = self.logits_soft_cap * bent, 1 - bent * bent
        at_query, at_key = query + jnp.arange(queries), key + jnp.arange(keys)
        seen = self.mask.visible(at_query, at_key[:, None]) if self.mask.bounded else None
        if keys != self.mask.keys and self.mask.keys % keys:
            there = at_key[:, None] < self.mask.keys
            seen = there if seen is None else seen & there
        if self.query_segments is not None:
            of_query = lax.dynamic_slice_in_dim(self.query_segments, query, queries, 1)
            of_key = lax.dynamic_slice_in_dim(self.key_segments, key, keys, 1)
            same = (of_key[:, :, None] == of_query[:, None, :])[:, None]
            seen = same if seen is None else seen & same
        if seen is not None:
            seen = jnp.broadcast_to(seen, (*seen.shape[:-1], queries))
            x_BKSQ = jnp.where(jnp.concatenate([seen] * groups, -1), x_BKSQ, -jnp.inf)
        return x_BKSQ, slope

    def _bias(self, batch: int, kv_heads: int, groups: int, query, queries: int, key, keys: int):
        """The block's part of the bias, [B | 1, K | 1, S, Q]."""
        own, heads = self.bias.shape[:2]
        block = lax.dynamic_slice_in_dim(lax.dynamic_slice_in_dim(self.bias, query, queries, 2), key, keys, 3)
        if heads == 1:
            rows = jnp.concatenate([block.swapaxes(2, 3)] * groups, -1)
        else:
            rows = block.reshape(own, kv_heads, groups, queries, keys).transpose(0, 1, 4, 2, 3)
            rows = rows.reshape(own, kv_heads, keys, -1)
        return rows if own == 1 else jnp.repeat(rows, batch // own, axis=0)

    def bias_gradient(self, ds_BKSQ, groups: int):
        """The block's part of the gradient of the bias, [batch, 1 | N, queries, keys], from that of its scores."""
        own, heads = self.bias.shape[:2]
        batch, kv_heads, keys, queries = ds_BKSQ.shape
        ds = ds_BKSQ.reshape(batch, kv_heads, keys, groups, queries // groups).transpose(0, 1, 3, 4, 2)
        return ds.reshape(own, batch // own, heads, -1, *ds.shape[-2:]).sum((1, 3))


def keeps(mask: Mask, logits_soft_cap: float | None) -> bool:
    """Whether the exponentials are kept; the slope of a soft cap would have to be kept as well."""
    return max(mask.queries, mask.keys) <= SHORT and logits_soft_cap is None


def parts(mask: Mask) -> list[tuple[int, int, int, int]]:
    """Blocks (first query, end, first key, end) of a short sequence, the keys being those that any query may see."""
    if not mask.bounded:
        return [(0, mask.queries, 0, mask.keys)]
    size, found = max(LEAST_PART, -(-mask.queries // PARTS)), []
    for start in range(0, mask.queries, size):
        end = min(start + size, mask.queries)
        low = 0 if mask.left is None or mask.first else max(0, start + mask.offset - mask.left)
        high = mask.keys if mask.right is None else max(1, min(mask.keys, end + mask.offset + mask.right))
        high = mask.keys if mask.first and not mask.causal else high
        found.append((start, end, min(low, high - 1), high))
    return found


def tile_sizes(mask: Mask, batch_and_heads: int, itemsize: int) -> tuple[int, int]:
    """Queries and keys of a tile of a long sequence."""
    side = 512
    while side > 128 and side * side * batch_and_heads * itemsize > TILE_BYTES:
        side //= 2
    return min(side, mask.queries), min(side, mask.keys)


def _exponentials(x_BKSQ, most_BK1Q):
    """exp(x - most), zeros for a query that sees nothing; with no select, which would part XLA's fusion in two."""
    return jnp.exp(x_BKSQ - jnp.maximum(most_BK1Q, jnp.finfo(most_BK1Q.dtype).min))


def _inverse(total):
    """1 / total, which is 1 or more, or 0 for a query that sees nothing: any finite number does there."""
    return 1 / jnp.maximum(total, 1)


def forward(query, key, value, bias, sinks, query_segments, key_segments, *, mask: Mask, scale, logits_soft_cap):
    """Results [B, T, N, d], log-sum-exp [B, T, N] in float32 or wider, and what `backward` is spared."""
    scores = Scores(bias, sinks, query_segments, key_segments, mask, scale, logits_soft_cap)
    kv_heads = key.shape[2]
    arrays = turned(query, kv_heads), turned(key, kv_heads)[:, :, 0], turned(value, kv_heads)[:, :, 0]
    out_BKGdT, log_BKG1T, kept = (_short if keeps(mask, logits_soft_cap) else _long)(scores, *arrays)
    return _returned(out_BKGdT).astype(query.dtype), _returned(log_BKG1T)[..., 0], kept


def _short(scores: Scores, q_BKGdT, k_BKdS, v_BKdS):
    batch, kv_heads, groups = q_BKGdT.shape[:3]
    outs, logs, kept = [], [], []
    for start, end, low, high in parts(scores.mask):
        q_BKdQ = _side_by_side(q_BKGdT, start, end - start)
        x_BKSQ, _ = scores.of(k_BKdS[..., low:high], q_BKdQ, groups, start, low)
        most = jnp.max(x_BKSQ, -2, keepdims=True)
        sink = scores.sink_row(batch, kv_heads, end - start)
        most = most if sink is None else jnp.maximum(most, sink)
        e_BKSQ = _exponentials(x_BKSQ, most)
        total = jnp.sum(e_BKSQ, -2, keepdims=True)
        total = total if sink is None else total + jnp.exp(sink - most)
        inverse = _inverse(total)
        e_BKSQ = e_BKSQ.astype(v_BKdS.dtype)
        outs.append(_apart(_mix(v_BKdS[..., low:high], e_BKSQ) * inverse, groups))
        logs.append(_apart(most + jnp.log(total), groups))
        kept.append((e_BKSQ, inverse))
    return jnp.concatenate(outs, -1), jnp.concatenate(logs, -1), kept


def _padded(x, size: int):
    """`x` with its last axis filled up to a multiple of `size`."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)])


def _tiles(x_BKGdT, size: int):
    """[B, K, d, tiles x G x size]: the heads of a tile's queries side by side, as `_side_by_side`, tile after tile."""
    x = _padded(x_BKGdT, size)
    x = x.reshape(*x.shape[:4], -1, size)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(*x.shape[:2], x.shape[3], -1)


def _untiled(x_BKdQ, groups: int, size: int):
    x = x_BKdQ.reshape(*x_BKdQ.shape[:3], -1, groups, size).transpose(0, 1, 4, 2, 3, 5)
    return x.reshape(*x.shape[:4], -1)


def _tiled(scores: Scores, q_BKGdT, k_BKdS):
    """Tile sizes, and the scores' arrays filled up to whole tiles."""
    batch, kv_heads, groups = q_BKGdT.shape[:3]
    queries, keys = tile_sizes(
        scores.mask, batch * kv_heads * groups, jnp.promote_types(q_BKGdT.dtype, jnp.float32).itemsize
    )
    if scores.bias is not None:
        bias = _padded(_padded(scores.bias, keys).swapaxes(2, 3), queries).swapaxes(2, 3)
        scores = dataclasses.replace(scores, bias=bias)
    if scores.query_segments is not None:
        segments = _padded(scores.query_segments, queries), _padded(scores.key_segments, keys)
        scores = dataclasses.replace(scores, query_segments=segments[0], key_segments=segments[1])
    return queries, keys, scores


def pairs(mask: Mask, queries: int, keys: int) -> np.ndarray:
    """First query and first key of each pair of tiles that has something to see, int32 [pairs, 2].

    A list, and no loop with bounds that depend on the tile: its length is known where FLOPs are counted.
    """
    found = []
    for i in range(-(-mask.queries // queries)):
        head, low, high = mask.key_blocks(i, queries, keys)
        seen = np.r_[0:head, low:high]
        found.append(np.stack([np.full_like(seen, i * queries), seen * keys], 1))
    return np.concatenate(found).astype(np.int32)


def _at(x, start, size: int):
    return lax.dynamic_slice_in_dim(x, start, size, -1)


def _put(x, part, start):
    return lax.dynamic_update_slice_in_dim(x, part, start, -1)


def _long(scores: Scores, q_BKGdT, k_BKdS, v_BKdS):
    batch, kv_heads, groups, width, length = q_BKGdT.shape
    queries, keys, scores = _tiled(scores, q_BKGdT, k_BKdS)
    q_BKdQ, k_BKdS, v_BKdS = _tiles(q_BKGdT, queries), _padded(k_BKdS, keys), _padded(v_BKdS, keys)
    wide = jnp.promote_types(q_BKGdT.dtype, jnp.float32)
    rows = (batch, kv_heads, 1, q_BKdQ.shape[-1])
    sink = scores.sink_row(batch, kv_heads, queries)
    size = groups * queries

    def step(carry, pair):
        query, key = pair
        at = query * groups
        most, total, out = (_at(x, at, size) for x in carry)
        x_BKSQ, _ = scores.of(_at(k_BKdS, key, keys), _at(q_BKdQ, at, size), groups, query, key)
        higher = jnp.maximum(most, jnp.max(x_BKSQ, -2, keepdims=True))
        e_BKSQ, fade = _exponentials(x_BKSQ, higher), _exponentials(most, higher)
        mixed = _mix(_at(v_BKdS, key, keys), e_BKSQ.astype(v_BKdS.dtype))
        new = higher, total * fade + jnp.sum(e_BKSQ, -2, keepdims=True), out * fade + mixed
        return tuple(_put(x, part, at) for x, part in zip(carry, new)), None

    most = jnp.full(rows, -jnp.inf, wide)
    if sink is not None:
        most = jnp.broadcast_to(jnp.tile(sink, q_BKdQ.shape[-1] // size), rows).astype(wide)
    carry = most, jnp.full(rows, 0 if sink is None else 1, wide), jnp.zeros((*rows[:2], width, rows[-1]), wide)
    (most, total, out), _ = lax.scan(step, carry, pairs(scores.mask, queries, keys))
    out, log = _untiled(out * _inverse(total), groups, queries), _untiled(most + jnp.log(total), groups, queries)
    return out[..., :length], log[..., :length], []


def backward(
    query, key, value, bias, sinks, query_segments, key_segments, log_sum_exp, delta, kept, g, *, mask: Mask, scale,
    logits_soft_cap,
):  # fmt: skip
    """Gradients (query, key, value, bias or None) from the cotangent `g` of the results.

    Args:
      log_sum_exp: [B, T, N], zeros where a query saw nothing.
      delta: [B, T, N], the sum of g times results over the width, less the cotangent of `log_sum_exp`.
    """
    scores = Scores(bias, sinks, query_segments, key_segments, mask, scale, logits_soft_cap)
    kv_heads = key.shape[2]
    arrays = turned(query, kv_heads), turned(key, kv_heads)[:, :, 0], turned(value, kv_heads)[:, :, 0]
    arrays = *arrays, turned(g, kv_heads), _row(delta, kv_heads)
    if kept:
        dq_BKGdT, dk_BKdS, dv_BKdS, dbias = _short_backward(scores, *arrays, kept)
    else:
        dq_BKGdT, dk_BKdS, dv_BKdS, dbias = _long_backward(scores, *arrays, _row(log_sum_exp, kv_heads))
    gradients = _returned(dq_BKGdT * scale), _returned(dk_BKdS[:, :, None] * scale), _returned(dv_BKdS[:, :, None])
    gradients = tuple(gradient.astype(query.dtype) for gradient in gradients)
    return *gradients, None if bias is None else dbias.astype(bias.dtype)


def _short_backward(scores: Scores, q_BKGdT, k_BKdS, v_BKdS, g_BKGdT, delta_BKG1T, kept):
    groups = q_BKGdT.shape[2]
    wide = jnp.promote_types(q_BKGdT.dtype, jnp.float32)
    dq, dk_BKdS, dv_BKdS = [], jnp.zeros(k_BKdS.shape, wide), jnp.zeros(v_BKdS.shape, wide)
    dbias = None if scores.bias is None else jnp.zeros(scores.bias.shape, wide)
    for (start, end, low, high), (e_BKSQ, inverse) in zip(parts(scores.mask), kept, strict=True):
        rest = [(0, 0)] * 3 + [(low, k_BKdS.shape[-1] - high)]
        g_BKdQ = (_side_by_side(g_BKGdT, start, end - start) * inverse).astype(v_BKdS.dtype)
        delta = _side_by_side(delta_BKG1T, start, end - start) * inverse
        dv_BKdS = dv_BKdS + jnp.pad(_unmix(g_BKdQ, e_BKSQ), rest)
        ds_BKSQ = e_BKSQ * (_outer(v_BKdS[..., low:high], g_BKdQ) - delta)
        if dbias is not None:
            dbias = dbias.at[:, :, start:end, low:high].set(scores.bias_gradient(ds_BKSQ, groups))
        ds_BKSQ = ds_BKSQ.astype(q_BKGdT.dtype)
        dq.append(_apart(_mix(k_BKdS[..., low:high], ds_BKSQ), groups))
        dk_BKdS = dk_BKdS + jnp.pad(_unmix(_side_by_side(q_BKGdT, start, end - start), ds_BKSQ), rest)
    return jnp.concatenate(dq, -1), dk_BKdS, dv_BKdS, dbias


def _long_backward(scores: Scores, q_BKGdT, k_BKdS, v_BKdS, g_BKGdT, delta_BKG1T, log_BKG1T):
    groups, length, keys_there = q_BKGdT.shape[2], q_BKGdT.shape[-1], k_BKdS.shape[-1]
    queries, keys, scores = _tiled(scores, q_BKGdT, k_BKdS)
    of_queries = [_tiles(x, queries) for x in (q_BKGdT, g_BKGdT, delta_BKG1T, log_BKG1T)]
    k_BKdS, v_BKdS = _padded(k_BKdS, keys), _padded(v_BKdS, keys)
    wide = jnp.promote_types(q_BKGdT.dtype, jnp.float32)
    size = groups * queries

    def step(carry, pair):
        query, key = pair
        at = query * groups
        dq_BKdQ, dk_BKdS, dv_BKdS, dbias = carry
        q_part, g_part, delta, log = (_at(x, at, size) for x in of_queries)
        k_part, v_part = _at(k_BKdS, key, keys), _at(v_BKdS, key, keys)
        x_BKSQ, slope = scores.of(k_part, q_part, groups, query, key)
        p_BKSQ = jnp.exp(x_BKSQ - log)
        ds_BKSQ = p_BKSQ * (_outer(v_part, g_part) - delta)
        ds_BKSQ = ds_BKSQ if slope is None else ds_BKSQ * slope
        if dbias is not None:
            dbias = _add_at(dbias, scores.bias_gradient(ds_BKSQ, groups), (0, 0, query, key))
        ds_BKSQ = ds_BKSQ.astype(q_BKGdT.dtype)
        dq_BKdQ = _add_at(dq_BKdQ, _mix(k_part, ds_BKSQ), (0, 0, 0, at))
        dk_BKdS = _add_at(dk_BKdS, _unmix(q_part, ds_BKSQ), (0, 0, 0, key))
        dv_BKdS = _add_at(dv_BKdS, _unmix(g_part, p_BKSQ.astype(v_BKdS.dtype)), (0, 0, 0, key))
        return (dq_BKdQ, dk_BKdS, dv_BKdS, dbias), None

    carry = [jnp.zeros(x.shape, wide) for x in (of_queries[0], k_BKdS, v_BKdS)]
    carry = *carry, None if scores.bias is None else jnp.zeros(scores.bias.shape, wide)
    (dq, dk_BKdS, dv_BKdS, dbias), _ = lax.scan(step, carry, pairs(scores.mask, queries, keys))
    dbias = None if dbias is None else dbias[:, :, :length, :keys_there]
    return _untiled(dq, groups, queries)[..., :length], dk_BKdS[..., :keys_there], dv_BKdS[..., :keys_there], dbias


def _add_at(total, part, at):
    at = [jnp.asarray(index, jnp.int32) for index in at]
    return lax.dynamic_update_slice(total, lax.dynamic_slice(total, at, part.shape) + part, at)
