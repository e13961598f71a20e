"""Which keys a query sees by position, and the block pairs that have something to see: arithmetic, no arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

Integer = Any  # a Python int or a traced int32 scalar: every rule below works on both


def _least(a: Integer, b: Integer) -> Integer:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.minimum(a, b)


def _most(a: Integer, b: Integer) -> Integer:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.maximum(a, b)


def _where(condition: Any, a: Integer, b: Integer) -> Integer:
    return (a if condition else b) if isinstance(condition, bool) else jnp.where(condition, a, b)


def _over(a: Integer, b: int) -> Integer:
    """a // b for a >= 0, without the sign's cases that a traced `//` would carry."""
    return a // b if isinstance(a, int) else lax.div(a, jnp.asarray(b, a.dtype))


@dataclasses.dataclass(frozen=True)
class Mask:
    """Query i sees key j if -left <= j - (i + offset) <= right, or if j < first (and, if causal, j <= i + offset).

    Attributes:
      queries, keys: T and S.
      left, right: None where there is no bound; right is 0 if causal.
      offset: position of query 0 among the keys.
    """

    queries: int
    keys: int
    left: int | None = None
    right: int | None = None
    first: int = 0
    causal: bool = False
    offset: int = 0

    @property
    def bounded(self) -> bool:
        """Whether positions hide anything."""
        return self.left is not None or self.right is not None

    def visible(self, query: Any, key: Any) -> Any:
        """Booleans of integer arrays that broadcast; None if positions hide nothing."""
        ahead = key - (query + self.offset)
        seen = None
        if self.left is not None:
            seen = ahead >= -self.left
        if self.right is not None:
            seen = ahead <= self.right if seen is None else seen & (ahead <= self.right)
        if self.first:
            early = key < self.first
            seen = seen | (early & (ahead <= 0) if self.causal else early)
        return seen

    def whole(self, query: Integer, queries: int, key: Integer, keys: int) -> Any:
        """Whether each of `queries` from `query` on exists and sees each of `keys` from `key` on."""
        last_query, last_key, position = query + queries - 1, key + keys - 1, query + self.offset
        seen = True
        if self.left is not None:
            seen = key - (last_query + self.offset) >= -self.left
        if self.right is not None:
            seen = seen & (last_key - position <= self.right)
        if self.first:
            seen = seen | ((last_key < self.first) & ((last_key <= position) if self.causal else True))
        if self.queries % queries:
            seen = seen & (last_query < self.queries)
        if self.keys % keys:
            seen = seen & (last_key < self.keys)
        return seen

    def some(self, query: Integer, queries: int, key: Integer, keys: int) -> Any:
        """Whether any of `queries` from `query` on may see any of `keys` from `key` on."""
        last_position, last_key, position = query + queries - 1 + self.offset, key + keys - 1, query + self.offset
        seen = True
        if self.left is not None:
            seen = last_key - position >= -self.left
        if self.right is not None:
            seen = seen & (key - last_position <= self.right)
        if self.first:
            seen = seen | ((key < self.first) & ((key <= last_position) if self.causal else True))
        return seen & (query < self.queries) & (key < self.keys)

    def key_blocks(self, i: Integer, queries: int, keys: int) -> tuple[Integer, Integer, Integer]:
        """(head, low, high): block i of queries sees blocks [0, head) and [low, high) of keys, head <= low <= high."""
        count = -(-self.keys // keys)
        start = i * queries + self.offset
        last = _least((i + 1) * queries, self.queries) - 1 + self.offset
        low_key = 0 if self.left is None else _most(start - self.left, 0)
        high_key = self.keys if self.right is None else _most(_least(last + self.right + 1, self.keys), 0)
        low, high = _over(low_key, keys), _over(high_key + keys - 1, keys)
        if not self.first:
            return 0, _least(low, count), _most(high, _least(low, count))
        early = min(self.first, self.keys)
        early = _most(_least(early, last + 1), 0) if self.causal else early
        head = _over(early + keys - 1, keys)
        empty = high_key <= low_key
        low, high = _where(empty, count, low), _where(empty, count, high)
        return _least(head, low), low, _most(high, head)

    def query_blocks(self, j: Integer, queries: int, keys: int) -> tuple[Integer, Integer]:
        """(low, high): block j of keys is seen by blocks [low, high) of queries."""
        count = -(-self.queries // queries)
        start, last = j * keys, _least((j + 1) * keys, self.keys) - 1
        low = 0 if self.right is None else _most(start - self.right - self.offset, 0)
        high = self.queries
        if self.left is not None:
            high = _most(_least(last + self.left - self.offset + 1, self.queries), 0)
        if self.first:
            high = _where(start < self.first, self.queries, high)
            low = low if self.causal else _where(start < self.first, 0, low)
        low = _least(_over(low, queries), count)
        return low, _most(_over(high + queries - 1, queries), low)


@dataclasses.dataclass(frozen=True)
class Walk:
    """The order in which one kernel meets block pairs: outer blocks, and the inner blocks each has to meet.

    Outer blocks p and outer - 1 - p share a row of steps, so that under a causal mask all rows are equally long. An
    outer block with nothing to see still gets one step, in which its zeros are written.

    Attributes:
      outer: number of outer blocks.
      reach: outer block -> (head, low, high) as of `Mask.key_blocks`.
    """

    outer: int
    inner: int
    reach: Callable[[Integer], tuple[Integer, Integer, Integer]]

    def count(self, block: Integer) -> Integer:
        head, low, high = self.reach(block)
        return _most(head + high - low, 1)

    @property
    def rows(self) -> int:
        return -(-self.outer // 2)

    @property
    def steps(self) -> int:
        pairs = [(p, self.outer - 1 - p) for p in range(self.rows)]
        return max(sum(self.count(block) for block in {*pair}) for pair in pairs)

    @property
    def worked(self) -> int:
        """Steps that have a pair of blocks, of all rows."""
        return sum(self.count(block) for block in range(self.outer))

    def at(self, row: Integer, step: Integer) -> tuple[Integer, Integer, Any, Any, Any]:
        """(outer block, inner block, whether it is the outer block's first, its last, whether there is work)."""
        first = self.count(row)
        second = step >= first
        block = _where(second, self.outer - 1 - row, row)
        here = _where(second, step - first, step)
        count = self.count(block)
        work = (here < count) & ((step < first) | (block != row))
        here = _least(here, count - 1)
        here = _where(second & (block == row), count - 1, here)  # the middle block of an odd number has no partner
        head, low, _ = self.reach(block)
        inner = _least(_where(here < head, here, low + here - head), self.inner - 1)
        return block, inner, here == 0, here == count - 1, work


def over_queries(mask: Mask, queries: int, keys: int) -> Walk:
    """Outer blocks of queries, inner blocks of keys."""
    outer, inner = -(-mask.queries // queries), -(-mask.keys // keys)
    return Walk(outer, inner, lambda i: mask.key_blocks(i, queries, keys))


def over_keys(mask: Mask, queries: int, keys: int) -> Walk:
    """Outer blocks of keys, inner blocks of queries."""
    outer, inner = -(-mask.keys // keys), -(-mask.queries // queries)
    return Walk(outer, inner, lambda j: (0, *mask.query_blocks(j, queries, keys)))
