"""The keyed permutation is a bijection, differs between keys and epochs, and is the same on every machine."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.data.order import order


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(-(2**63), 2**64 - 1), epoch=st.integers(0, 5))
def test_an_epoch_is_a_permutation(n, seed, epoch):
    found = order(seed, np.arange(epoch * n, (epoch + 1) * n), n)
    assert sorted(found.tolist()) == list(range(n))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 2**40), seed=st.integers(0, 2**32), index=st.integers(0, 2**50))
def test_any_index_of_a_corpus_of_any_size(n, seed, index):
    together = order(seed, [index, index + 1, index + 2], n)
    assert (together >= 0).all() and (together < n).all()
    assert [int(order(seed, [index + i], n)[0]) for i in range(3)] == together.tolist()


def test_all_orders_of_four_are_equally_likely():
    counts = Counter(tuple(order(seed, np.arange(4), 4).tolist()) for seed in range(4800))
    expected = 4800 / 24
    statistic = sum((counts[found] - expected) ** 2 / expected for found in itertools.permutations(range(4)))
    # The 99.9 % point of chi-square with 23 degrees of freedom; the seeds are fixed, so this does not flicker.
    assert statistic < 49.73


def test_seeds_and_epochs_are_unrelated():
    n = 2000
    orders = [order(seed, np.arange(epoch * n, (epoch + 1) * n), n) for seed, epoch in ((0, 0), (1, 0), (0, 1), (2, 3))]
    for a, b in itertools.combinations(orders, 2):
        assert (a == b).sum() < 10
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


def test_pinned():
    """Made by this code on 2 CPU cores; what was trained stays comparable only while it does not change."""
    assert order(7, np.arange(12), 10).tolist() == PINNED


PINNED = [0, 2, 3, 8, 6, 9, 1, 7, 4, 5, 4, 5]


def test_nothing_to_permute():
    with pytest.raises(ValueError, match="at least 1"):
        order(0, [0], 0)
