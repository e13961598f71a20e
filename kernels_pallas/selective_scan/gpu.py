"""Pallas Triton kernels: a warp walks down the tokens of 32 channels, their states in registers.

States of a program are [n / 4, 4, 4, 8], state 4 i + k of channel 4 l + j at [i, j, k, l]. Triton lays the last two
axes over the 32 lanes and the others over a lane's registers, so that sums over states (y) and over channels (gradients
of B and C) both begin inside a lane: at sixteen states 40 shuffles a token instead of the 160 of a channel a lane.

Neither decays nor states of all tokens are written: forward keeps the state before each block of `rows` tokens, from
which backward makes one in four again, in a buffer that no T makes larger, and of these those between. Few sequences of
few channels are cut in parts, as in `kernels_pallas.diagonal_recurrence.gpu`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels_pallas.diagonal_recurrence.gpu import WARPS, entering

WIDTH = 32  # channels of a program
TURN = 4  # tokens whose states and decays backward keeps in registers, sixteen each at sixteen states
LANES = (4, 8)  # of states and channels
MOST = 128  # states of a channel, eight warps; beyond, `api` takes the plain form


def forward(x, dt, A, B, C, state, *keep, rows, parts=None, turn=TURN, interpret=False):
    """(y [B, T, D] in x's dtype, last state [B, N, D], states before each block [B, T / rows, N, D]).

    Arguments as of `tpu.forward`, for any D and N up to `MOST`; `parts` of a sequence, None: by size.
    """
    cut, shape = _Cut(x.shape, A, rows, parts, turn, interpret), jax.ShapeDtypeStruct
    B, C = (jnp.swapaxes(y, 1, 2) for y in (B, C))
    first = state[:, None]
    if cut.parts > 1:
        first = entering(state, *_ends(cut, x, dt, A, B, *keep))
    states = shape((x.shape[0], cut.steps, *A.shape[1:]), jnp.float32)
    inputs = [(x, cut.tokens), (dt, cut.tokens), (A, cut.A), (B, cut.columns), (C, cut.columns), (first, cut.ends)]
    inputs += [(flags, cut.flags) for flags in keep]
    results = [(x, cut.tokens), (first, cut.ends), (states, cut.states)]
    y, last, states = cut.call(functools.partial(_forward, cut=cut), "forward", (7, 1), inputs, results)
    return y, last[:, -1], states


def backward(x, dt, A, B, C, states, dy, dlast, *keep, rows, parts=None, turn=TURN, interpret=False):
    """Gradients of x, dt, A (float32 [B, N, D]), B, C and the state, of `forward`'s arguments."""
    cut, shape = _Cut(x.shape, A, rows, parts, turn, interpret), jax.ShapeDtypeStruct
    b, c = (jnp.swapaxes(y, 1, 2) for y in (B, C))
    last = dlast[:, None]
    if cut.parts > 1:
        ends = _ends(cut, dy, dt, A, c, *keep, back=True)
        last = entering(dlast, *(y[:, ::-1] for y in ends))[:, ::-1]
    inputs = [(x, cut.tokens), (dt, cut.tokens), (A, cut.A), (b, cut.columns), (c, cut.columns), (states, cut.states)]
    inputs += [(dy, cut.tokens), (last, cut.ends), *((flags, cut.flags) for flags in keep)]
    sums = shape((x.shape[0], cut.grid[1], x.shape[1], A.shape[1]), jnp.float32)  # of 32 channels, summed below
    again = shape((x.shape[0], cut.parts, rows // turn, *A.shape[1:]), jnp.float32)
    results = [(x, cut.tokens), (dt, cut.tokens), (last, cut.ends), (sums, cut.sums), (sums, cut.sums)]
    results += [(last, cut.ends), (again, cut.again)]
    made = cut.call(functools.partial(_backward, cut=cut), "backward", (24, 2), inputs, results)
    dx, ddt, dA, dB, dC, dstate, _ = made
    dB, dC = (jnp.swapaxes(jnp.sum(part, 1), 1, 2).astype(y.dtype) for part, y in ((dB, B), (dC, C)))
    return dx, ddt, jnp.sum(dA, 1), dB, dC, dstate[:, 0]


class _Cut:
    """A grid over batch, channels and parts of the sequence, each of whole blocks of `rows` tokens."""

    def __init__(self, shape, A, rows, parts, turn, interpret):
        batch, self.length, self.channels = shape
        self.rows, self.turn, self.n, self.interpret = rows, turn, A.shape[1], interpret
        self.each = pl.next_power_of_2(pl.cdiv(self.n, LANES[0]))
        tiles, self.steps = pl.cdiv(self.channels, WIDTH), pl.cdiv(self.length, rows)
        if parts is None:
            parts = max(1, min(WARPS // (batch * tiles), self.steps // 2))
        self.blocks = pl.cdiv(self.steps, parts)
        self.parts = pl.cdiv(self.steps, self.blocks)
        self.grid, served = (batch, tiles, self.parts), batch // A.shape[0]
        spec = pl.BlockSpec
        self.tokens = spec((None, self.length, WIDTH), lambda b, d, s: (b, 0, d))
        self.columns = spec((None, self.length, self.n), lambda b, d, s: (b, 0, 0))
        self.flags = spec((None, self.length), lambda b, d, s: (b, 0))
        self.A = spec((None, self.n, WIDTH), lambda b, d, s: (b // served, 0, d))
        self.states = spec((None, self.steps, self.n, WIDTH), lambda b, d, s: (b, 0, 0, d))
        self.ends = spec((None, None, self.n, WIDTH), lambda b, d, s: (b, s, 0, d))
        self.sums = spec((None, None, self.length, self.n), lambda b, d, s: (b, d, 0, 0))
        self.again = spec((None, None, rows // self.turn, self.n, WIDTH), lambda b, d, s: (b, s, 0, 0, d))

    def call(self, kernel, name, operations, inputs, results):
        """`operations` and exponentials of one state at one token; `inputs` and `results` with their specs."""
        arrays, (flops, exponentials) = [y for y, _ in inputs], operations
        size = self.grid[0] * self.length * self.channels * self.n
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in results],
            out_shape=[jax.ShapeDtypeStruct(y.shape, y.dtype) for y, _ in results],
            compiler_params=plgpu.CompilerParams(num_warps=max(1, self.each // 4)),
            cost_estimate=pl.CostEstimate(
                flops=flops * size,
                transcendentals=exponentials * size,
                bytes_accessed=sum(y.size * y.dtype.itemsize for y, _ in (*inputs, *results)),
            ),
            name=f"selective_scan_{name}",
            interpret=self.interpret,
        )(*arrays)


def _ends(cut, x, dt, A, B, *keep, back=False):
    """Of each part, [B, parts, N, D]: the product of its decays, and its end state from zero.

    `back`: of the gradient instead, from the part's last token to its first; x is then dy and B is C.
    """
    ends = jax.ShapeDtypeStruct((x.shape[0], cut.parts, *A.shape[1:]), jnp.float32)
    inputs = [(x, cut.tokens), (dt, cut.tokens), (A, cut.A), (B, cut.columns), *((flags, cut.flags) for flags in keep)]
    results = [(ends, cut.ends), (ends, cut.ends)]
    return cut.call(functools.partial(_forward_ends, cut=cut, back=back), "ends", (5, 1), inputs, results)


def _over_states(row):
    return row[None, :, None, :]


def _over_channels(column):
    return column[:, None, :, None]


def _sum_states(y):
    return jnp.sum(jnp.sum(y, axis=0), axis=1)  # registers before lanes


def _sum_channels(y):
    return jnp.sum(jnp.sum(y, axis=1), axis=2)


class _Tile:
    """What a program reads and writes: rows [4, 8] over channels, columns [n / 4, 4] over states, and whole states.

    Tokens past the end take no time and write nothing, so that they change no state.
    """

    def __init__(self, cut, dt_ref, a_ref, keep_refs):
        def numbers(shape, axis):
            return jax.lax.broadcasted_iota(jnp.int32, shape, axis)

        each = (cut.each, LANES[0])
        self.cut, self.dt_ref, self.keep_refs = cut, dt_ref, keep_refs
        self.start = pl.program_id(2) * (cut.blocks * cut.rows)
        self.n = numbers(each, 0) * LANES[0] + numbers(each, 1)
        each = (WIDTH // LANES[1], LANES[1])
        self.d = numbers(each, 1) * each[0] + numbers(each, 0)
        self.some_n = self.n < cut.n
        self.some_d = self.d + pl.program_id(1) * WIDTH < cut.channels
        self.place = (_over_channels(self.n), _over_states(self.d))
        self.some = _over_channels(self.some_n) & _over_states(self.some_d)
        # Powers of two cost a third of the instructions of powers of e.
        self.A = self.state(a_ref).astype(jnp.float32) * math.log2(math.e)

    def state(self, ref, *at, there=True):
        return plgpu.load(ref.at[(*at, *self.place)], mask=self.some & there, other=0.0)

    def write_state(self, ref, y, *at, there=True):
        plgpu.store(ref.at[(*at, *self.place)], y, mask=self.some & there)

    def row(self, ref, t):
        return plgpu.load(ref.at[t, self.d], mask=self.some_d & (t < self.cut.length), other=0.0)

    def write_row(self, ref, t, y):
        plgpu.store(ref.at[t, self.d], y.astype(ref.dtype), mask=self.some_d & (t < self.cut.length))

    def column(self, ref, t):
        return plgpu.load(ref.at[t, self.n], mask=self.some_n & (t < self.cut.length), other=0.0)

    def write_column(self, ref, t, y):
        plgpu.store(ref.at[t, self.n], y, mask=self.some_n & (t < self.cut.length))

    def time(self, t):
        flags = (plgpu.load(ref.at[t], mask=t < self.cut.length, other=1.0) for ref in self.keep_refs)
        return (self.row(self.dt_ref, t), *flags)

    def decay(self, dt, *flags):
        a = jnp.exp2(_over_states(dt.astype(jnp.float32)) * self.A)
        for flag in flags:
            a = a * flag
        return a


def _float32(*arrays):
    return [y.astype(jnp.float32) for y in arrays]


def _pushed(row, column):
    return _over_states(row) * _over_channels(column)


def _forward(x_ref, dt_ref, a_ref, b_ref, c_ref, first_ref, *rest, cut):
    keep_refs, (y_ref, last_ref, states_ref) = rest[:-3], rest[-3:]
    tile = _Tile(cut, dt_ref, a_ref, keep_refs)

    def fetch(i):
        at = (tile.start + i * cut.turn + j for j in range(cut.turn))
        return [(tile.row(x_ref, t), tile.column(b_ref, t), tile.column(c_ref, t), tile.time(t)) for t in at]

    def turn(i, carry):
        h, now = carry
        start = tile.start + i * cut.turn
        tile.write_state(states_ref, h, start // cut.rows, there=(start % cut.rows == 0) & (start < cut.length))
        ahead = fetch(i + 1)
        for j, (x, b, c, time) in enumerate(now):
            x, b, c, dt = _float32(x, b, c, time[0])
            h = tile.decay(*time) * h + _pushed(dt * x, b)
            tile.write_row(y_ref, start + j, _sum_states(h * _over_channels(c)))
        return h, ahead

    h, _ = jax.lax.fori_loop(0, cut.blocks * cut.rows // cut.turn, turn, (tile.state(first_ref), fetch(0)))
    tile.write_state(last_ref, h)


def _forward_ends(x_ref, dt_ref, a_ref, b_ref, *rest, cut, back):
    keep_refs, (product_ref, end_ref) = rest[:-2], rest[-2:]
    tile = _Tile(cut, dt_ref, a_ref, keep_refs)
    turns = cut.blocks * cut.rows // cut.turn

    def fetch(i):
        first = tile.start + (turns - 1 - i if back else i) * cut.turn
        at = (jnp.maximum(first, 0) + (cut.turn - 1 - j if back else j) for j in range(cut.turn))
        return [(tile.row(x_ref, t), tile.column(b_ref, t), tile.time(t)) for t in at]

    def turn(i, carry):
        product, h, now = carry
        ahead = fetch(i + 1)
        for x, b, time in now:
            x, b, dt = _float32(x, b, time[0])
            a = tile.decay(*time)
            product = product * a
            h = a * (h + _pushed(x, b)) if back else a * h + _pushed(dt * x, b)
        return product, h, ahead

    zero = jnp.zeros(tile.some.shape, jnp.float32)
    product, h, _ = jax.lax.fori_loop(0, turns, turn, (zero + 1.0, zero, fetch(0)))
    tile.write_state(product_ref, product)
    tile.write_state(end_ref, h)


def _backward(x_ref, dt_ref, a_ref, b_ref, c_ref, states_ref, dy_ref, last_ref, *rest, cut):
    """q_t = a_t dh_t runs back in time: dh_t = C_t dy_t + q_{t+1}."""
    keep_refs, (dx_ref, ddt_ref, da_ref, db_ref, dc_ref, dfirst_ref, again_ref) = rest[:-7], rest[-7:]
    tile, turns = _Tile(cut, dt_ref, a_ref, keep_refs), cut.rows // cut.turn
    barrier = (lambda: None) if cut.interpret else plgpu.debug_barrier  # what a lane wrote another may read

    def tokens(start):
        at = [start + j for j in range(cut.turn)]
        return at, [(tile.row(x_ref, t), tile.column(b_ref, t), tile.time(t)) for t in at]

    def next_state(h, x, b, time):
        x, b, dt = _float32(x, b, time[0])
        a = tile.decay(*time)
        return a * h + _pushed(dt * x, b), a

    def block(i, carry):
        start = tile.start + (cut.blocks - 1 - i) * cut.rows
        first = tile.state(states_ref, start // cut.rows, there=start < cut.length)

        def again(i, h):
            tile.write_state(again_ref, h, i)
            for now in tokens(start + i * cut.turn)[1]:
                h, _ = next_state(h, *now)
            return h

        def turn(i, carry):
            q, dA = carry
            i = turns - 1 - i
            at, nows = tokens(start + i * cut.turn)
            outs = [(tile.row(dy_ref, t), tile.column(c_ref, t)) for t in at]
            states, decays = [tile.state(again_ref, i)], []
            for now in nows:
                h, a = next_state(states[-1], *now)
                states.append(h)
                decays.append(a)
            for j in reversed(range(cut.turn)):
                x, b, (dt, *_) = nows[j]
                x, b, dt, dy, c = _float32(x, b, dt, *outs[j])
                dh = _pushed(dy, c) + q
                tile.write_column(dc_ref, at[j], _sum_channels(states[j + 1] * _over_states(dy)))
                tile.write_column(db_ref, at[j], _sum_channels(dh * _over_states(dt * x)))
                q = decays[j] * dh
                w = q * states[j]
                dA = dA + w * _over_states(dt)
                du, dlog = _sum_states(dh * _over_channels(b)), _sum_states(w * tile.A) * math.log(2)
                tile.write_row(dx_ref, at[j], du * dt)
                tile.write_row(ddt_ref, at[j], du * x + dlog)
            return q, dA

        barrier()
        jax.lax.fori_loop(0, turns, again, first)
        barrier()
        return jax.lax.fori_loop(0, turns, turn, carry)

    carry = (tile.state(last_ref), jnp.zeros(tile.some.shape, jnp.float32))
    q, dA = jax.lax.fori_loop(0, cut.blocks, block, carry)
    tile.write_state(dfirst_ref, q)
    tile.write_state(da_ref, dA)
