"""What the two TPU kernels share: their operands' blocks and what they compute before they meet the state."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.delta_rule import tpu_chunk
from kernels_pallas.delta_rule.cpu import LEAST_GATE
from kernels_pallas.delta_rule.tpu_chunk import CHUNK, F32, connected, decays_of_head, iota, products, scalars

OPTIONAL = ("g", "count", "d", "e")  # operands and scratch that some programs lack
# For blocks and scratch, of the 16 MiB that every chip allows: values need room besides, more with gates per channel
# and yet more in float32, where four heads' code also takes the compiler of tpu7x a quarter of an hour.
VMEM = {"head": 9 << 20, "channel": 8 << 20, "channel float32": 4 << 20}
LEAST_BETA = 1e-30  # in place of 0, so that a gradient can be divided by it


def load(ref, head, rows_left, dtype=None):
    """One head's chunk [C, K]; rows behind the last step are zeros whatever lies there."""
    x = ref[0, head] if dtype is None else ref[0, head].astype(dtype)
    if rows_left is None:
        return x
    return jnp.where(iota(x.shape, 0) < rows_left, x, jnp.zeros_like(x))


def load_scalars(ref, rows_left):
    """[H, C]"""
    x = ref[0, 0].astype(F32)
    return x if rows_left is None else jnp.where(iota(x.shape, 1) < rows_left, x, 0.0)


def prepare(refs, *, scale, heads, narrow, rows_left):
    """Writes A and P of every head and the inverse; returns the rows and columns of `tpu_chunk.scalars`.

    With gates per channel e_ref[h] = decays [2, C, K] from the chunk's start and to its end, across resets too;
    d_ref, where there is one, gets the factors of A and P: beta, and the decays between steps where they are per head.
    """
    a_ref, p_ref, d_ref, e_ref = (refs[x] for x in "apde")
    by_head = None
    if refs["g"] is not None and e_ref is None:
        by_head = jnp.maximum(load_scalars(refs["g"], rows_left), LEAST_GATE)
    count = None if refs["count"] is None else refs["count"][0].astype(F32)
    rows, columns = scalars(jnp.maximum(load_scalars(refs["beta"], rows_left), LEAST_BETA), by_head, count)
    mask = connected(rows, columns)
    for h in range(heads):
        beta = rows["beta"][h : h + 1]
        if e_ref is None:
            qk, kk, *_ = products(*(load(refs[x], h, rows_left) for x in "qk"), None, narrow)
            decay = decays_of_head(rows, columns, h, mask) * beta
        else:
            g = jnp.maximum(load(refs["g"], h, rows_left, F32), LEAST_GATE)
            q, k = (load(refs[x], h, rows_left, F32) for x in "qk")
            qk, kk, e_ref[h, 0], e_ref[h, 1] = products(q, k, g, narrow)
            decay = jnp.where(mask, beta, 0.0)
        if d_ref is not None:
            d_ref[h] = decay
        p_ref[h] = (scale * (qk * decay)).astype(p_ref.dtype)
        tpu_chunk.write_parts(a_ref, h, kk * decay, narrow)
    tpu_chunk.invert(a_ref, refs["x"], refs["y"], heads, narrow)
    return rows, columns


def decayed(refs, head, rows_left):
    """q, k times the decays per channel from the chunk's start (as they are without such), k times those to its end."""
    e_ref = refs["e"]
    if e_ref is None:
        q, k = (load(refs[x], head, rows_left) for x in "qk")
        return q, k, k
    q, k = (load(refs[x], head, rows_left, F32) for x in "qk")
    return q * e_ref[head, 0], k * e_ref[head, 0], k * e_ref[head, 1]


def scaled(x, columns, name, head):
    """x [C, .] times a column of `tpu_chunk.scalars`; one that is left out is 1."""
    return x * columns[name, head] if (name, head) in columns else x


def decay_of_state(rows, e_ref, head):
    """[1, 1] or, with gates per channel, [K, 1]."""
    decay = rows["start"][head : head + 1, CHUNK - 1 :] if "start" in rows else 1.0
    if e_ref is None:
        return decay
    last = jnp.broadcast_to(e_ref[head, 0, CHUNK - 1 :], (8, e_ref.shape[-1])).T
    return decay * last[:, :1]


def heads_of(q, v, g, most, backward):
    """Heads of one program: the largest divisor of N, up to `most`, whose blocks and scratch fit in `VMEM`."""
    count, keys, values, size = q.shape[2], q.shape[3], v.shape[3], q.dtype.itemsize
    by_channel = g is not None and g.ndim == 4
    wide = CHUNK * ((4 * keys + 3 * values) if backward else (2 * keys + 2 * values)) * size
    wide += by_channel * (2 if backward else 1) * CHUNK * keys * 4
    blocks = 2 * (wide + keys * values * (size + 8))
    scratch = 4 * (5 * CHUNK**2 + keys * values + by_channel * 2 * CHUNK * keys)
    kind = ("channel float32" if size == 4 else "channel") if by_channel else "head"
    most = max(1, min(most, VMEM[kind] // (blocks + scratch)))
    return max(h for h in range(1, min(count, most) + 1) if count % h == 0)


def heads_first(x):
    """[B, T, N, ...] -> [B, N, T, ...]; of fewer steps than one chunk, with zeros behind them."""
    x = jnp.swapaxes(x, 1, 2)
    short = max(0, CHUNK - x.shape[2])
    return jnp.pad(x, ((0, 0), (0, 0), (0, short)) + ((0, 0),) * (x.ndim - 3)) if short else x


class Layout:
    """Block specifications of the operands; the grid is (B, N / heads, T / chunk)."""

    def __init__(self, q, v, g, heads, backward):
        self.batch, self.length, count, self.keys = q.shape
        self.values, self.heads = v.shape[-1], heads_of(q, v, g, heads, backward)
        self.chunks = max(1, math.ceil(self.length / CHUNK))
        self.grid = (self.batch, count // self.heads, self.chunks)
        self.narrow = q.dtype == jnp.bfloat16
        self.at = (lambda c: self.chunks - 1 - c) if backward else (lambda c: c)

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
        per_step = lambda x: heads_first(x).reshape(self.batch, -1, self.heads, max(self.length, CHUNK))  # noqa: E731
        found = {
            "q": (heads_first(q), self.wide(self.keys)),
            "k": (heads_first(k), self.wide(self.keys)),
            "v": (heads_first(v), self.wide(self.values)),
            "beta": (per_step(beta), self.per_step()),
        }
        if g is not None and g.ndim == 3:
            found["g"] = per_step(g), self.per_step()
        elif g is not None:
            found["g"] = heads_first(g), self.wide(self.keys)
        if resets is not None:
            padded = jnp.pad(resets.astype(jnp.int32), ((0, 0), (0, -self.length % CHUNK)))
            counts = jnp.cumsum(padded.reshape(self.batch, -1, CHUNK), -1).reshape(self.batch, 1, -1)
            found["count"] = counts, self.counts()
        return found

    def scratch(self, by_channel, backward):
        """{name: allocation} of what both directions compute of every head before the states."""
        parts, dtype = (2, jnp.bfloat16) if self.narrow else (1, F32)
        square = (self.heads, CHUNK, CHUNK)
        found = {name: pltpu.VMEM((parts, *square), dtype) for name in "axy"} | {"p": pltpu.VMEM(square, dtype)}
        if backward:
            found["d"] = pltpu.VMEM(square, F32)
        if by_channel:
            found["e"] = pltpu.VMEM((self.heads, 2, CHUNK, self.keys), F32)
        return found | {"state": pltpu.VMEM((self.heads, self.keys, self.values), F32)}

    def cost(self, operands, results, by_head, by_channel, backward):
        """Of the dots and exponentials as written, of all grid steps; each operand and result moves once."""
        keys, values, parts = self.keys, self.values, 3 if self.narrow else 1
        halvings = CHUNK.bit_length() - 1 if by_channel else 1
        pairs = halvings * 4 * CHUNK**2 * keys
        flops = pairs + 4 * parts * CHUNK**3 + 5 * CHUNK**2 * values + 6 * CHUNK * keys * values
        exponentials = by_head * (CHUNK**2 + 2 * CHUNK) + by_channel * (halvings + 2) * CHUNK * keys
        if backward:
            flops += 2 * pairs + 7 * CHUNK**2 * values + 8 * CHUNK * keys * values
            flops += by_channel * (2 if self.narrow else 1) * 4 * CHUNK**2 * keys
            exponentials += by_channel * halvings * CHUNK * keys
        flops += by_head * (2 if backward else 1) * 4 * CHUNK**2
        programs = math.prod(self.grid) * self.heads
        moved = sum(x.size * x.dtype.itemsize for x, _ in (*operands.values(), *results.values()))
        return pl.CostEstimate(flops=programs * flops, transcendentals=programs * exponentials, bytes_accessed=moved)

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
