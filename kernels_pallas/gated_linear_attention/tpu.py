"""Gated linear attention on TPUs, heads before tokens.

A program takes `heads` heads and walks over the sequence in chunks of `chunk` tokens: the larger the chunk, the more
there is to multiply (chunk^2 a head), the fewer states pass through memory. The forward pass saves the state before
each chunk, so that the backward pass walks in reverse without making them again. The block of the last state (of the
first state's gradient) stays in VMEM while a program walks and is the state it carries. Tokens beyond T, in the last
chunk, are masked.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.chips import current
from kernels_pallas.gated_linear_attention import chunk as one_chunk
from kernels_pallas.gated_linear_attention.chunk import NT, TN, dot


def default_sizes(kind: str, dtype, width: int) -> dict[str, int]:
    """Chunks as wide as the chip's matrix unit ("scalar"; a tree of gates is deep enough at 128); as many heads as let
    the backward pass live in 16 MiB."""
    heads = 16 // (jnp.dtype(dtype).itemsize * pl.cdiv(width, 128))
    return {"chunk": current().mxu if kind == "scalar" else 128, "heads": max(1, heads)}


def backward_heads(kind: str, heads: int) -> int:
    """Heads of one program of the backward pass: with a tree of gates half of the forward pass's, for room."""
    return max(1, heads // 2) if kind == "vector" else heads


def forward(q, k, v, g, state, *, scale: float, chunk: int, heads: int, save: bool = True, interpret: bool = False):
    """Args:
      q, k: [B, M, T, K] of bfloat16 or float32, M dividing N; v [B, N, T, V]; g float32 [B, N, T] or [B, N, T, K].
      state: float32 [B, N, K, V].

    Returns:
      o [B, N, T, V]; the last state; and if `save`, float32 [B, N, ceil(T / chunk), K, V], the state before each
      chunk, else None.
    """
    plan = Plan(q, v, g, chunk, heads)
    out_shape = [
        jax.ShapeDtypeStruct(v.shape, v.dtype),
        jax.ShapeDtypeStruct(state.shape, state.dtype),
        *[jax.ShapeDtypeStruct(plan.saved_shape, state.dtype)] * save,
    ]
    made = pl.pallas_call(
        functools.partial(_forward_kernel, plan, scale),
        out_shape=out_shape,
        grid=plan.grid,
        in_specs=[plan.of_q(), plan.of_q(), plan.of_v(), plan.of_g(), plan.of_state()],
        out_specs=[plan.of_v(), plan.of_state(), *[plan.of_saved()] * save],
        compiler_params=plan.compiler_params(),
        cost_estimate=plan.cost(False, (q, k, v, g, state, *out_shape)),
        interpret=interpret,
        name=f"gated_linear_attention_{plan.kind}_forward",
    )(q, k, v, plan.grouped(g), state)
    return *made[:2], made[2] if save else None


def backward(q, k, v, g, states, do, dfinal, *, scale: float, chunk: int, heads: int, interpret: bool = False):
    """Args:
      q, k, v, g: as of `forward`, which saved `states`.
      do, dfinal: gradients of o and of the last state.

    Returns:
      Gradients of q, k, v, g (float32) and of the initial state.
    """
    plan = Plan(q, v, g, chunk, backward_heads("vector" if g.ndim == 4 else "scalar", heads), reverse=True)
    shared = jax.ShapeDtypeStruct(plan.dq_shape, q.dtype if plan.dq_shape == q.shape else jnp.float32)
    out_shape = [
        shared,
        shared,
        jax.ShapeDtypeStruct(v.shape, v.dtype),
        jax.ShapeDtypeStruct(plan.grouped(g).shape, g.dtype),
        jax.ShapeDtypeStruct(dfinal.shape, dfinal.dtype),
    ]
    dq, dk, dv, dg, dstate = pl.pallas_call(
        functools.partial(_backward_kernel, plan, scale),
        out_shape=out_shape,
        grid=plan.grid,
        in_specs=[
            *[plan.of_q(), plan.of_q(), plan.of_v(), plan.of_g()],
            *[plan.of_saved(), plan.of_v(), plan.of_state()],
        ],
        out_specs=[plan.of_dq(), plan.of_dq(), plan.of_v(), plan.of_g(), plan.of_state()],
        compiler_params=plan.compiler_params(),
        cost_estimate=plan.cost(True, (q, k, v, g, states, do, dfinal, *out_shape)),
        interpret=interpret,
        name=f"gated_linear_attention_{plan.kind}_backward",
    )(q, k, v, plan.grouped(g), states, do, dfinal)
    if dq.shape != q.shape:
        dq, dk = (x.reshape(*q.shape[:2], -1, *q.shape[2:]).sum(2).astype(q.dtype) for x in (dq, dk))
    return dq, dk, dv, dg.reshape(g.shape), dstate


class Plan:
    """Which block of which array a grid step (batch, group of heads, chunk) sees."""

    def __init__(self, q, v, g, chunk: int, heads: int, reverse: bool = False):
        self.batch, self.all_heads, self.length, self.v_width = v.shape
        self.q_heads, self.k_width = q.shape[1], q.shape[-1]
        self.kind = "vector" if g.ndim == 4 else "scalar"
        self.dtype = v.dtype
        self.chunk, self.reverse = chunk, reverse
        share = self.all_heads // self.q_heads  # heads that read one q and k
        fits = [n for n in range(1, heads + 1) if self.all_heads % n == 0 and (n % share == 0 or share % n == 0)]
        self.heads = max(fits)
        self.share = min(share, self.heads)  # of those, in one program
        self.programs_a_q = max(1, share // self.heads)
        self.chunks = pl.cdiv(self.length, chunk)
        self.grid = (self.batch, self.all_heads // self.heads, self.chunks)
        self.saved_shape = (self.batch, self.all_heads, self.chunks, self.k_width, self.v_width)
        self.dq_shape = (self.batch, self.all_heads // self.share, self.length, self.k_width)

    def at(self, c):
        return self.chunks - 1 - c if self.reverse else c

    def of_q(self):
        shape = (1, self.heads // self.share, self.chunk, self.k_width)
        return pl.BlockSpec(shape, lambda b, n, c: (b, n // self.programs_a_q, self.at(c), 0))

    def of_dq(self):
        shape = (1, self.heads // self.share, self.chunk, self.k_width)
        return pl.BlockSpec(shape, lambda b, n, c: (b, n, self.at(c), 0))

    def of_v(self):
        return pl.BlockSpec((1, self.heads, self.chunk, self.v_width), lambda b, n, c: (b, n, self.at(c), 0))

    def of_g(self):
        if self.kind == "vector":
            return pl.BlockSpec((1, self.heads, self.chunk, self.k_width), lambda b, n, c: (b, n, self.at(c), 0))
        return pl.BlockSpec((1, 1, self.heads, self.chunk), lambda b, n, c: (b, n, 0, self.at(c)))

    def of_state(self):
        return pl.BlockSpec((1, self.heads, self.k_width, self.v_width), lambda b, n, c: (b, n, 0, 0))

    def of_saved(self):
        shape = (1, self.heads, 1, self.k_width, self.v_width)
        return pl.BlockSpec(shape, lambda b, n, c: (b, n, self.at(c), 0, 0))

    def grouped(self, g):
        """Gates by head with the heads of one program in an axis of their own, so that their number is free."""
        return g if self.kind == "vector" else g.reshape(self.batch, -1, self.heads, self.length)

    def compiler_params(self):
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=current().vmem_most_bytes
        )

    def cost(self, backward: bool, arrays) -> pl.CostEstimate:
        """Of all steps: products of matrices, exponentials, and every array once."""
        c, k, v = self.chunk, self.k_width, self.v_width
        levels = c.bit_length() - 1
        if self.kind == "vector":
            exponentials = (levels + 2) * c * k
            products = (1 + levels * (2 if backward else 1)) * c * c * k
            products += backward * 2 * c * c * k * (2 if self.dtype == jnp.bfloat16 else 1)  # as below
        else:
            exponentials = c * c + 2 * c * k
            products = (3 if backward else 1) * c * c * k + 2 * c * c  # sums of gates
            products += backward * c * c * c * (2 if self.dtype == jnp.bfloat16 else 1)  # of their gradients
        products += (2 if backward else 1) * c * c * v + (4 if backward else 2) * c * k * v
        units = self.batch * self.all_heads * self.chunks
        return pl.CostEstimate(
            flops=2 * units * products,
            transcendentals=units * exponentials,
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
        )

    def inside(self, axis: int):
        """Whether each token of the chunk is one of the sequence, along that axis of two; None where all are."""
        if self.length % self.chunk == 0:
            return None
        shape = (self.chunk, 1) if axis == 0 else (1, self.chunk)
        first = self.at(pl.program_id(2)) * self.chunk
        return first + jax.lax.broadcasted_iota(jnp.int32, shape, axis) < self.length

    def gates(self, ref):
        """Of each head, the gates as `chunk.scalar` or `chunk.vector` take them."""
        if self.kind == "vector":
            return [_tokens(ref, head, self.inside(0)) for head in range(self.heads)]
        t, s = one_chunk.indices(self.chunk)
        g = one_chunk.clamped(_known(ref[0, 0], self.inside(1)))
        rows = dot(jnp.concatenate(one_chunk.split(g)), (t <= s).astype(g.dtype))
        columns = jnp.transpose(rows)
        pairs = [(head, head + self.heads) for head in range(self.heads)]
        return [(tuple(rows[i : i + 1] for i in p), tuple(columns[:, i : i + 1] for i in p)) for p in pairs]


def _known(x, inside):
    return x if inside is None else jnp.where(inside, x, 0)


def _tokens(ref, head: int, inside):
    """The chunk of one head, [C, width]; zero where no token is."""
    return _known(ref[0, head], inside)


def _one(kind: str, *args):
    return one_chunk.vector(*args, roll=pltpu.roll) if kind == "vector" else one_chunk.scalar(*args)


def _decayed(total, state):
    """`state` [K, V] times the whole decay of a chunk, [1, K or 1]."""
    return (total if total.shape[1] == 1 else jnp.transpose(total)) * state


# Traced once for all heads of a program.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward_chunk(kind, scale, q, k, v, gates, state):
    """o [C, V] and the state after the chunk."""
    p, q_in, k_out, total = _one(kind, q, k, gates)
    o = scale * (dot(p.astype(v.dtype), v) + dot(q_in, state.astype(v.dtype)))
    return o.astype(v.dtype), _decayed(total, state) + dot(k_out, v, TN)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward_chunk(kind, scale, q, k, v, gates, do, state, dstate):
    """Gradients of q, k, v, the gates and the state before the chunk, of that after it."""
    do, narrow = (scale * do).astype(v.dtype), dstate.astype(v.dtype)
    p, q_in, k_out, total, pull = _one(kind, q, k, gates, dot(do, v, NT))
    dv = dot(p.astype(v.dtype), do, TN) + dot(k_out, narrow)
    dtotal = jnp.sum(state * dstate, axis=1, keepdims=True)
    dtotal = jnp.transpose(dtotal) if kind == "vector" else jnp.sum(dtotal, axis=0, keepdims=True)
    dq, dk, dg = pull(dot(do, state.astype(v.dtype), NT), dot(v, narrow, NT), dtotal)
    return dq, dk, dv.astype(v.dtype), dg, _decayed(total, dstate) + dot(q_in, do, TN)


def _forward_kernel(plan, scale, q_ref, k_ref, v_ref, g_ref, first_ref, o_ref, last_ref, *rest):
    @pl.when(pl.program_id(2) == 0)
    def _():
        last_ref[...] = first_ref[...]

    for saved_ref in rest:
        saved_ref[0, :, 0] = last_ref[0]
    inside, gates = plan.inside(0), plan.gates(g_ref)
    for head in range(plan.heads):
        q, k = (_tokens(ref, head // plan.share, inside) for ref in (q_ref, k_ref))
        v = _tokens(v_ref, head, inside)
        o_ref[0, head], last_ref[0, head] = _forward_chunk(plan.kind, scale, q, k, v, gates[head], last_ref[0, head])


def _backward_kernel(plan, scale, q_ref, k_ref, v_ref, g_ref, saved_ref, do_ref, dlast_ref, *rest):
    dq_ref, dk_ref, dv_ref, dg_ref, dfirst_ref = rest

    @pl.when(pl.program_id(2) == 0)
    def _():
        dfirst_ref[...] = dlast_ref[...]

    inside, gates = plan.inside(0), plan.gates(g_ref)
    sums = ()  # of dq and dk over the heads that share q and k
    for head in range(plan.heads):
        shared, member = divmod(head, plan.share)
        q, k = (_tokens(ref, shared, inside) for ref in (q_ref, k_ref))
        v, do = (_tokens(ref, head, inside) for ref in (v_ref, do_ref))
        states = saved_ref[0, head, 0], dfirst_ref[0, head]
        dq, dk, dv_ref[0, head], dg, dfirst_ref[0, head] = _backward_chunk(
            plan.kind, scale, q, k, v, gates[head], do, *states
        )
        if plan.kind == "vector":
            dg_ref[0, head] = dg
        else:
            dg_ref[0, 0, head : head + 1, :] = dg
        sums = (dq, dk) if member == 0 else (sums[0] + dq, sums[1] + dk)
        if member == plan.share - 1:
            dq_ref[0, shared], dk_ref[0, shared] = (x.astype(dq_ref.dtype) for x in sums)
