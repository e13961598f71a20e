"""Pallas kernels for TPU: states on sublanes and channels on lanes, a block of tokens at a time.

Neither decays nor states of all tokens ever leave the chip: forward writes the state before each block, from which
backward makes those of the block again. A turn of the kernels' loop takes sixteen tokens, one register of bfloat16.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

DEFAULT = {"rows": 128, "width": 512}
TILE = 8  # tokens, or states, of one float32 register
TURN = 16  # tokens of a turn of the loop
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
        functools.partial(_forward, length=length, kept=len(keep)),
        grid=(batch, channels // width, steps),
        in_specs=[specs[k] for k in ("tokens", "tokens", "A", "columns", "columns", "state", *["keep"] * len(keep))],
        out_specs=[specs[k] for k in ("tokens", "state", "states")],
        out_shape=[jax.ShapeDtypeStruct(y.shape, y.dtype) for y in (x, state, states)],
        scratch_shapes=[pltpu.VMEM((n, width), jnp.float32)],
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
        functools.partial(_backward, length=length, kept=len(keep)),
        grid=(batch, channels // width, steps),
        in_specs=[specs[k] for k in inputs],
        out_specs=[specs[k] for k in ("tokens", "tokens", "state", "parts", "parts", "state")],
        out_shape=[shape(y.shape, y.dtype) for y in outputs],
        scratch_shapes=[
            *[pltpu.VMEM((n, width), jnp.float32)] * 2,
            pltpu.VMEM((rows + 1, n, width), jnp.float32),
        ],
        compiler_params=ORDER,
        cost_estimate=_cost(24 * n * x.size, 2 * n * x.size, x, dt, A, B, C, states, dy, dlast, *keep, *outputs),
        name="selective_scan_backward",
        interpret=interpret,
    )(x, dt, A, B, C, states, dy, dlast, *(flags[:, None] for flags in keep))
    return dx, ddt, dA, jnp.sum(dB, 1).astype(B.dtype), jnp.sum(dC, 1).astype(C.dtype), dstate


def widest(channels, most):
    """The largest multiple of 128 up to `most` that divides `channels`: sums over channels must meet no others."""
    return max(w for w in range(128, max(most, 128) + 1, 128) if channels % w == 0)


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


def _each_row(parts):
    """[8, W] whose row j is the sum over rows of parts[j], eight arrays [8, W]."""
    row = jax.lax.broadcasted_iota(jnp.int32, parts[0].shape, 0)
    for reach in (4, 2, 1):
        low = (row & reach) == 0
        parts = [
            jnp.where(low, p + pltpu.roll(p, TILE - reach, 0), q + pltpu.roll(q, reach, 0))
            for p, q in zip(parts[:reach], parts[reach:])
        ]
    return parts[0]


def _fold(x):
    """[N, W] summed to [8, W]."""
    return sum(x[i : i + TILE] for i in range(0, x.shape[0], TILE))


class _Turn:
    """Sixteen tokens, from number `start` of the block: rows of x, dt, dy, and columns of B, C, keep as [N or 8, 1].

    Tokens past the end take no time and write nothing, so that they change no state.
    """

    def __init__(self, start, left, refs):
        self.start, self.left = start, left
        self.values = {name: self._read(name, ref) for name, ref in refs.items()}

    def _read(self, name, ref):
        if name in ("x", "dt", "dy"):
            y = ref[0, pl.ds(self.start, TURN), :].astype(jnp.float32)
            place = jax.lax.broadcasted_iota(jnp.int32, y.shape, 0) + self.start
        else:
            y = ref[0].astype(jnp.float32)
            y = jnp.broadcast_to(y, (TILE, y.shape[1])) if name == "keep" else y
            place = jax.lax.broadcasted_iota(jnp.int32, y.shape, 1)
        if self.left is not None:
            y = jnp.where(place < self.left, y, 1.0 if name == "keep" else 0.0)
        if name in ("B", "C", "keep"):
            y = pltpu.roll(y, (y.shape[1] - self.start) % y.shape[1], 1)
        return y

    def row(self, name, j):
        return self.values[name][j : j + 1]

    def column(self, name, j):
        return self.values[name][:, j : j + 1]

    def decay(self, A, j):
        a = jnp.exp(self.row("dt", j) * A)
        return a * self.column("keep", j)[:1] if "keep" in self.values else a


def _refs(**refs):
    keep = refs.pop("keep")
    return refs | ({"keep": keep[0]} if keep else {})


def _forward(x_ref, dt_ref, a_ref, b_ref, c_ref, first_ref, *rest, length, kept):
    keep, (y_ref, last_ref, states_ref, carry_ref) = rest[:kept], rest[kept:]
    t, rows = pl.program_id(2), x_ref.shape[1]
    left = length - t * rows if length % rows else None

    @pl.when(t == 0)
    def _():
        carry_ref[...] = first_ref[0]

    A = a_ref[0].astype(jnp.float32)
    states_ref[0, 0] = carry_ref[...]

    def turn(i, h):
        start = pl.multiple_of(i * TURN, TURN)
        now = _Turn(start, left, _refs(x=x_ref, dt=dt_ref, B=b_ref, C=c_ref, keep=keep))
        sums = []
        for j in range(TURN):
            h = now.decay(A, j) * h + now.column("B", j) * (now.row("dt", j) * now.row("x", j))
            sums.append(_fold(h * now.column("C", j)))
        y = jnp.concatenate([_each_row(sums[:TILE]), _each_row(sums[TILE:])])
        y_ref[0, pl.ds(start, TURN), :] = y.astype(y_ref.dtype)
        return h

    carry_ref[...] = last = jax.lax.fori_loop(0, rows // TURN, turn, carry_ref[...])

    @pl.when(t == pl.num_programs(2) - 1)
    def _():
        last_ref[0] = last


def _backward(x_ref, dt_ref, a_ref, b_ref, c_ref, states_ref, dy_ref, dlast_ref, *rest, length, kept):
    """q_t = a_t dh_t runs back in time: dh_t = C_t dy_t + q_{t+1}."""
    keep, (dx_ref, ddt_ref, da_ref, db_ref, dc_ref, dfirst_ref) = rest[:kept], rest[kept : kept + 6]
    carry_ref, sum_ref, h_ref = rest[kept + 6 :]
    step, steps, rows = pl.program_id(2), pl.num_programs(2), x_ref.shape[1]
    left = length - (steps - 1 - step) * rows if length % rows else None

    @pl.when(step == 0)
    def _():
        carry_ref[...] = dlast_ref[0]
        sum_ref[...] = jnp.zeros_like(sum_ref)

    A = a_ref[0].astype(jnp.float32)
    h_ref[0] = states_ref[0, 0]
    shared = _refs(x=x_ref, dt=dt_ref, B=b_ref, keep=keep)

    def again(i, h):
        start = pl.multiple_of(i * TURN, TURN)
        now = _Turn(start, left, shared)
        for j in range(TURN):
            h = now.decay(A, j) * h + now.column("B", j) * (now.row("dt", j) * now.row("x", j))
            h_ref[start + j + 1] = h
        return h

    jax.lax.fori_loop(0, rows // TURN, again, h_ref[0])
    lane = jax.lax.broadcasted_iota(jnp.int32, (A.shape[0], rows), 1)

    def turn(i, carry):
        q, dA, dB, dC = carry
        start = pl.multiple_of(rows - TURN - i * TURN, TURN)
        now = _Turn(start, left, shared | {"C": c_ref, "dy": dy_ref})
        by_input, by_decay = [None] * TURN, [None] * TURN
        for j in reversed(range(TURN)):
            dy, dt = now.row("dy", j), now.row("dt", j)
            dh = now.column("C", j) * dy + q
            here = lane == start + j
            dC = jnp.where(here, jnp.sum(h_ref[start + j + 1] * dy, axis=1, keepdims=True), dC)
            dB = jnp.where(here, jnp.sum(dh * (dt * now.row("x", j)), axis=1, keepdims=True), dB)
            q = now.decay(A, j) * dh
            w = q * h_ref[start + j]
            dA = dA + w * dt
            by_input[j] = _fold(dh * now.column("B", j))
            by_decay[j] = _fold(w * A)
        du, dlog = (jnp.concatenate([_each_row(s[:TILE]), _each_row(s[TILE:])]) for s in (by_input, by_decay))
        dx_ref[0, pl.ds(start, TURN), :] = (du * now.values["dt"]).astype(dx_ref.dtype)
        ddt_ref[0, pl.ds(start, TURN), :] = (du * now.values["x"] + dlog).astype(ddt_ref.dtype)
        return q, dA, dB, dC

    nothing = jnp.zeros((A.shape[0], rows), jnp.float32)
    carry = (carry_ref[...], sum_ref[...], nothing, nothing)
    q, dA, db_ref[0, 0], dc_ref[0, 0] = jax.lax.fori_loop(0, rows // TURN, turn, carry)
    carry_ref[...], sum_ref[...] = q, dA

    @pl.when(step == steps - 1)
    def _():
        dfirst_ref[0], da_ref[0] = q, dA
