"""What the TPU kernels of attention share: block sizes, operands, and the scores of one tile.

Arrays are [B, K, G, T, H]: batch, key-value heads, query heads of each, length, width. A block of queries is
[G, queries, H]: all query heads of a key-value head meet its keys together. Exponentials are to the base 2.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import blocks
from kernels_pallas.chips import MIB, current
from kernels_pallas.flash_attention.mask import Mask, Walk

LOG2_E = math.log2(math.e)
LANES = 128
LOW = -1e30  # below any score; finite, so that a masked score less this is -inf and no NaN


def dot(x, y, over: tuple[int, int]):
    """Product in float32 over an axis of each; its precision follows from the operands, not from the ambient one."""
    precision = lax.Precision.DEFAULT if x.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    numbers = (((over[0],), (over[1],)), ((), ()))
    return lax.dot_general(x, y, numbers, precision=precision, preferred_element_type=jnp.float32)


def column(row):
    """[1, n] -> [n, 128], each lane the same."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def row(column):
    """[n, 128], each lane the same -> [1, n]: the diagonals of its squares, which is less work than to turn it."""
    diagonal = lax.broadcasted_iota(jnp.int32, (LANES, LANES), 0) == lax.broadcasted_iota(jnp.int32, (LANES, LANES), 1)
    squares = [column[at : at + LANES] for at in range(0, len(column), LANES)]
    return jnp.concatenate([jnp.sum(jnp.where(diagonal, x, 0), 0, keepdims=True) for x in squares], 1)


def tile_of(block: int, wish: int) -> int:
    """The largest of wish, wish / 2, ... that divides the block."""
    while block % wish:
        wish //= 2
    return wish


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static part of one kernel call: shapes, options, block sizes."""

    batch: int
    kv_heads: int
    groups: int
    width: int
    dtype: Any
    mask: Mask
    scale: float
    logits_soft_cap: float | None
    bias: tuple[int, int] | None  # its batch and heads
    sinks: int | None  # their batch
    segments: bool
    queries: int
    keys: int
    whole_queries: bool = False  # whether a head's queries, or keys and values, lie in VMEM from end to end
    whole_keys: bool = False
    turns: int = 1  # query heads of a key-value head that have a grid step each, apart from `groups` in one block

    @property
    def query_blocks(self) -> int:
        return -(-self.mask.queries // self.queries)

    @property
    def key_blocks(self) -> int:
        return -(-self.mask.keys // self.keys)

    @property
    def long_queries(self) -> int:
        """Rows of queries that are in VMEM together."""
        return self.queries * (self.query_blocks if self.whole_queries else 1)

    @property
    def long_keys(self) -> int:
        return self.keys * (self.key_blocks if self.whole_keys else 1)

    @property
    def ragged_queries(self) -> bool:
        return self.mask.queries % self.queries > 0

    @property
    def ragged_keys(self) -> bool:
        return self.mask.keys % self.keys > 0

    @property
    def edges(self) -> bool:
        """Whether any block pair needs mask arithmetic."""
        return self.mask.bounded or self.segments or self.ragged_keys or self.ragged_queries

    def scores(self, x, bias):
        """Base-2 logits of raw products, and the soft cap's slope."""
        cap = self.logits_soft_cap
        if cap is None:
            x = x * (self.scale * LOG2_E)
            return (x if bias is None else x + bias.astype(jnp.float32) * LOG2_E), None
        x = x * (self.scale / cap)
        bent = jnp.tanh(x if bias is None else x + bias.astype(jnp.float32) / cap)
        return bent * (cap * LOG2_E), 1 - bent * bent

    def seen(self, shape: tuple[int, int], query, key, query_axis: int, segments, rows: bool):
        """Booleans of the tile whose corner is at (query, key); queries count only where `rows`."""
        at_query = query + lax.broadcasted_iota(jnp.int32, shape, query_axis)
        at_key = key + lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis)
        found = [] if not self.mask.bounded else [self.mask.visible(at_query, at_key)]
        if self.ragged_keys:
            found.append(at_key < self.mask.keys)
        if self.ragged_queries and rows:
            found.append(at_query < self.mask.queries)
        if segments is not None:
            found.append(segments[0] == segments[1])
        seen = found[0] if found else None
        for more in found[1:]:
            seen = seen & more
        return seen

    # Operands' specs for index maps of grid indices -> (batch, kv head and turn, query block, key block).

    def query_spec(self, at):
        def index(*grid):
            b, k, i, _ = at(*grid)
            return b, k, 0, 0 if self.whole_queries else i, 0

        return pl.BlockSpec((1, 1, self.groups, self.long_queries, self.width), index)

    def row_spec(self, at):
        """Of statistics [B, K, G, T]."""

        def index(*grid):
            b, k, i, _ = at(*grid)
            return b, k, 0, 0 if self.whole_queries else i

        return pl.BlockSpec((1, 1, self.groups, self.long_queries), index)

    def key_spec(self, at):
        def index(*grid):
            b, k, _, j = at(*grid)
            return b, lax.div(k, jnp.int32(self.turns)), 0 if self.whole_keys else j, 0

        return pl.BlockSpec((1, 1, self.long_keys, self.width), index)

    def query_rows(self, i, row: int, rows: int):
        """Where `rows` queries from `row` of block i on lie in what `query_spec` brings."""
        return (
            pl.ds(pl.multiple_of(i * self.queries + row, LANES), rows) if self.whole_queries else slice(row, row + rows)
        )

    def key_rows(self, j, key: int, keys: int):
        return pl.ds(pl.multiple_of(j * self.keys + key, LANES), keys) if self.whole_keys else slice(key, key + keys)

    def bias_spec(self, at):
        own, heads = self.bias

        def index(*grid):
            b, k, i, j = at(*grid)
            return lax.div(b, jnp.int32(self.batch // own)), 0 if heads == 1 else k, i, j

        return pl.BlockSpec((1, 1 if heads == 1 else self.groups, self.queries, self.keys), index)

    def segment_operands(self, ids, at):
        """Ids [B, 1, T] and [B, 1, S] by block, and each block's least and greatest id in scalar memory."""
        if ids is None:
            return [], []

        def query_index(*grid):
            b, _, i, _ = at(*grid)
            return b, 0, i

        def key_index(*grid):
            b, _, _, j = at(*grid)
            return b, 0, j

        scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
        specs = [
            pl.BlockSpec((1, 1, self.queries), query_index),
            pl.BlockSpec((1, 1, self.keys), key_index),
            scalars,
            scalars,
        ]
        return [ids[0][:, None], ids[1][:, None], extremes(ids[0], self.queries), extremes(ids[1], self.keys)], specs

    def meet(self, extremes_refs, b, i, j):
        """(whether blocks i and j may share a segment, whether both lie in one)."""
        low_q, high_q = (extremes_refs[0][(b * self.query_blocks + i) * 2 + side] for side in (0, 1))
        low_k, high_k = (extremes_refs[1][(b * self.key_blocks + j) * 2 + side] for side in (0, 1))
        return (low_q <= high_k) & (low_k <= high_q), (low_q == high_k) & (low_k == high_q)

    def existing_keys(self, x, key):
        """Rows of keys from `key` on, zeros where there are none: what lies there may be NaN."""
        if not self.ragged_keys:
            return x
        at = key + lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return jnp.where(at < self.mask.keys, x, jnp.zeros_like(x))

    def existing_queries(self, x, query):
        if not self.ragged_queries:
            return x
        at = query + lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return jnp.where(at < self.mask.queries, x, jnp.zeros_like(x))

    def over_tiles(self, i, j, b, work, ids, tile, whole: tuple[int, int], edge: tuple[int, int]) -> None:
        """`tile(head, row, rows, key, keys, masked)` over block pair (i, j), by the path that it needs.

        Args:
          whole, edge: wished rows and keys of a tile of a block pair seen whole, and of another.
        """
        clear = self.mask.whole(i * self.queries, self.queries, j * self.keys, self.keys)
        if ids:
            some, one = self.meet(ids[2:], b, i, j)
            work, clear = work & some, clear & one

        @pl.when(work & clear)
        def _():
            for g, row, rows, key, keys in self._tiles(*whole):
                tile(g, row, rows, key, keys, False)

        if not self.edges:
            return

        @pl.when(work & jnp.logical_not(clear))
        def _():
            for g, row, rows, key, keys in self._tiles(*edge):
                seen = self.mask.some(i * self.queries + row, rows, j * self.keys + key, keys)
                pl.when(seen)(functools.partial(tile, g, row, rows, key, keys, True))

    def _tiles(self, rows: int, keys: int):
        for g in range(self.groups):
            for place in parts(0, self.queries, 0, self.keys, (rows, keys)):
                yield g, *place

    def cost(
        self, walk: Walk, products: int, queries_outside: bool, query_arrays: int, key_arrays: int, rows: int
    ) -> pl.CostEstimate:
        """Of a kernel with `products` matrix products a block pair; arrays of outer blocks are moved once.

        Args:
          query_arrays, key_arrays, rows: how many arrays like query, like key and like the log-sum-exp it moves.
        """
        heads, item = self.batch * self.kv_heads, jnp.dtype(self.dtype).itemsize
        groups = self.groups * self.turns
        scores = heads * groups * walk.worked * self.queries * self.keys
        queries, keys = walk.worked * self.queries, walk.worked * self.keys  # met by inner blocks
        queries = self.mask.queries if queries_outside or self.whole_queries else queries
        keys = keys if queries_outside and not self.whole_keys else self.mask.keys
        moved = heads * groups * queries * (query_arrays * self.width * item + rows * 4)
        moved += heads * keys * key_arrays * self.width * item
        moved += 0 if self.bias is None else groups * heads * walk.worked * self.queries * self.keys * item
        curves = 1 if self.logits_soft_cap is None else 2
        return pl.CostEstimate(
            flops=2 * products * scores * self.width, transcendentals=curves * scores, bytes_accessed=moved
        )


def extremes(ids, size: int):
    """[B * blocks * 2], of each block the least and the greatest id."""
    padded = jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % size)), mode="edge")
    parted = padded.reshape(ids.shape[0], -1, size)
    return jnp.stack([parted.min(-1), parted.max(-1)], -1).reshape(-1)


def plan(query, key, bias, sinks, segments, direction: str, block_sizes: Mapping[str, int], **options) -> Plan:
    """The plan of a call; `query` is [B, K, G, T, H]."""
    batch, kv_heads, groups, queries, width = query.shape
    side = 1024 if query.dtype == jnp.bfloat16 and width <= 128 and current().vmem_most_bytes > 16 * MIB else 512
    together = 1 if direction == "backward" else groups
    default = {"queries": max(side // together // LANES * LANES, min(side, 256)), "keys": side}
    sizes = blocks.pick("flash_attention", direction.split("_")[0], query.dtype, width, default) | dict(block_sizes)
    sizes = {
        "queries": min(sizes["queries"], pl.cdiv(queries, LANES) * LANES),
        "keys": min(sizes["keys"], pl.cdiv(key.shape[2], LANES) * LANES),
    }
    tall, long = (-(-size // sizes[of]) * sizes[of] for size, of in ((queries, "queries"), (key.shape[2], "keys")))
    row, sums = max(width, LANES) * query.dtype.itemsize, max(width, LANES) * 4
    pair = 2 * 2 * row  # two arrays, each in two buffers
    whole = (
        direction == "backward" and tall * (3 * pair // 2 + sums) + long * 2 * (pair + sums) <= vmem_limit() * 5 // 8
    )
    turns = groups if whole else 1
    return Plan(
        batch=batch,
        kv_heads=kv_heads,
        groups=groups // turns,
        width=width,
        dtype=query.dtype,
        bias=None if bias is None else bias.shape[:2],
        sinks=None if sinks is None else sinks.shape[0],
        segments=segments is not None,
        **sizes,
        whole_queries=whole or direction == "backward_keys" and tall * groups * pair <= vmem_limit() // 2,
        whole_keys=whole or direction in ("forward", "backward_queries") and long * pair <= vmem_limit() // 2,
        turns=turns,
        **options,
    )


def grouped(x_BTNH, kv_heads: int):
    """[B, T, N, H] -> [B, K, G, T, H], which XLA lets the producer write."""
    x = jnp.swapaxes(x_BTNH, 1, 2)
    return x.reshape(x.shape[0], kv_heads, -1, *x.shape[2:])


def ungrouped(x_BKGTH):
    x = x_BKGTH.reshape(x_BKGTH.shape[0], -1, *x_BKGTH.shape[3:])
    return jnp.swapaxes(x, 1, 2)


def vmem_limit() -> int:
    """Bytes of VMEM that a kernel asks for: more than the default where the chip has it."""
    return min(64 * MIB, current().vmem_most_bytes)


def parameters(*order: str) -> Any:
    """Compiler parameters: the order of each grid axis, and the memory."""
    chip, limit = current(), vmem_limit()
    return pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=limit if limit > chip.vmem_bytes else None)


def grid_of(made: Plan, walk: Walk, outer_is_query: bool):
    """(grid, its order, index map to (batch, kv head and turn, query block, key block)).

    The grid is (batch, kv heads, turns, rows of the walk, its steps); where heads take turns they share sums.
    """

    def at(b, k, turn, row, step):
        outer, inner, *_ = walk.at(row, step)
        return (b, k * made.turns + turn, *((outer, inner) if outer_is_query else (inner, outer)))

    apart = "arbitrary" if made.whole_queries and made.whole_keys else "parallel"
    return (
        (made.batch, made.kv_heads, made.turns, walk.rows, walk.steps),
        ("parallel", "parallel", apart, apart, "arbitrary"),
        at,
    )


def parts(row: int, rows: int, key: int, keys: int, size: tuple[int, int]):
    """(row, rows, key, keys) of the parts of a tile, of at most the rows and keys of `size`."""
    of_rows, of_keys = tile_of(rows, size[0]), tile_of(keys, size[1])
    for at_row in range(row, row + rows, of_rows):
        for at_key in range(key, key + keys, of_keys):
            yield at_row, of_rows, at_key, of_keys


def spread(x, width: int):
    """[n, 128] with equal lanes -> [n, width]."""
    return x[:, :width] if width <= LANES else jnp.tile(x, (1, -(-width // LANES)))[:, :width]
