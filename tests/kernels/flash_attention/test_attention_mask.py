"""Which block pairs are met, against every pair of positions; and that finding them takes work in the blocks alone."""

import dataclasses
import time

import numpy as np
import pytest

from kernels_pallas.flash_attention import cpu
from kernels_pallas.flash_attention.mask import Mask, over_keys, over_queries

MASKS = [
    Mask(200, 200),
    Mask(200, 200, None, 0, 0, True, 0),
    Mask(130, 200, None, 0, 0, True, 70),
    Mask(200, 130, None, 0, 0, True, -70),
    Mask(200, 200, 30, 0, 0, True, 0),
    Mask(200, 190, 30, 9, 0, False, -10),
    Mask(200, 200, 20, 0, 50, True, 0),
    Mask(200, 200, 20, 5, 50, False, 0),
    Mask(150, 220, 20, 0, 100, True, 70),
]
SIZES = [(32, 32), (64, 16), (48, 80)]
LONG = 131_072


def seen_blocks(mask, queries, keys):
    """[query block, key block]: whether any query there sees any key, by looking at all of them."""
    seen = mask.visible(np.arange(mask.queries)[:, None], np.arange(mask.keys)) if mask.bounded else True
    seen = np.broadcast_to(seen, (mask.queries, mask.keys))
    seen = np.pad(seen, ((0, -mask.queries % queries), (0, -mask.keys % keys)))
    return seen.reshape(seen.shape[0] // queries, queries, -1, keys).any((1, 3))


def walked(walk):
    """Block pairs in the order of the kernel's steps, those without work left out."""
    found = []
    for row in range(walk.rows):
        for step in range(walk.steps):
            outer, inner, *_, work = walk.at(row, step)
            found += [(outer, inner)] if work else []
    return found


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_each_block_pair_with_something_to_see_is_met_once(mask, sizes):
    """Kernels may meet an outer block that sees nothing once more: in that step they write its zeros."""
    expected = {tuple(map(int, pair)) for pair in np.argwhere(seen_blocks(mask, *sizes))}
    by_queries = walked(over_queries(mask, *sizes))
    by_keys = [(i, j) for j, i in walked(over_keys(mask, *sizes))]
    plain = [(i // sizes[0], j // sizes[1]) for i, j in cpu.pairs(mask, *sizes).tolist()]
    for found in (by_queries, by_keys, plain):
        assert len(found) == len(set(found)) and expected <= set(found)
    assert set(plain) == expected
    for found, axis in ((by_queries, 0), (by_keys, 1)):
        busy = {pair[axis] for pair in expected}
        assert all(pair in expected or pair[axis] not in busy for pair in found)


def counted(walk):
    """The walk, and a list that grows by one for each outer block whose inner blocks are looked up."""
    calls = []

    def reach(block):
        calls.append(block)
        return walk.reach(block)

    return dataclasses.replace(walk, reach=reach), calls


@pytest.mark.parametrize("window", [None, 4096])
def test_preparing_a_kernel_looks_up_each_outer_block_twice(window):
    """At T = 131,072: once for the number of steps, once for the cost; nothing is kept for a pair of blocks."""
    mask = Mask(LONG, LONG, window, 0, 0, True, 0)
    for over in (over_queries, over_keys):
        walk, calls = counted(over(mask, 512, 512))
        steps, worked = walk.steps, walk.worked
        assert len(calls) == 2 * 256
        assert worked == (256 * 257 // 2 if window is None else sum(min(i + 1, 9) for i in range(256)))
        assert walk.rows * steps <= worked + 256 + 2 * 9 * (window is not None)


def seconds(length):
    """Of preparing every form's walk over a causal mask, the least of five."""
    found = []
    for _ in range(5):
        start = time.perf_counter()
        mask = Mask(length, length, None, 0, 0, True, 0)
        for walk in (over_queries(mask, 512, 512), over_keys(mask, 512, 512)):
            assert walk.steps and walk.worked
        assert len(cpu.pairs(mask, 512, 512)) == walk.worked
        found.append(time.perf_counter() - start)
    return min(found)


def test_preparation_grows_with_the_blocks():
    """Eight times the length, eight times the blocks; 64 times would be all pairs of them. Both forms within 0.1 s."""
    assert seconds(LONG) < 0.1
    assert seconds(LONG) < 32 * seconds(LONG // 8)
