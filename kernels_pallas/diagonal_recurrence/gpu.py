"""Pallas Triton kernels: a warp walks down the tokens of 32 channels, one a thread, the state in a register.

While it works on sixteen tokens, the rows of the next sixteen are on their way. Few sequences of few channels would
leave most of a GPU idle: then a sequence is cut in parts, whose ends a first kernel finds and whose states follow.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

WIDTH = 32  # channels of a program
TURN = 16  # tokens fetched at once
WARPS = 1024  # programs wanted: eight on each of 132 processors, with some kilobytes on their way to each
SHORTEST = 256  # tokens of a part, where sequences are cut
ONE_WARP = plgpu.CompilerParams(num_warps=1)


def forward(x, g, state, *keep, parts=None, turn=TURN, interpret=False):
    """h [B, T, D] in x's dtype and h_T [B, D]; arguments as of `tpu.forward`; `parts` of a sequence, None: by size."""
    cut = _Cut(x.shape, g, parts, turn)
    first = state[:, None]
    if cut.parts > 1:
        first = entering(state, *_ends(cut, x, g, *keep, interpret=interpret))
    ends = jax.ShapeDtypeStruct(first.shape, jnp.float32)
    h, last = pl.pallas_call(
        functools.partial(_forward, cut=cut),
        grid=cut.grid,
        in_specs=[cut.tokens, cut.gates, cut.states, *[cut.flags] * len(keep)],
        out_specs=[cut.tokens, cut.states],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), ends],
        compiler_params=ONE_WARP,
        cost_estimate=_cost(2 * x.size, g, x, x, ends, ends, *keep),
        name="diagonal_recurrence_forward",
        interpret=interpret,
    )(x, g, first, *keep)
    return h, last[:, -1]


def backward(g, state, h, dh, dlast, *keep, parts=None, turn=TURN, interpret=False):
    """Gradients of x [B, T, D], of g ([B, T, D], or [B, 1, D] in float32 where g is constant) and of state [B, D]."""
    cut = _Cut(h.shape, g, parts, turn)
    later = dlast[:, None]
    if cut.parts > 1:
        ends = _ends(cut, dh, g, *keep, back=True, interpret=interpret)
        later = entering(dlast, *(y[:, ::-1] for y in ends))[:, ::-1]
    shape = jax.ShapeDtypeStruct
    ends = shape(later.shape, jnp.float32)
    dg = ends if cut.constant else shape(h.shape, g.dtype)
    dx, dg, dstate = pl.pallas_call(
        functools.partial(_backward, cut=cut),
        grid=cut.grid,
        in_specs=[cut.gates, cut.first, cut.tokens, cut.tokens, cut.states, *[cut.flags] * len(keep)],
        out_specs=[cut.tokens, cut.states if cut.constant else cut.tokens, cut.states],
        out_shape=[shape(dh.shape, dh.dtype), dg, ends],
        compiler_params=ONE_WARP,
        cost_estimate=_cost(3 * h.size, g, dg, h, dh, dh, state, ends, ends, *keep),
        name="diagonal_recurrence_backward",
        interpret=interpret,
    )(g, state, h, dh, later, *keep)
    return dx, jnp.sum(dg, axis=1, keepdims=True) if cut.constant else dg, dstate[:, 0]


class _Cut:
    """A grid over batch, channels and parts of the sequence."""

    def __init__(self, shape, g, parts, turn):
        batch, self.length, self.channels = shape
        tiles = pl.cdiv(self.channels, WIDTH)
        if parts is None:
            parts = max(1, min(WARPS // (batch * tiles), self.length // SHORTEST))
        self.turn, self.turns = turn, pl.cdiv(pl.cdiv(self.length, parts), turn)
        self.parts = pl.cdiv(self.length, self.turns * turn)
        self.grid = (batch, tiles, self.parts)
        self.constant, served = g.shape[1] == 1, batch // g.shape[0]
        self.tokens = pl.BlockSpec((None, self.length, WIDTH), lambda b, d, s: (b, 0, d))
        self.gates = pl.BlockSpec(
            (None, None if self.constant else self.length, WIDTH), lambda b, d, s: (b // served, 0, d)
        )
        self.states = pl.BlockSpec((None, None, WIDTH), lambda b, d, s: (b, s, d))
        self.first = pl.BlockSpec((None, WIDTH), lambda b, d, s: (b, d))
        self.flags = pl.BlockSpec((None, self.length), lambda b, d, s: (b, 0))


def _ends(cut, x, g, *keep, back=False, interpret):
    """Of each part, [B, parts, D]: the product of its decays, and its end state from zero (`back`: its first)."""
    ends = jax.ShapeDtypeStruct((x.shape[0], cut.parts, x.shape[2]), jnp.float32)
    return pl.pallas_call(
        functools.partial(_forward_ends, cut=cut, back=back),
        grid=cut.grid,
        in_specs=[cut.tokens, cut.gates, *[cut.flags] * len(keep)],
        out_specs=[cut.states] * 2,
        out_shape=[ends] * 2,
        compiler_params=ONE_WARP,
        cost_estimate=_cost(3 * x.size, g, x, ends, ends, *keep),
        name="diagonal_recurrence_ends",
        interpret=interpret,
    )(x, g, *keep)


def entering(first, products, ends):
    """States before each part [B, parts, D]."""

    def joined(one, two):
        return one[0] * two[0], two[0] * one[1] + two[1]

    products, ends = jax.lax.associative_scan(joined, (products[:, :-1], ends[:, :-1]), axis=1)
    return jnp.concatenate([first[:, None], products * first[:, None] + ends], axis=1)


def _cost(flops, g, *moved):
    size = sum(y.size * y.dtype.itemsize for y in (g, *moved))
    return pl.CostEstimate(flops=flops, transcendentals=g.size, bytes_accessed=size)


class _Part:
    """A program's tokens, in turns of sixteen, last token first where `back`.

    Past the end of the sequence decays are one and all else is zero: no state changes there.
    """

    def __init__(self, cut, g_ref, keep_refs, back=False):
        self.cut, self.g_ref, self.keep_refs, self.back = cut, g_ref, keep_refs, back
        self.inside = pl.program_id(1) * WIDTH + jnp.arange(WIDTH) < cut.channels
        self.start = pl.program_id(2) * (cut.turns * cut.turn)
        self.once = jnp.exp(self.state(g_ref).astype(jnp.float32)) if cut.constant else None

    def here(self, t):
        return (t >= 0) & (t < self.cut.length)

    def row(self, ref, t):
        return plgpu.load(ref.at[t], mask=self.inside & self.here(t), other=0.0)

    def state(self, ref):
        return plgpu.load(ref, mask=self.inside, other=0.0)

    def gate(self, t):
        flags = (plgpu.load(ref.at[t], mask=self.here(t), other=1.0) for ref in self.keep_refs)
        return (0.0 if self.cut.constant else self.row(self.g_ref, t), *flags)

    def decay(self, t, g, *flags):
        a = jnp.where(self.here(t), self.once, 1.0) if self.cut.constant else jnp.exp(g.astype(jnp.float32))
        for flag in flags:
            a = a * flag
        return a

    def write(self, ref, t, y):
        plgpu.store(ref.at[t], y.astype(ref.dtype), mask=self.inside & self.here(t))

    def write_state(self, ref, y):
        plgpu.store(ref, y, mask=self.inside)

    def each_token(self, fetch, token, carry):
        """The last carry of `carry = token(carry, t, *fetch(t))`, with rows fetched a turn ahead."""
        cut = self.cut

        def tokens(i):
            first = self.start + (cut.turns - 1 - i if self.back else i) * cut.turn
            return [first + (cut.turn - 1 - j if self.back else j) for j in range(cut.turn)]

        def turn(i, carry):
            carry, rows = carry
            ahead = [fetch(t) for t in tokens(i + 1)]
            for t, now in zip(tokens(i), rows):
                carry = token(carry, t, *now)
            return carry, ahead

        return jax.lax.fori_loop(0, cut.turns, turn, (carry, [fetch(t) for t in tokens(0)]))[0]


def _forward(x_ref, g_ref, entering_ref, *rest, cut):
    keep_refs, (h_ref, last_ref) = rest[:-2], rest[-2:]
    part = _Part(cut, g_ref, keep_refs)

    def token(h, t, x, gate):
        h = part.decay(t, *gate) * h + x.astype(jnp.float32)
        part.write(h_ref, t, h)
        return h

    last = part.each_token(lambda t: (part.row(x_ref, t), part.gate(t)), token, part.state(entering_ref))
    part.write_state(last_ref, last)


def _forward_ends(x_ref, g_ref, *rest, cut, back):
    keep_refs, (product_ref, end_ref) = rest[:-2], rest[-2:]
    part = _Part(cut, g_ref, keep_refs, back)

    def token(carry, t, x, gate):
        product, h = carry
        a, x = part.decay(t, *gate), x.astype(jnp.float32)
        return product * a, a * (h + x) if back else a * h + x

    carry = (jnp.ones(WIDTH, jnp.float32), jnp.zeros(WIDTH, jnp.float32))
    product, h = part.each_token(lambda t: (part.row(x_ref, t), part.gate(t)), token, carry)
    part.write_state(product_ref, product)
    part.write_state(end_ref, h)


def _backward(g_ref, first_ref, h_ref, dh_ref, entering_ref, *rest, cut):
    """u_t = a_t dx_t runs back in time: dx_t = dh_t + u_{t+1}, and the gradient of log a_t is u_t h_{t-1}."""
    keep_refs, (dx_ref, dg_ref, dfirst_ref) = rest[:-3], rest[-3:]
    part = _Part(cut, g_ref, keep_refs, back=True)
    first = part.state(first_ref)

    def token(carry, t, dh, before, gate):
        u, total = carry
        dx = dh.astype(jnp.float32) + u
        u = part.decay(t, *gate) * dx
        dg = u * jnp.where(t == 0, first, before.astype(jnp.float32))
        part.write(dx_ref, t, dx)
        if not cut.constant:
            part.write(dg_ref, t, dg)
        return u, total + jnp.where(part.here(t), dg, 0.0)

    def fetch(t):
        return part.row(dh_ref, t), part.row(h_ref, t - 1), part.gate(t)

    u, total = part.each_token(fetch, token, (part.state(entering_ref), jnp.zeros(WIDTH, jnp.float32)))
    part.write_state(dfirst_ref, u)
    if cut.constant:
        part.write_state(dg_ref, total)
