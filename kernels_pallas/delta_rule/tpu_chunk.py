"""Inside the TPU kernels: what one head's chunk of 128 steps does, from values in registers and VMEM.

The unknown is w = u / beta of `cpu`: (I + A) w = v - Kd S with A_ij = E_ij k_i.k_j beta_j, so that beta scales columns
(lanes) only.

`narrow` (bfloat16 inputs): products take operands rounded to bfloat16, those of the inverse operands of two bfloat16
parts each. Else every product takes float32 at the highest precision.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels_pallas.delta_rule.cpu import LEAST_GATE

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


def parts(x, narrow):
    """x as a sum of what `dot_of_parts` multiplies: two bfloat16 parts where `narrow`."""
    if not narrow:
        return (x,)
    first = x.astype(BF16)
    return first, (x - first.astype(F32)).astype(BF16)


def dot_of_parts(a, b):
    """Error about 2^-16 of two bfloat16 parts: in the inverse, roundings of 2^-9 would grow to percents."""
    if len(a) == 1:
        return dot(a[0], b[0], False)
    return dot(a[0], b[0], True) + (dot(a[0], b[1], True) + dot(a[1], b[0], True))


def causal(shape=(CHUNK, CHUNK), strict=False):
    return iota(shape, 0) > iota(shape, 1) if strict else iota(shape, 0) >= iota(shape, 1)


def running_sums(rows):
    """[R, C] -> sums up to each lane, exact where the terms are multiples of 1/256 below 2^16."""
    return dot(rows, jnp.where(causal(), 1.0, 0.0), False, NT)


def invert_base(a):
    """The inverses of the diagonal blocks of 16 rows of I + the strict lower triangle of a [C, C]; side by side."""
    lane = iota((8, CHUNK), 1)
    halves = [
        sum(jnp.where(lane // BASE == b, a[b * BASE + at : b * BASE + at + 8], 0.0) for b in range(CHUNK // BASE))
        for at in (0, 8)
    ]
    halves = [jnp.where(iota((8, CHUNK), 0) + at > lane % BASE, half, 0.0) for at, half in zip((0, 8), halves)]
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


def write_parts(ref, head, x, narrow, at=0):
    for i, part in enumerate(parts(x, narrow)):
        ref[i, head, at : at + len(x)] = part


def read_parts(ref, head, slices=(slice(None),)):
    return tuple(jnp.concatenate([ref[i, head, rows] for rows in slices], 0) for i in range(ref.shape[0]))


def double_blocks(a_ref, x_ref, y_ref, head, size, narrow):
    """x_ref: from the inverses of blocks of `size` rows to those of twice as many; y_ref is for what lies between.

    X21 = -X22 A21 X11 of each pair: exact, where sums of powers of A explode (the ladder).
    """
    second = [slice(at, at + size) for at in range(size, CHUNK, 2 * size)]
    lane = iota((size, CHUNK), 1)
    below, zero = dot_of_parts(read_parts(a_ref, head, second), read_parts(x_ref, head)), jnp.zeros((size, CHUNK), F32)
    for i, rows in enumerate(second):
        mine = jnp.where(lane // size == rows.start // size - 1, below[i * size : (i + 1) * size], 0.0)
        write_parts(y_ref, head, jnp.concatenate([zero, mine], 0), narrow, rows.start - size)
    mine = read_parts(x_ref, head, second)
    new = sum(part.astype(F32) for part in mine) - dot_of_parts(mine, read_parts(y_ref, head))
    for i, rows in enumerate(second):
        write_parts(x_ref, head, new[i * size : (i + 1) * size], narrow, rows.start)


def invert(a_ref, x_ref, y_ref, heads, narrow):
    """x_ref = the inverses of the two diagonal blocks of 64 rows of I + a, heads side by side.

    References hold `parts` [1 or 2, H, C, C].
    """
    for h in range(heads):
        write_parts(x_ref, h, spread_base(invert_base(sum(part.astype(F32) for part in read_parts(a_ref, h)))), narrow)
    size = BASE
    while 2 * size < CHUNK:
        for h in range(heads):
            double_blocks(a_ref, x_ref, y_ref, h, size, narrow)
        size *= 2


def solve(a_ref, x_ref, head, r, narrow):
    """(I + a)^-1 r for the head; x_ref as `invert` leaves it."""
    half = CHUNK // 2
    zero = jnp.zeros((half, r.shape[1]), F32)
    first = dot(x_ref[0, head, :half], jnp.concatenate([r[:half], zero], 0), narrow)
    rest = r[half:] - dot(a_ref[0, head, half:], jnp.concatenate([first, zero], 0), narrow)
    return jnp.concatenate([first, dot(x_ref[0, head, half:], jnp.concatenate([zero, rest], 0), narrow)], 0)


def solve_transposed(a_ref, x_ref, head, r, narrow):
    """(I + a)^-T r."""
    half = CHUNK // 2
    second = dot(x_ref[0, head, half:], r[half:], narrow, TN)[half:]
    first = r[:half] - dot(a_ref[0, head, half:], second, narrow, TN)[:half]
    return jnp.concatenate([dot(x_ref[0, head, :half], first, narrow, TN)[:half], second], 0)


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
    """Numbers per head and step [H, C] as {name: rows}, and the same with steps on sublanes, {(name, h): [C, 1]}.

    `write` is beta times the decay to the chunk's end, `start` the decay from its start (left out where it is 1), both
    0 across a reset; of gates per head g there are running sums besides, in a coarse part (multiples of 1/256, exact)
    and a fine one: see `cpu._sums_of_gates`. `count` [1, C]: the resets in the chunk up to each step.
    """
    rows = {"beta": beta, "write": beta}
    if g is not None:
        coarse = jnp.round(g * 256) / 256
        sums = running_sums(jnp.concatenate([coarse, g - coarse], 0))
        coarse, fine = sums[: len(g)], sums[len(g) :]
        rows |= {"coarse": coarse, "fine": fine, "start": jnp.exp(coarse + fine)}
        rows["write"] = beta * jnp.exp((coarse[:, -1:] - coarse) + (fine[:, -1:] - fine))
    if count is not None:
        rows["count"] = jnp.broadcast_to(count, beta.shape)
        rows["start"] = jnp.where(rows["count"] == 0, rows.get("start", 1.0), 0.0)
        rows["write"] = jnp.where(rows["count"] == rows["count"][:, -1:], rows["write"], 0.0)
    heads = len(beta)
    filler = [jnp.zeros((short, CHUNK), F32)] if (short := -len(rows) * heads % 8) else []
    columns = jnp.concatenate([*rows.values(), *filler], 0).T
    names = [(name, h) for name in rows for h in range(heads)]
    return rows, {name: columns[:, i : i + 1] for i, name in enumerate(names)}


def connected(rows, columns):
    """[C, C]: the column's step is at or before the row's, with no reset between."""
    if "count" not in rows:
        return causal()
    return causal() & (columns["count", 0] == rows["count"][:1])


def decays_of_head(rows, columns, head, mask):
    """exp(sum of g from step j to i), [C, C], 0 outside `mask`; 1 where there are no gates."""
    if "coarse" not in rows:
        return jnp.where(mask, 1.0, 0.0)
    parts = [columns[x, head] - rows[x][head : head + 1] for x in ("coarse", "fine")]
    return jnp.exp(jnp.where(mask, parts[0] + parts[1], 2 * LEAST_GATE))


def products(q, k, g, narrow):
    """sum_c q_ic k_jc and k_ic k_jc; with gates per channel g times their decays from j to i, for j <= i and j < i,

    and those decays from the chunk's start and to its end.
    """
    if g is None:
        both = dot(jnp.concatenate([q, k], 0), k, narrow, NT)
        return both[:CHUNK], both[CHUNK:], None, None
    eye = jnp.where(iota((CHUNK, CHUNK), 0) == iota((CHUNK, CHUNK), 1), 1.0, 0.0)
    qk, kk = jnp.sum(q * k, 1, keepdims=True) * eye, 0.0
    for size, *found in levels(g):
        if size == CHUNK:
            return qk, kk, *(jnp.exp(x) for x in found)
        decay, pairs = jnp.exp(found[0]), of_level(size)
        scaled = k * decay
        both = dot(jnp.concatenate([q * decay, scaled], 0), scaled, narrow, NT)
        qk, kk = qk + jnp.where(pairs, both[:CHUNK], 0.0), kk + jnp.where(pairs, both[CHUNK:], 0.0)
