"""The order of sequences: a keyed permutation, so that what is read is a function of the index alone.

`order(seed, i, n)` maps i = 0, 1, 2, ... to sequences 0..n-1. Each stretch of n indices (an epoch) is one permutation
under its own key. No state is kept, nothing is stored, and any index is reached in constant time.

The permutation is an eight-round Feistel network over the number of bits that holds n, walked until the value falls
below n (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"): a bijection for every n and key, whatever
the round function. Constants are those of SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import numpy as np

ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's step and finaliser, uint64 array to uint64 array; a bijection of 64-bit words."""
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def words(values) -> np.ndarray:
    """Integers of any sign and size (a scalar or a sequence) as a uint64 array of at least one dimension."""
    if isinstance(values, np.ndarray):
        return np.atleast_1d(values).astype(np.uint64)
    return np.array([int(value) & _WORD for value in np.atleast_1d(np.asarray(values, dtype=object))], dtype=np.uint64)


def _round(values: np.ndarray, keys: np.ndarray, bits: int) -> np.ndarray:
    """`bits` bits out of a word and a key, both uint64 [count]: two multiplications, the high bits kept."""
    values = (values ^ keys) * np.uint64(0xBF58476D1CE4E5B9)
    return ((values ^ (values >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)) >> np.uint64(64 - bits)


def _network(values: np.ndarray, round_keys: np.ndarray, high_bits: int, low_bits: int) -> np.ndarray:
    """Words of high_bits + low_bits bits, [count], through the network under round_keys, [ROUNDS, count]."""
    low_mask = np.uint64((1 << low_bits) - 1)
    left, right = values >> np.uint64(low_bits), values & low_mask
    for number in range(ROUNDS):
        # The halves change places each round, and so do their sizes where these differ.
        left, right = right, left ^ _round(right, round_keys[number], (high_bits, low_bits)[number % 2])
    return (left << np.uint64(low_bits)) | right


def permute(keys: np.ndarray, positions: np.ndarray, n: int) -> np.ndarray:
    """`positions` (uint64 [count], each below n) under the permutations of 0..n-1 named by `keys` (uint64 [count])."""
    bits = max(2, (n - 1).bit_length())
    sizes = (bits // 2, bits - bits // 2)
    limit = np.uint64(n)
    round_keys = mix(keys ^ np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None])
    values = _network(positions, round_keys, *sizes)
    outside = np.flatnonzero(values >= limit)
    while outside.size:
        values[outside] = _network(values[outside], round_keys[:, outside], *sizes)
        outside = outside[values[outside] >= limit]
    return values


def order(seed: int, indices, n: int) -> np.ndarray:
    """Sequence numbers (int64 [count], 0..n-1) at `indices` (integers from 0, [count]) of the order of `seed`."""
    if n < 1:
        raise ValueError(f"a permutation of {n} sequences was asked for; at least 1 is needed")
    indices = np.atleast_1d(np.asarray(indices, dtype=np.uint64))
    epochs, positions = np.divmod(indices, np.uint64(n))
    keys = mix(mix(words(seed)) ^ mix(epochs + np.uint64(0x5851F42D4C957F2D)))
    return permute(keys, positions, n).astype(np.int64)
