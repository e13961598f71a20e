"""One chunk of one head: scores and their decay, and the gradients of both. Shared by the kernels and the CPU form.

With b_t the sum of the gates of a chunk up to and including token t, and C its last token,

    p_ts = sum_k q_tk k_sk exp(b_t - b_s)_k  for s <= t        what token t reads of token s
    q_in = q exp(b),  k_out = k exp(b_C - b),  total = exp(b_C)

so that o = scale (p v + q_in S) and the next chunk starts from total S + k_out^T v. No exponent here is ever positive
and none is a difference of two rounded sums, so the weights are those of float32 for any gate.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

NN, NT, TN = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))
GRID = 2.0**-8  # of the coarse part of a gate: 512 gates of LEAST are below 2^16, so float32 adds them exactly


def least(dtype) -> float:
    """The log-gate whose exponential is zero in `dtype`; smaller ones, and the start of a segment, are this one."""
    return -104.0 if dtype == jnp.float32 else -746.0


def dot(a: jax.Array, b: jax.Array, dims=NN) -> jax.Array:
    """Product of matrices accumulated in float32 (float64): one pass of bfloat16 operands, exact ones of float32."""
    precision = jax.lax.Precision.DEFAULT if a.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=wide)


def ones_dot(a: jax.Array, b: jax.Array, dtype) -> jax.Array:
    """a @ b where one of them is boolean; beside bfloat16 operands the other keeps 16 of its bits, else all."""
    if dtype != jnp.bfloat16:
        wide = jnp.promote_types(a.dtype, b.dtype)
        return dot(a.astype(wide), b.astype(wide))
    if a.dtype != jnp.bool_:
        high = a.astype(dtype)
        low = (a - high.astype(a.dtype)).astype(dtype)
        return dot(high, b.astype(dtype)) + dot(low, b.astype(dtype))
    high = b.astype(dtype)
    low = (b - high.astype(b.dtype)).astype(dtype)
    return dot(a.astype(dtype), high) + dot(a.astype(dtype), low)


def indices(size: int) -> tuple[jax.Array, jax.Array]:
    """Row and column numbers of a square."""
    shape = (size, size)
    return jax.lax.broadcasted_iota(jnp.int32, shape, 0), jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def clamped(g: jax.Array) -> jax.Array:
    """Gates whose sums are finite; below the least there is nothing left to lose."""
    return jnp.maximum(g, least(g.dtype))


def split(g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(coarse, fine): sums of coarse parts are exact, and those of fine parts too small to lose what counts."""
    coarse = jnp.round(g / GRID) * GRID
    return coarse, g - coarse


def scalar(q: jax.Array, k: jax.Array, gates, dp: jax.Array | None = None):
    """One gate per token.

    Args:
      q, k: [C, K].
      gates: ((coarse, fine) as rows [1, C], the same as columns [C, 1]): sums up to and including each token.
      dp: [C, C], gradient of p.

    Returns:
      p [C, C], q_in and k_out [C, K] in q's dtype, total [1, 1], and with `dp` a function of the gradients of q_in,
      k_out and (summed over V) of total, [C, K], [C, K] and [1, 1], to those of q, k and the gates: [C, K], [C, K]
      and [1, C].
    """
    (row, row_fine), columns = gates
    dtype, (size, width) = q.dtype, q.shape
    t, s = indices(size)
    # A column is spread over lanes once, for all that follows: on a TPU that costs more than the arithmetic.
    col, col_fine = (jnp.broadcast_to(x, (size, max(size, width))) for x in columns)
    decay = (col[:, :size] - row) + (col_fine[:, :size] - row_fine)
    decay = jnp.exp(jnp.where(t >= s, decay, -jnp.inf))
    col, col_fine = col[:, :width], col_fine[:, :width]
    into = jnp.exp(col + col_fine)
    out = jnp.exp((col[-1:] - col) + (col_fine[-1:] - col_fine))
    total = into[-1:, :1]
    scores = dot(q, k, NT)
    made = scores * decay, (q * into).astype(dtype), (k * out).astype(dtype), total
    if dp is None:
        return made

    def pull(dq_in, dk_out, dtotal):
        m = dp * decay
        dq_in, dk_out = dq_in * into, dk_out * out
        dq = dot(m.astype(dtype), k) + dq_in
        dk = dot(m.astype(dtype), q, TN) + dk_out
        # A gate takes the gradient of every path that crosses it: from an earlier token s, or the state before, to
        # this or a later token t, or the state after. Only such paths are added; nothing has to cancel.
        ends, begins = (jnp.sum(x, axis=1, keepdims=True) for x in (q * dq_in, k * dk_out))
        crossing = ones_dot(jnp.where(t > s, m * scores, 0), t < s, dtype) + ends
        dg = jnp.sum(jnp.where(t >= s, crossing, begins), axis=0, keepdims=True) + total * dtotal
        return dq, dk, dg

    return *made, pull


def vector(q: jax.Array, k: jax.Array, g: jax.Array, dp: jax.Array | None = None, roll: Callable = jnp.roll):
    """One gate per key channel; the pairs of tokens of a chunk are the nodes of a binary tree.

    Two tokens meet where a block of 2h tokens is cut into halves of h: s in the first, t in the second. Their decay is
    that from s to the end of its half times that from the start of t's half to t: both at most one, each from a sum of
    gates of its own half. Token t then comes as a query and s as a key, so one array z, of decayed queries in second
    halves and decayed keys in first halves, times itself serves all pairs of a level, and its gradient likewise.

    Args, returns: as `scalar`, but for g [C, K] (C a power of two), total and its gradient [1, K], gradient of g
    [C, K], and
      roll: `jnp.roll` of this platform.
    """
    dtype, (size, _) = q.dtype, q.shape
    t, s = indices(size)
    apart = t ^ s  # h <= apart < 2h where two tokens meet
    g, queries, keys = clamped(g), q.astype(g.dtype), k.astype(g.dtype)
    upto, after = g, jnp.zeros_like(g)  # sums over the token's half: up to and with it, and after it
    p = dot(q, k, NT)
    if dp is not None:
        own = jnp.sum(jnp.where(t == s, dp, 0), axis=1, keepdims=True)
        dq, dk, crossing = own * keys, own * queries, jnp.zeros_like(g)
        rest = jnp.where(t > s, dp, 0)
        rest = rest + jnp.transpose(rest)
    half = 1
    while half < size:
        weight = jnp.exp(_halves(after, upto, half))
        z = (_halves(keys, queries, half) * weight).astype(dtype)
        p = jnp.where(apart >= half, dot(z, z, NT), p)
        if dp is not None:
            later = apart >= 2 * half
            dz = dot(jnp.where(later, 0, rest).astype(dtype), z)
            rest = jnp.where(later, rest, 0)
            change, crossed = weight * dz, z * dz
            dq, dk = _halves(dq, dq + change, half), _halves(dk + change, dk, half)
            crossing = _halves(crossing - crossed, crossing + crossed, half)
        both = upto + after
        other = _halves(roll(both, size - half, 0), roll(both, half, 0), half)
        upto, after = _halves(upto, upto + other, half), _halves(after + other, after, half)
        half *= 2
    p = jnp.where(t >= s, p, 0)
    into, out = jnp.exp(upto), jnp.exp(after)
    total = into[-1:]
    made = p, (queries * into).astype(dtype), (keys * out).astype(dtype), total
    if dp is None:
        return made

    def pull(dq_in, dk_out, dtotal):
        dq_in, dk_out = dq_in * into, dk_out * out
        # As for `scalar`, but pairs of this chunk that both come after the gate do cancel.
        dg = ones_dot(t <= s, crossing + queries * dq_in, dtype) + ones_dot(t > s, keys * dk_out, dtype)
        return dq + dq_in, dk + dk_out, dg + total * dtotal

    return *made, pull


def _halves(first: jax.Array, second: jax.Array, half: int) -> jax.Array:
    """Rows of `first` in first halves and of `second` in second halves of blocks of 2 `half` rows."""
    size, width = first.shape
    if half % 8:
        place = jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0)
        return jnp.where((place & half) > 0, second, first)
    first, second = (x.reshape(-1, 2, half, width) for x in (first, second))
    return jnp.stack([first[:, 0], second[:, 1]], axis=1).reshape(size, width)
