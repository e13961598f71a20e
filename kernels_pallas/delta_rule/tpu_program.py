"""What the two TPU kernels share: their operands' blocks and what they compute before they meet the state."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.delta_rule import tpu_chunk
from kernels_pallas.delta_rule.cpu import LEAST_GATE
from kernels_pallas.delta_rule.tpu_chunk import CHUNK, F32, causal, connected, decays_of_head, iota, products, scalars

OPTIONAL = ("g", "count", "d", "e")  # operands and scratch that some programs lack
LEAST_BETA = 1e-30  # in place of 0, so that a gradient can be divided by it


def load(ref, head, rows_left, dtype=F32):
    """One head's chunk [C, K]; rows behind the last step are zeros whatever lies there."""
    x = ref[0, head].astype(dtype)
    if rows_left is None:
        return x
    return jnp.where(iota(x.shape, 0) < rows_left, x, 0)


def load_scalars(ref, rows_left):
    """[H, C] or None."""
    if ref is None:
        return None
    x = ref[0, 0].astype(F32)
    return x if rows_left is None else jnp.where(iota(x.shape, 1) < rows_left, x, 0.0)


def prepare(refs, *, scale, heads, narrow, rows_left):
    """Writes A and P of every head and the inverse; returns the rows and columns of `tpu_chunk.scalars`.

    With gates per channel e_ref[h] = decays [2, C, K] from the chunk's start and to its end, across resets too;
    otherwise d_ref, where there is one, gets the decays between steps.
    """
    a_ref, p_ref, d_ref, e_ref = (refs[x] for x in "apde")
    by_head = None if refs["g"] is None or e_ref is not None else load_scalars(refs["g"], rows_left)
    by_head = None if by_head is None else jnp.maximum(by_head, LEAST_GATE)
    count = None if refs["count"] is None else refs["count"][0].astype(F32)
    beta = jnp.maximum(load_scalars(refs["beta"], rows_left), LEAST_BETA)
    rows, columns = scalars(beta, by_head, count)
    mask = connected(rows, columns)
    for h in range(heads):
        q, k = (load(refs[x], h, rows_left) for x in "qk")
        g = None if e_ref is None else jnp.maximum(load(refs["g"], h, rows_left), LEAST_GATE)
        qk, kk, start, end = products(q, k, g, mask, narrow)
        decay = decays_of_head(rows, columns, h, mask) if e_ref is None else 1.0
        if e_ref is not None:
            e_ref[h, 0], e_ref[h, 1] = start, end
        elif d_ref is not None:
            d_ref[h] = decay
        p_ref[h] = (scale * (qk * decay)).astype(p_ref.dtype)
        a_ref[h] = jnp.where(causal(strict=True), columns["beta"][:, h : h + 1] * (kk * decay), 0.0)
    tpu_chunk.invert(a_ref, refs["x"], heads, narrow)
    return rows, columns


def decayed(q, k, e_ref, columns, head):
    """Queries and keys times the decay from the chunk's start, keys times the decay to its end."""
    start, end = columns["from_start"][:, head : head + 1], columns["to_end"][:, head : head + 1]
    if e_ref is not None:
        start, end = start * e_ref[head, 0], end * e_ref[head, 1]
    return q * start, k * start, k * end


def decay_of_state(rows, e_ref, head):
    """[1, 1] or, with gates per channel, [K, 1]."""
    decay = rows["from_start"][head : head + 1, CHUNK - 1 :]
    if e_ref is None:
        return decay
    last = jnp.broadcast_to(e_ref[head, 0, CHUNK - 1 :], (8, e_ref.shape[-1])).T
    return decay * last[:, :1]


def heads_of(count, most):
    """The largest divisor of `count` up to `most`."""
    return max(h for h in range(1, min(count, most) + 1) if count % h == 0)


def by_head(x):
    """[B, T, N, ...] -> [B, N, T, ...]; of fewer steps than one chunk, with zeros behind them."""
    x = jnp.swapaxes(x, 1, 2)
    short = max(0, CHUNK - x.shape[2])
    return jnp.pad(x, ((0, 0), (0, 0), (0, short)) + ((0, 0),) * (x.ndim - 3)) if short else x


class Layout:
    """Block specifications of the operands; the grid is (B, N / heads, T / chunk)."""

    def __init__(self, q, v, heads, reverse):
        self.batch, self.length, count, self.keys = q.shape
        self.values, self.heads = v.shape[-1], heads_of(count, heads)
        self.chunks = max(1, math.ceil(self.length / CHUNK))
        self.grid = (self.batch, count // self.heads, self.chunks)
        self.narrow = q.dtype == jnp.bfloat16
        self.at = (lambda c: self.chunks - 1 - c) if reverse else (lambda c: c)

    def wide(self, width):
        return pl.BlockSpec((1, self.heads, CHUNK, width), lambda b, h, c: (b, h, self.at(c), 0))

    def per_step(self):
        return pl.BlockSpec((1, 1, self.heads, CHUNK), lambda b, h, c: (b, h, 0, self.at(c)))

    def counts(self):
        return pl.BlockSpec((1, 1, CHUNK), lambda b, h, c: (b, 0, self.at(c)))

    def state(self):
        return pl.BlockSpec((1, self.heads, self.keys, self.values), lambda b, h, c: (b, h, 0, 0))

    def states(self):
        block = (1, self.heads, 1, self.keys, self.values)
        return pl.BlockSpec(block, lambda b, h, c: (b, h, self.at(c), 0, 0))

    def operands(self, q, k, v, beta, g, resets):
        """{name: (array, specification)} of what both directions read; None is left out."""
        per_step = lambda x: by_head(x).reshape(self.batch, -1, self.heads, max(self.length, CHUNK))  # noqa: E731
        found = {
            "q": (by_head(q), self.wide(self.keys)),
            "k": (by_head(k), self.wide(self.keys)),
            "v": (by_head(v), self.wide(self.values)),
            "beta": (per_step(beta), self.per_step()),
        }
        if g is not None and g.ndim == 3:
            found["g"] = per_step(g), self.per_step()
        elif g is not None:
            found["g"] = by_head(g), self.wide(self.keys)
        if resets is not None:
            padded = jnp.pad(resets.astype(jnp.int32), ((0, 0), (0, -self.length % CHUNK)))
            counts = jnp.cumsum(padded.reshape(self.batch, -1, CHUNK), -1).reshape(self.batch, 1, -1)
            found["count"] = counts, self.counts()
        return found

    def scratch(self, by_channel):
        """{name: allocation} of what both directions compute of every head before the states."""
        square, p_dtype = (self.heads, CHUNK, CHUNK), jnp.bfloat16 if self.narrow else F32
        found = {"a": pltpu.VMEM(square, F32), "p": pltpu.VMEM(square, p_dtype), "x": pltpu.VMEM(square, F32)}
        if by_channel:
            found["e"] = pltpu.VMEM((self.heads, 2, CHUNK, self.keys), F32)
        return found | {"state": pltpu.VMEM((self.heads, self.keys, self.values), F32)}

    def call(self, kernel, name, operands, results, scratch, scale, cost, interpret):
        names = (*operands, *results, *scratch)
        kernel = functools.partial(
            kernel, names=names, scale=scale, heads=self.heads, narrow=self.narrow, length=max(self.length, CHUNK)
        )
        order = ("parallel", "parallel", "arbitrary")
        out = pl.pallas_call(
            kernel,
            grid=self.grid,
            in_specs=[spec for _, spec in operands.values()],
            out_specs=[spec for _, spec in results.values()],
            out_shape=[shape for shape, _ in results.values()],
            scratch_shapes=list(scratch.values()),
            compiler_params=pltpu.CompilerParams(dimension_semantics=order),
            cost_estimate=cost,
            interpret=interpret,
            name=name,
        )(*(x for x, _ in operands.values()))
        return dict(zip(results, out))
