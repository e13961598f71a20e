"""What the chunked scans' GPU kernels share: sizes, blocks, and loads and stores that stop where the arrays end.

Programs take single heads of arrays [B, T, N, ...] as they are; widths are powers of two inside a program.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

WIDEST = 256  # keys, and values: what a program holds of a chunk's keys in registers


def serves(q, v) -> bool:
    """Whether kernels take such heads: of at most `WIDEST` keys and values."""
    return max(q.shape[-1], v.shape[-1]) <= WIDEST


class Plan:
    """Sizes, and which part of which array the programs of a head see.

    Args:
      q, v: [B, T, M, K] and [B, T, N, V], where M divides N.
      kind: "scalar" or "vector" gates.
      tiles: tokens of a chunk, and the most channels of a tile of the state.
      chunk: tokens from one saved state to the next.
      warps: of a program; gradients take 8.
    """

    def __init__(
        self, operation: str, q, v, kind: str, tiles: tuple[int, int], chunk: int, warps: int, interpret: bool
    ):
        self.batch, self.length, self.heads, self.v_width = v.shape
        self.k_width, self.share = q.shape[-1], v.shape[2] // q.shape[2]
        self.operation, self.kind, self.warps, self.interpret = operation, kind, warps, interpret
        self.size, tile = min(tiles[0], chunk), tiles[1]
        self.k_padded, self.v_padded = (max(16, pl.next_power_of_2(x)) for x in (self.k_width, self.v_width))
        self.k_tile, self.v_tile = min(tile, self.k_padded), min(tile, self.v_padded)
        self.every = chunk // self.size
        self.spans = pl.cdiv(self.length, chunk)
        self.chunks = pl.cdiv(self.length, self.size)
        self.levels = self.size.bit_length() - 1  # of a tree of gates
        self.parts = 2 if v.dtype == jnp.bfloat16 else 1  # products that `ones_dot` takes

    def sides(self):
        """Tokens of a chunk, keys and values as a program sees them."""
        return self.size, self.k_padded, self.v_padded

    def tokens(self, width: int | None, share: int = 1):
        """All tokens of one head, of `width` channels or of one, and room past the end, where slices may lie."""
        length = self.spans * self.every * self.size
        if width is None:
            return pl.BlockSpec((None, length, None), lambda b, n, *_: (b, 0, n))
        return pl.BlockSpec((None, length, None, width), lambda b, n, *_: (b, 0, n // share, 0))

    def of_q(self):
        return self.tokens(self.k_padded, self.share)

    def of_v(self):
        return self.tokens(self.v_padded)

    def of_g(self):
        return self.tokens(self.k_padded if self.kind == "vector" else None)

    def of_states(self, count: int | None = None, index=lambda b, n, *_: (b, n, 0, 0, 0)):
        """`count` successive states of one head, or one that is not counted."""
        return pl.BlockSpec((None, None, count, self.k_padded, self.v_padded), index)

    def states(self, count: int, dtype):
        return jax.ShapeDtypeStruct((self.batch, self.heads, count, self.k_width, self.v_width), dtype)

    def call(self, kernel, name, grid, in_specs, out_specs, out_shape, operands, chunks, products, exponentials):
        """`products`, `exponentials`: multiplications in matrix products and exponentials of one of a head's chunks."""
        chunks = self.batch * self.heads * chunks
        moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (*operands, *out_shape))
        return pl.pallas_call(
            functools.partial(kernel, self),
            grid=(self.batch, self.heads, *grid),
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=out_shape,
            compiler_params=plgpu.CompilerParams(num_warps=8 if name == "gradients" else self.warps, num_stages=2),
            cost_estimate=pl.CostEstimate(
                flops=2 * chunks * products, transcendentals=chunks * exponentials, bytes_accessed=moved
            ),
            interpret=self.interpret,
            name=f"{self.operation}_{self.kind}_{name}",
        )(*operands)

    def load(self, ref, start, width=None, tile=None, at=0):
        """[C, tile] from token `start` and channel `at` on, or [C] where a token has one number; zero outside."""
        rows = start + jax.lax.broadcasted_iota(jnp.int32, (self.size,) if tile is None else (self.size, tile), 0)
        if tile is None:
            return plgpu.load(ref.at[pl.ds(start, self.size)], mask=rows < self.length, other=0)
        inside = (rows < self.length) & (at + jax.lax.broadcasted_iota(jnp.int32, rows.shape, 1) < width)
        return plgpu.load(ref.at[pl.ds(start, self.size), pl.ds(at, tile)], mask=inside, other=0)

    def store(self, ref, x, start, width=None, at=0):
        """The way back from `load`."""
        rows = start + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        x = x.astype(ref.dtype)
        if x.ndim == 1:
            return plgpu.store(ref.at[pl.ds(start, self.size)], x, mask=rows < self.length)
        inside = (rows < self.length) & (at + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) < width)
        return plgpu.store(ref.at[pl.ds(start, self.size), pl.ds(at, x.shape[1])], x, mask=inside)

    def load_q(self, ref, start):
        return self.load(ref, start, self.k_width, self.k_padded)

    def load_g(self, ref, start, tile=None, at=0):
        """Gates [C], or of keys from `at` on [C, tile]."""
        if self.kind == "scalar":
            return self.load(ref, start)
        return self.load(ref, start, self.k_width, tile or self.k_padded, at)

    def part_of_state(self, ref, *index, shape, k_at=0, v_at=0):
        """(reference to, mask of) keys and values of the state at `index` from `k_at` and `v_at` on."""
        rows, columns = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
        inside = (k_at + rows < self.k_width) & (v_at + columns < self.v_width)
        return ref.at[*index, pl.ds(k_at, shape[0]), pl.ds(v_at, shape[1])], inside
