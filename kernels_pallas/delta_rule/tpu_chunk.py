"""Inside the TPU kernels: what one head's chunk of 128 steps does, from values in registers and VMEM.

`narrow` (bfloat16 inputs): products take operands rounded to bfloat16, those of the inverse operands of two bfloat16
parts each. Else every product takes float32 at the highest precision.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

CHUNK = 128
BASE = 16  # rows of the diagonal blocks that are inverted by substitution
F32, BF16 = jnp.float32, jnp.bfloat16
NN, NT, TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))  # contracted axes: a b, a b^T, a^T b


def iota(shape, axis):
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def dot(a, b, narrow, axes=NN):
    precision = jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST
    dtype = BF16 if narrow else F32
    a, b = a.astype(dtype), b.astype(dtype)
    return jax.lax.dot_general(a, b, (axes, ((), ())), precision=precision, preferred_element_type=F32)


def dot_of_parts(a, b, narrow):
    """Error about 2^-16 where `narrow`: Neumann-like errors of the inverse grow from 2^-8 to percents."""
    if not narrow:
        return dot(a, b, False)
    (a, a_rest), (b, b_rest) = ((x.astype(BF16), x - x.astype(BF16).astype(F32)) for x in (a, b))
    return dot(a, b, True) + (dot(a, b_rest, True) + dot(a_rest, b, True))


def causal(shape=(CHUNK, CHUNK), strict=False):
    return iota(shape, 0) > iota(shape, 1) if strict else iota(shape, 0) >= iota(shape, 1)


def running_sums(rows):
    """[R, C] -> sums up to each lane, exact where the terms are multiples of 1/256 below 2^16."""
    return dot(rows, jnp.where(causal(), 1.0, 0.0), False, NT)


def invert_base(a):
    """The inverses of I + a's diagonal blocks of 16 rows, a strictly lower triangular [C, C]; side by side, [16, C]."""
    lane = iota((8, CHUNK), 1)
    halves = [
        sum(jnp.where(lane // BASE == b, a[b * BASE + at : b * BASE + at + 8], 0.0) for b in range(CHUNK // BASE))
        for at in (0, 8)
    ]
    x = [jnp.where(iota((8, CHUNK), 0) + at == lane % BASE, 1.0, 0.0) for at in (0, 8)]
    for j in range(BASE - 1):
        row = x[j // 8][j % 8 : j % 8 + 1]
        for half in (0, 1) if j < 7 else (1,):
            column = jnp.take_along_axis(halves[half], lane // BASE * BASE + j, axis=1)
            x[half] = x[half] - column * row
    return jnp.concatenate(x, 0)


def spread_base(x):
    """[16, C] of `invert_base` -> block diagonal [C, C]."""
    lane = iota((BASE, CHUNK), 1)
    return jnp.concatenate([jnp.where(lane // BASE == b, x, 0.0) for b in range(CHUNK // BASE)], 0)


def double_blocks(x_ref, a_ref, head, size, narrow):
    """x_ref[head]: from the inverses of blocks of `size` rows to those of twice as many.

    X21 = -X22 A21 X11 of each pair: exact, where sums of powers of A explode (the ladder).
    """
    second = range(size, CHUNK, 2 * size)
    lane = iota((size, CHUNK), 1)
    mine = jnp.concatenate([x_ref[head, at : at + size] for at in second], 0)
    lower = [jnp.where(lane // size == at // size - 1, a_ref[head, at : at + size], 0.0) for at in second]
    below = dot_of_parts(jnp.concatenate(lower, 0), x_ref[head], narrow)
    zero = jnp.zeros((size, CHUNK), F32)
    wide = [part for i in range(len(second)) for part in (zero, below[i * size : (i + 1) * size])]
    mine = mine - dot_of_parts(mine, jnp.concatenate(wide, 0), narrow)
    for i, at in enumerate(second):
        x_ref[head, at : at + size] = mine[i * size : (i + 1) * size]


def invert(a_ref, x_ref, heads, narrow):
    """x_ref[h] = the inverses of the two diagonal blocks of 64 rows of I + a_ref[h]; heads side by side."""
    for h in range(heads):
        x_ref[h] = spread_base(invert_base(a_ref[h]))
    size = BASE
    while 2 * size < CHUNK:
        for h in range(heads):
            double_blocks(x_ref, a_ref, h, size, narrow)
        size *= 2


def solve(a, x, r, narrow):
    """u = (I + a)^-1 r; x as `invert` leaves it."""
    half = CHUNK // 2
    first = dot(x[:half, :half], r[:half], narrow)
    second = dot(x[half:, half:], r[half:] - dot(a[half:, :half], first, narrow), narrow)
    return jnp.concatenate([first, second], 0)


def solve_transposed(a, x, r, narrow):
    """u = (I + a)^-T r."""
    half = CHUNK // 2
    second = dot(x[half:, half:], r[half:], narrow, TN)
    first = dot(x[:half, :half], r[:half] - dot(a[half:, :half], second, narrow, TN), narrow, TN)
    return jnp.concatenate([first, second], 0)


def last_of_other(x, size):
    """Each row gets the last row of the other block of its pair of blocks of `size` rows; x [C, K]."""
    if size == 1:
        return jnp.where(iota(x.shape, 0) % 2 == 0, jnp.roll(x, -1, 0), jnp.roll(x, 1, 0))
    if size < 8:
        tiles = x.reshape(-1, 8, x.shape[-1])
        row, other = iota(tiles.shape, 1), None
        for at in range(0, 8, size):
            source = (at ^ size) + size - 1
            part = jnp.broadcast_to(tiles[:, source : source + 1], tiles.shape)
            other = part if other is None else jnp.where(row // size == at // size, part, other)
        return other.reshape(x.shape)
    parts = [x[(at ^ size) + size - 1 : (at ^ size) + size] for at in range(0, CHUNK, size)]
    return jnp.concatenate([jnp.broadcast_to(part, (size, x.shape[-1])) for part in parts], 0)


def levels(g):
    """As `cpu._levels`: yields (s, z) for s = 1 .. 64, then (128, sums from the start, sums to the end)."""
    upto, after, size = g, jnp.zeros_like(g), 1
    while size < CHUNK:
        second = iota(g.shape, 0) // size % 2 == 1
        yield size, jnp.where(second, upto, after)
        other = last_of_other(upto, size)
        upto, after = jnp.where(second, upto + other, upto), jnp.where(second, after, after + other)
        size *= 2
    yield size, upto, after


def of_level(size):
    """[C, C]: the row's step lies in the second, the column's in the first block of one pair."""
    row, column = iota((CHUNK, CHUNK), 0) // size, iota((CHUNK, CHUNK), 1) // size
    return (row == column + 1) & (row % 2 == 1)


def scalars(beta, g, count):
    """Numbers per head and step [H, C] as {name: rows}, and the same with steps on sublanes, {name: [C, H]}.

    `from_start` and `to_end` are the decays from the chunk's start and to its end, 0 across a reset; of gates per
    head g there are running sums besides, in a coarse part (multiples of 1/256, exact) and a fine one: see
    `cpu._sums_of_gates`. `count` [1, C]: the resets in the chunk up to each step.
    """
    rows = {"beta": beta, "from_start": jnp.ones_like(beta), "to_end": jnp.ones_like(beta)}
    if g is not None:
        coarse = jnp.round(g * 256) / 256
        sums = running_sums(jnp.concatenate([coarse, g - coarse], 0))
        coarse, fine = sums[: len(g)], sums[len(g) :]
        rows |= {"coarse": coarse, "fine": fine, "from_start": jnp.exp(coarse + fine)}
        rows["to_end"] = jnp.exp((coarse[:, -1:] - coarse) + (fine[:, -1:] - fine))
    if count is not None:
        rows["count"] = jnp.broadcast_to(count, beta.shape)
        rows["from_start"] = jnp.where(rows["count"] == 0, rows["from_start"], 0.0)
        rows["to_end"] = jnp.where(rows["count"] == rows["count"][:, -1:], rows["to_end"], 0.0)
    heads = len(beta)
    filler = [jnp.zeros((short, CHUNK), F32)] if (short := -len(rows) * heads % 8) else []
    columns = jnp.concatenate([*rows.values(), *filler], 0).T
    return rows, {name: columns[:, i * heads : (i + 1) * heads] for i, name in enumerate(rows)}


def connected(rows, columns):
    """[C, C]: the column's step is at or before the row's, with no reset between."""
    if "count" not in rows:
        return causal()
    return causal() & (columns["count"][:, :1] == rows["count"][:1])


def decays_of_head(rows, columns, head, mask):
    """exp(sum of g from step j to i), [C, C], 0 outside `mask`; 1 where there are no gates."""
    if "coarse" not in rows:
        return jnp.where(mask, 1.0, 0.0)
    parts = [columns[x][:, head : head + 1] - rows[x][head : head + 1] for x in ("coarse", "fine")]
    return jnp.where(mask, jnp.exp(jnp.where(mask, parts[0] + parts[1], 0.0)), 0.0)


def products(q, k, g, mask, narrow):
    """sum_c q_ic k_jc and k_ic k_jc with the decays of gates per channel g (None: no decay) from j to i, in `mask`."""
    if g is None:
        return dot(q, k, narrow, NT), dot(k, k, narrow, NT), None, None
    eye = jnp.where(iota((CHUNK, CHUNK), 0) == iota((CHUNK, CHUNK), 1), 1.0, 0.0)
    qk, kk = jnp.sum(q * k, 1, keepdims=True) * eye, 0.0
    for size, *found in levels(g):
        if size == CHUNK:
            return jnp.where(mask, qk, 0.0), jnp.where(mask, kk, 0.0), *(jnp.exp(x) for x in found)
        decay, pairs = jnp.exp(found[0]), of_level(size)
        scaled = k * decay
        both = dot(jnp.concatenate([q * decay, scaled], 0), scaled, narrow, NT)
        qk, kk = qk + jnp.where(pairs, both[:CHUNK], 0.0), kk + jnp.where(pairs, both[CHUNK:], 0.0)
