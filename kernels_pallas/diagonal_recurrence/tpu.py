"""Pallas kernels for TPU: [B, T, D] as it lies, channels on lanes, the carry of a sequence in VMEM.

Eight tokens are one register. The token before them enters the first of them, whose decay is then zero, so that three
doublings (Hillis and Steele, 1986) need no masks: where one would reach past the eight, its multiplier is zero. The
loop over a block's registers is unrolled, so that a bundle count is of the whole block; the interpreter rolls it up.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

DEFAULT = {"rows": 128, "width": 1024}
TILE = 8  # tokens of one float32 register
PAIR = 2 * TILE  # tokens of one bfloat16 register: the unit in which blocks are read and written
ORDER = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))


def forward(x, g, state, *keep, rows, width, interpret=False):
    """h [B, T, D] in x's dtype and h_T [B, D].

    Args:
      x: [B, T, D]; state: [B, D].
      g: log-decays [C, T, D], or [C, 1, D] where they are constant in time; row c serves B / C sequences.
      keep: nothing, or [B, T]: zero where the state is forgotten, else one.
      rows, width: of a block, multiples of 128.
    """
    spec, grid, rows, width = _grid(x.shape, rows, width)
    size = x.size
    h, last = pl.pallas_call(
        functools.partial(_forward, length=x.shape[1], kept=len(keep), unroll=not interpret),
        grid=grid,
        in_specs=[spec.tokens, spec.gates(g, x), spec.channels, *[spec.flags] * len(keep)],
        out_specs=[spec.tokens, spec.channels],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(_thin(state).shape, state.dtype)],
        scratch_shapes=[pltpu.VMEM((TILE, width), jnp.float32), *[pltpu.VMEM((rows, 128), jnp.float32)] * len(keep)],
        compiler_params=ORDER,
        cost_estimate=_cost(2 * size, g, x, x, state, state, *keep),
        name="diagonal_recurrence_forward",
        interpret=interpret,
    )(x, g, _thin(state), *map(_thin, keep))
    return h, last[:, 0]


def backward(g, state, h, dh, dlast, *keep, rows, width, interpret=False):
    """Gradients of x [B, T, D], of g ([B, T, D], or [B, 1, D] in float32 where g is constant) and of state [B, D]."""
    spec, grid, rows, width = _grid(h.shape, rows, width, back=True)
    constant = g.shape[1] == 1
    dg = jax.ShapeDtypeStruct((h.shape[0], 1, h.shape[2]), jnp.float32) if constant else g
    dx, dg, dstate = pl.pallas_call(
        functools.partial(_backward, length=h.shape[1], kept=len(keep), unroll=not interpret),
        grid=grid,
        in_specs=[
            *(spec.gates(g, h), spec.channels, spec.tokens, spec.before, spec.tokens, spec.channels),
            *[spec.flags] * len(keep),
        ],
        out_specs=[spec.tokens, spec.channels if constant else spec.tokens, spec.channels],
        out_shape=[jax.ShapeDtypeStruct(y.shape, y.dtype) for y in (dh, dg, _thin(state))],
        scratch_shapes=[
            *[pltpu.VMEM((TILE, width), jnp.float32)] * 2,
            *[pltpu.VMEM((rows, 128), jnp.float32)] * len(keep),
        ],
        compiler_params=ORDER,
        cost_estimate=_cost(3 * h.size, g, dg, h, h[:, :: rows // PAIR], dh, dh, state, state, state, *keep),
        name="diagonal_recurrence_backward",
        interpret=interpret,
    )(g, _thin(state), h, h, dh, _thin(dlast), *map(_thin, keep))
    return dx, dg, dstate[:, 0]


class _Specs:
    """Blocks of a grid over batch, channels and time, which runs backwards for the gradients."""

    def __init__(self, rows, width, last):
        def time(t):
            return t if last is None else last - t

        def before(b, d, t):
            return b, jnp.maximum(time(t) * (rows // PAIR) - 1, 0), d

        self.rows, self.width, self.time = rows, width, time
        self.tokens = pl.BlockSpec((1, rows, width), lambda b, d, t: (b, time(t), d))
        self.before = pl.BlockSpec((1, PAIR, width), before)
        self.channels = pl.BlockSpec((1, 1, width), lambda b, d, t: (b, 0, d))
        self.flags = pl.BlockSpec((1, 1, rows), lambda b, d, t: (b, 0, time(t)))

    def gates(self, g, x):
        served = x.shape[0] // g.shape[0]
        if g.shape[1] == 1:
            return pl.BlockSpec((1, 1, self.width), lambda b, d, t: (b // served, 0, d))
        return pl.BlockSpec((1, self.rows, self.width), lambda b, d, t: (b // served, self.time(t), d))


def _grid(shape, rows, width, back=False):
    batch, length, channels = shape
    rows, width = min(rows, pl.cdiv(length, 128) * 128), min(width, pl.cdiv(channels, 128) * 128)
    steps = pl.cdiv(length, rows)
    return _Specs(rows, width, steps - 1 if back else None), (batch, pl.cdiv(channels, width), steps), rows, width


def _thin(x):
    return x[:, None]


def _cost(flops, g, *moved):
    return pl.CostEstimate(
        flops=flops, transcendentals=g.size, bytes_accessed=sum(y.size * y.dtype.itemsize for y in (g, *moved))
    )


def _scan(a, x, carry, way):
    """States of eight tokens, time going down (`way` 1) or up the rows; `carry` [1, W] is the state before them."""
    first = jax.lax.broadcasted_iota(jnp.int32, a.shape, 0) == (0 if way == 1 else TILE - 1)
    x = x + jnp.where(first, a * carry, 0.0)
    a = jnp.where(first, 0.0, a)
    for reach in (1, 2, 4):
        x = x + a * pltpu.roll(x, way * reach % TILE, 0)
        if reach < 4:
            a = a * pltpu.roll(a, way * reach % TILE, 0)
    return x


def _turn(keep_ref, turned_ref):
    """The flags of a block, which lie along lanes, laid along tokens [rows, 128]."""
    for i in range(0, turned_ref.shape[0], 128):
        turned_ref[i : i + 128] = jnp.broadcast_to(keep_ref[0, :, i : i + 128], (128, 128)).T


class _Block:
    """The decays of a block: read once where they are constant, masked where the sequence has ended."""

    def __init__(self, g_ref, flag_refs, shape, start, length):
        self.g_ref, self.flag_refs, self.start = g_ref, flag_refs, start
        self.ragged = length if length % shape[0] else None
        self.shape = (TILE, shape[1])
        self.once = None
        if g_ref.shape[1] == 1:
            self.once = jnp.broadcast_to(jnp.exp(g_ref[0].astype(jnp.float32)), self.shape)

    def inside(self, row):
        return jax.lax.broadcasted_iota(jnp.int32, self.shape, 0) + (self.start + row) < self.ragged

    def within(self, x, row):
        """x, zero where the sequence has ended."""
        return x if self.ragged is None else jnp.where(self.inside(row), x, 0.0)

    def decays(self, pair, row):
        """a [8, W] of the tokens from `pair` + `row`."""
        if self.once is None:
            a = jnp.exp(self.g_ref[0, pl.ds(pair, PAIR), :].astype(jnp.float32)[row : row + TILE])
        else:
            a = self.once
        for flag_ref in self.flag_refs:
            flags = flag_ref[pl.ds(pair, PAIR)][row : row + TILE]
            a = a * jnp.concatenate([flags] * (self.shape[1] // 128), axis=1)
        return a if self.ragged is None else jnp.where(self.inside(pair + row), a, 1.0)


def _forward(x_ref, g_ref, first_ref, *rest, length, kept, unroll):
    keep_refs, (h_ref, last_ref, carry_ref), flag_refs = rest[:kept], rest[kept : kept + 3], rest[kept + 3 :]
    t = pl.program_id(2)

    @pl.when(t == 0)
    def _():
        carry_ref[:1] = first_ref[0]

    for keep_ref, flag_ref in zip(keep_refs, flag_refs):
        _turn(keep_ref, flag_ref)
    rows, width = x_ref.shape[1:]
    block = _Block(g_ref, flag_refs, (rows, width), t * rows, length)

    def two_registers(i, carry):
        pair = pl.multiple_of(i * PAIR, PAIR)
        x = x_ref[0, pl.ds(pair, PAIR), :].astype(jnp.float32)
        halves = []
        for row in (0, TILE):
            h = _scan(block.decays(pair, row), block.within(x[row : row + TILE], pair + row), carry, 1)
            halves.append(h)
            carry = h[TILE - 1 :]
        h_ref[0, pl.ds(pair, PAIR), :] = jnp.concatenate(halves).astype(h_ref.dtype)
        return carry

    carry_ref[:1] = carry = jax.lax.fori_loop(0, rows // PAIR, two_registers, carry_ref[:1], unroll=unroll)

    @pl.when(t == pl.num_programs(2) - 1)
    def _():
        last_ref[0] = carry


def _backward(g_ref, first_ref, h_ref, before_ref, dh_ref, dlast_ref, *rest, length, kept, unroll):
    """u_t = a_t dx_t runs back in time: dx_t = dh_t + u_{t+1}, and the gradient of log a_t is u_t h_{t-1}."""
    keep_refs, flag_refs = rest[:kept], rest[kept + 5 :]
    dx_ref, dg_ref, dfirst_ref, carry_ref, sum_ref = rest[kept : kept + 5]
    step, steps = pl.program_id(2), pl.num_programs(2)
    t = steps - 1 - step

    @pl.when(step == 0)
    def _():
        carry_ref[:1] = dlast_ref[0]
        sum_ref[...] = jnp.zeros_like(sum_ref)

    for keep_ref, flag_ref in zip(keep_refs, flag_refs):
        _turn(keep_ref, flag_ref)
    rows, width = h_ref.shape[1:]
    block = _Block(g_ref, flag_refs, (rows, width), t * rows, length)
    row_of = jax.lax.broadcasted_iota(jnp.int32, (TILE, width), 0)

    def two_registers(pair, past, carry, total):
        dh = dh_ref[0, pl.ds(pair, PAIR), :].astype(jnp.float32)
        h = h_ref[0, pl.ds(pair, PAIR), :].astype(jnp.float32)
        halves = {}
        for row in (TILE, 0):
            here = block.within(dh[row : row + TILE], pair + row)
            a = block.decays(pair, row)
            u = _scan(a, a * here, carry, -1)
            later = jnp.where(row_of == TILE - 1, carry, pltpu.roll(u, TILE - 1, 0))
            earlier = h[TILE - 1 : TILE] if row else past
            earlier = jnp.where(row_of == 0, earlier, pltpu.roll(h[row : row + TILE], 1, 0))
            halves[row] = (here + later, u * block.within(earlier, pair + row))
            carry = u[:1]
        dx, dg = (jnp.concatenate(y) for y in zip(halves[0], halves[TILE]))
        dx_ref[0, pl.ds(pair, PAIR), :] = dx.astype(dx_ref.dtype)
        if block.once is None:
            dg_ref[0, pl.ds(pair, PAIR), :] = dg.astype(dg_ref.dtype)
        else:
            total = total + dg[:TILE] + dg[TILE:]
        return carry, total

    def later_registers(i, carry):
        pair = pl.multiple_of(rows - PAIR - i * PAIR, PAIR)
        past = h_ref[0, pl.ds(pl.multiple_of(pair - PAIR, PAIR), PAIR), :].astype(jnp.float32)[PAIR - 1 :]
        return two_registers(pair, past, *carry)

    carry = (carry_ref[:1], sum_ref[...])
    carry = jax.lax.fori_loop(0, rows // PAIR - 1, later_registers, carry, unroll=unroll)
    past = jnp.where(t == 0, first_ref[0], before_ref[0].astype(jnp.float32)[PAIR - 1 :])
    carry_ref[:1], sum_ref[...] = first, total = two_registers(0, past, *carry)

    @pl.when(step == steps - 1)
    def _():
        dfirst_ref[0] = first
        if block.once is not None:
            dg_ref[0] = jnp.sum(total, axis=0, keepdims=True)
