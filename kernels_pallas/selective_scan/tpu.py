"""Pallas kernels for TPU: a register holds one state of 1024 channels, a block of tokens at a time.

Neither decays nor states of all tokens ever leave the chip: forward writes the state before each block, from which
backward makes those of the block again. Rows of 1024 channels become registers by stores with a stride; numbers of B
and C become registers of equal lanes by a product with zeros and ones, so that the vector unit only does the
recurrence. Eight states go through a block of tokens together; a turn of the loops takes sixteen tokens, one register
of bfloat16.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

DEFAULT = {"rows": 128, "width": 1024}
LANES = 128
TILE = 8  # rows of one float32 register; states that go through a block together
TURN = 16  # tokens of a turn of the loops
LATE = 8  # of a turn backward in time, where more registers are alive
SLOTS = 4  # tokens whose products wait for their sums at a time
LOG2_E = math.log2(math.e)
ORDER = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))


def forward(x, dt, A, B, C, state, *keep, rows, width, interpret=False):
    """(y [B, T, D] in x's dtype, last state [B, N, D], states before each block [B, T / rows, N, D]).

    Args:
      x, dt: [B, T, D]; B, C: [B, N, T]; A: [G, N, D], row g serves B / G sequences; state: [B, N, D]. D is a multiple
        of 128 and N of 8.
      keep: nothing, or [B, T]: zero where the state is forgotten, else one.
      rows, width: of a block, multiples of 128.
    """
    batch, length, channels = x.shape
    width, steps = widest(channels, width), pl.cdiv(length, rows)
    n = A.shape[1]
    specs = _specs(rows, width, n, batch // A.shape[0], lambda t: t)
    states = jax.ShapeDtypeStruct((batch, steps, n, channels), jnp.float32)
    return pl.pallas_call(
        functools.partial(_forward, length=length, kept=len(keep), size=_tokens(TURN, interpret)),
        grid=(batch, channels // width, steps),
        in_specs=[specs[k] for k in ("tokens", "tokens", "A", "columns", "columns", "state", *["keep"] * len(keep))],
        out_specs=[specs[k] for k in ("tokens", "state", "states")],
        out_shape=[jax.ShapeDtypeStruct(y.shape, y.dtype) for y in (x, state, states)],
        scratch_shapes=[*_scratch(n, n, rows, rows, rows), *_for_columns(B.dtype, rows, len(keep))],
        compiler_params=ORDER,
        cost_estimate=_cost(7 * n * x.size, n * x.size, x, dt, A, B, C, state, *keep, x, state, states),
        name="selective_scan_forward",
        interpret=interpret,
    )(x, dt, A, B, C, state, *(flags[:, None] for flags in keep))


def backward(x, dt, A, B, C, states, dy, dlast, *keep, rows, width, interpret=False):
    """Gradients of x, dt, A (float32 [B, N, D]), B, C and the state, of `forward`'s arguments."""
    batch, length, channels = x.shape
    width, steps = widest(channels, width), pl.cdiv(length, rows)
    n = A.shape[1]
    specs = _specs(rows, width, n, batch // A.shape[0], lambda t: steps - 1 - t)
    shape = jax.ShapeDtypeStruct
    part = shape((batch, channels // width, n, length), jnp.float32)  # summed over blocks of channels below
    inputs = ("tokens", "tokens", "A", "columns", "columns", "states", "tokens", "state", *["keep"] * len(keep))
    outputs = (x, dt, dlast, part, part, dlast)
    dx, ddt, dA, dB, dC, dstate = pl.pallas_call(
        functools.partial(
            _backward, length=length, kept=len(keep), sizes=(_tokens(TURN, interpret), _tokens(LATE, interpret))
        ),
        grid=(batch, channels // width, steps),
        in_specs=[specs[k] for k in inputs],
        out_specs=[specs[k] for k in ("tokens", "tokens", "state", "parts", "parts", "state")],
        out_shape=[shape(y.shape, y.dtype) for y in outputs],
        scratch_shapes=[
            *_scratch(n, n, n, *[rows] * 5, (rows + 1) * TILE, *[SLOTS * TILE] * 2),
            *_for_columns(B.dtype, rows, len(keep)),
        ],
        compiler_params=ORDER,
        cost_estimate=_cost(24 * n * x.size, 2 * n * x.size, x, dt, A, B, C, states, dy, dlast, *keep, *outputs),
        name="selective_scan_backward",
        interpret=interpret,
    )(x, dt, A, B, C, states, dy, dlast, *(flags[:, None] for flags in keep))
    return dx, ddt, dA, jnp.sum(dB, 1).astype(B.dtype), jnp.sum(dC, 1).astype(C.dtype), dstate


def _tokens(size, interpret):
    """Of one turn of a loop; one where interpreted, for a CPU's compiler takes minutes over many."""
    return 1 if interpret else size


def widest(channels, most):
    """The largest multiple of 128 up to 1024 and `most` that divides `channels`, whose sums must meet no others."""
    return max(w for w in range(LANES, min(max(most, LANES), TILE * LANES) + 1, LANES) if channels % w == 0)


def _scratch(*registers):
    return [pltpu.VMEM((count * TILE, LANES), jnp.float32) for count in registers]


def _for_columns(dtype, rows, kept):
    """The two buffers of `_columns`."""
    sources, parts = (2 + kept) * TILE, 1 if dtype == jnp.bfloat16 else 3
    columns = 2 * TILE + kept
    ones = pltpu.VMEM((parts * sources, columns * LANES), jnp.bfloat16)
    return ones, pltpu.VMEM((columns, rows, LANES), jnp.float32)


def _specs(rows, width, n, served, time):
    return {
        "tokens": pl.BlockSpec((1, rows, width), lambda b, d, t: (b, time(t), d)),
        "A": pl.BlockSpec((1, n, width), lambda b, d, t: (b // served, 0, d)),
        "columns": pl.BlockSpec((1, n, rows), lambda b, d, t: (b, 0, time(t))),
        "parts": pl.BlockSpec((1, 1, n, rows), lambda b, d, t: (b, d, 0, time(t))),
        "state": pl.BlockSpec((1, n, width), lambda b, d, t: (b, 0, d)),
        "states": pl.BlockSpec((1, 1, n, width), lambda b, d, t: (b, time(t), 0, d)),
        "keep": pl.BlockSpec((1, 1, rows), lambda b, d, t: (b, 0, time(t))),
    }


def _cost(flops, exponentials, *moved):
    size = sum(y.size * y.dtype.itemsize for y in moved)
    return pl.CostEstimate(flops=flops, transcendentals=exponentials, bytes_accessed=size)


def _register(j):
    return pl.ds(pl.multiple_of(j * TILE, TILE), TILE)


def _chunk(j):
    """Where the registers of 8 states lie."""
    return pl.ds(pl.multiple_of(j * TILE * TILE, TILE), TILE * TILE)


def _parted(x):
    return [x[at : at + TILE] for at in range(0, len(x), TILE)]


def _spread(ref, x, at=0):
    """x [R, W] to registers of `ref`: row r's groups of 128 channels to the rows of register at + r."""
    for i in range(x.shape[1] // LANES):
        ref[pl.ds(at * TILE + i, len(x), stride=TILE)] = x[:, i * LANES : (i + 1) * LANES]


def _gathered(ref, count, width, at=0):
    """Registers from number `at` on as [count, width]."""
    return jnp.concatenate([ref[pl.ds(at * TILE + i, count, stride=TILE)] for i in range(width // LANES)], 1)


def _spread_tokens(pairs, rows, left):
    """Each [1, rows, W] to a register a token, in float32; zeros past the end, which change no state."""

    def turn(i, nothing):
        start = pl.multiple_of(i * TURN, TURN)
        for ref, registers in pairs:
            y = ref[0, pl.ds(start, TURN), :].astype(jnp.float32)
            if left is not None:
                y = jnp.where(jax.lax.broadcasted_iota(jnp.int32, y.shape, 0) + start < left, y, 0.0)
            _spread(registers, y, start)
        return nothing

    jax.lax.fori_loop(0, rows // TURN, turn, 0)


def _gather_tokens(pairs, rows):
    def turn(i, nothing):
        start = pl.multiple_of(i * TURN, TURN)
        for ref, registers in pairs:
            y = _gathered(registers, TURN, ref.shape[2], start)
            ref[0, pl.ds(start, TURN), :] = y.astype(ref.dtype)
        return nothing

    jax.lax.fori_loop(0, rows // TURN, turn, 0)


def _columns(ones_ref, columns_ref, refs, keep, low, left):
    """columns_ref[i, t] = number t of row i on all lanes, of 8 rows of each of `refs` from `low` on, and 1 - keep.

    Exact: a number is a sum of one or three bfloat16 parts, and the other factor has a single 1 for each.
    """
    rows = columns_ref.shape[1]
    sources = [ref[0, low : low + TILE].astype(jnp.float32) for ref in refs]
    sources += [jnp.broadcast_to(1 - ref[0].astype(jnp.float32), (TILE, rows)) for ref in keep]
    left_over = jnp.concatenate(sources, 0)
    if left is not None:
        left_over = jnp.where(jax.lax.broadcasted_iota(jnp.int32, left_over.shape, 1) < left, left_over, 0.0)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, ones_ref.shape, axis) for axis in (0, 1))
    parts = []
    for _ in range(len(ones_ref) // len(left_over)):
        parts.append(left_over.astype(jnp.bfloat16).astype(jnp.float32))
        left_over = left_over - parts[-1]
    ones_ref[...] = jnp.where(row % len(left_over) == column // LANES, 1.0, 0.0).astype(jnp.bfloat16)
    parts = jnp.concatenate(parts, 0).T.astype(jnp.bfloat16)
    for i in range(len(columns_ref)):
        one = ones_ref[:, i * LANES : (i + 1) * LANES]
        columns_ref[i] = jnp.dot(parts, one, precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32)


def _decay(dt, log, column):
    """exp(dt A) of 8 states, `log` being A log2(e); zeros where the state is forgotten."""
    a = [jnp.exp2(dt * x) for x in log]
    return a if len(column) == 2 * TILE else [x * (1 - column[2 * TILE]) for x in a]


def _sum(terms):
    """By halves, as a tree: a chain would wait for each addition."""
    while len(terms) > 1:
        terms = [sum(terms[i : i + 2]) for i in range(0, len(terms), 2)]
    return terms[0]


def _forward(x_ref, dt_ref, a_ref, b_ref, c_ref, first_ref, *rest, length, kept, size):
    keep, (y_ref, last_ref, states_ref), rest = rest[:kept], rest[kept : kept + 3], rest[kept + 3 :]
    carry_ref, log_ref, x_now, dt_now, y_now, ones_ref, columns_ref = rest
    t, rows, width, n = pl.program_id(2), *x_ref.shape[1:], a_ref.shape[1]
    left = length - t * rows if length % rows else None

    @pl.when(t == 0)
    def _():
        _spread(carry_ref, first_ref[0])
        _spread(log_ref, a_ref[0].astype(jnp.float32) * LOG2_E)

    states_ref[0, 0] = _gathered(carry_ref, n, width)
    _spread_tokens([(x_ref, x_now), (dt_ref, dt_now)], rows, left)
    for low in range(0, n, TILE):
        _columns(ones_ref, columns_ref, (b_ref, c_ref), keep, low, left)
        chunk = _chunk(low // TILE)
        log = _parted(log_ref[chunk])

        def turn(i, h, low=low, log=log):
            for j in range(size):
                j = i * size + j
                at = _register(j)
                dt, column, h = dt_now[at], columns_ref[:, pl.ds(j, 1)], list(h)
                u, y = dt * x_now[at], y_now[at] if low else 0.0
                for k, a in enumerate(_decay(dt, log, column)):
                    h[k] = a * h[k] + u * column[k]
                    y = y + h[k] * column[TILE + k]
                y_now[at] = y
            return tuple(h)

        h = jax.lax.fori_loop(0, rows // size, turn, tuple(_parted(carry_ref[chunk])))
        carry_ref[chunk] = jnp.concatenate(h, 0)
    _gather_tokens([(y_ref, y_now)], rows)

    @pl.when(t == pl.num_programs(2) - 1)
    def _():
        last_ref[0] = _gathered(carry_ref, n, width)


def _backward(x_ref, dt_ref, a_ref, b_ref, c_ref, states_ref, dy_ref, dlast_ref, *rest, length, kept, sizes):
    """q_t = a_t dh_t runs back in time: dh_t = C_t dy_t + q_{t+1}."""
    keep, (dx_ref, ddt_ref, da_ref, db_ref, dc_ref, dfirst_ref) = rest[:kept], rest[kept : kept + 6]
    carry_ref, sum_ref, log_ref, x_now, dt_now, dy_now, du_now, dlog_now, h_ref, *rest = rest[kept + 6 :]
    waiting, (ones_ref, columns_ref) = rest[:2], rest[2:]
    step, steps, rows, width, n = pl.program_id(2), pl.num_programs(2), *x_ref.shape[1:], a_ref.shape[1]
    size, late = sizes
    left = length - (steps - 1 - step) * rows if length % rows else None

    @pl.when(step == 0)
    def _():
        _spread(carry_ref, dlast_ref[0])
        _spread(log_ref, a_ref[0].astype(jnp.float32) * LOG2_E)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    _spread_tokens([(x_ref, x_now), (dt_ref, dt_now), (dy_ref, dy_now)], rows, left)
    lane = jax.lax.broadcasted_iota(jnp.int32, (TILE, rows), 1)
    for low in range(0, n, TILE):
        _columns(ones_ref, columns_ref, (b_ref, c_ref), keep, low, left)
        chunk = _chunk(low // TILE)
        log = _parted(log_ref[chunk])
        _spread(h_ref, states_ref[0, 0, low : low + TILE])

        def again(i, h, log=log):
            for j in range(size):
                j = i * size + j
                dt, column = dt_now[_register(j)], columns_ref[:, pl.ds(j, 1)]
                u = dt * x_now[_register(j)]
                h = [a * h[k] + u * column[k] for k, a in enumerate(_decay(dt, log, column))]
                h_ref[_chunk(j + 1)] = jnp.concatenate(h, 0)
            return tuple(h)

        jax.lax.fori_loop(0, rows // size, again, tuple(_parted(h_ref[_chunk(0)])))

        def turn(i, carry, low=low, log=log, chunk=chunk):
            q, found = map(list, carry)
            for back in range(late):
                j = rows - 1 - (i * late + back)
                at = _register(j)
                dt, dy, column = dt_now[at], dy_now[at], columns_ref[:, pl.ds(j, 1)]
                u, (du, dlog) = dt * x_now[at], (du_now[at], dlog_now[at]) if low else (0.0, 0.0)
                before, after, by_log = (
                    _parted(ref[where]) for ref, where in ((h_ref, _chunk(j)), (h_ref, _chunk(j + 1)), (sum_ref, chunk))
                )
                of_b, of_c = [None] * TILE, [None] * TILE
                for k, a in enumerate(_decay(dt, log, column)):
                    dh = column[TILE + k] * dy + q[k]
                    of_b[k], of_c[k] = dh * u, after[k] * dy
                    q[k] = a * dh
                    w = q[k] * before[k]
                    by_log[k] = by_log[k] + w * dt
                    du, dlog = du + dh * column[k], dlog + w * log[k]
                sum_ref[chunk] = jnp.concatenate(by_log, 0)
                slot, here = back % SLOTS, lane == j
                for which, (ref, products) in enumerate(zip(waiting, (of_b, of_c))):
                    ref[_chunk(slot)] = jnp.concatenate(products, 0)
                    start = slot * TILE * TILE
                    groups = [ref[pl.ds(start + group, TILE, stride=TILE)] for group in range(width // LANES)]
                    of_states = jnp.sum(_sum(groups), axis=1, keepdims=True)
                    found[which] = jnp.where(here, of_states, found[which])
                if low + TILE == n:
                    du, dlog = du * dt, du * x_now[at] + dlog * (1 / LOG2_E)
                du_now[at], dlog_now[at] = du, dlog
            return tuple(q), tuple(found)

        nothing = jnp.zeros((TILE, rows), jnp.float32)
        carry = tuple(_parted(carry_ref[chunk])), (nothing, nothing)
        q, found = jax.lax.fori_loop(0, rows // late, turn, carry)
        carry_ref[chunk] = jnp.concatenate(q, 0)
        for ref, y in zip((db_ref, dc_ref), found):
            ref[0, 0, low : low + TILE] = y
    _gather_tokens([(dx_ref, du_now), (ddt_ref, dlog_now)], rows)

    @pl.when(step == steps - 1)
    def _():
        dfirst_ref[0], da_ref[0] = _gathered(carry_ref, n, width), _gathered(sum_ref, n, width)
