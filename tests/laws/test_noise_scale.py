from __future__ import annotations

import numpy as np
import pytest

from lab.laws.noise_scale import estimate


def probes(rng, count, half, dimension=200, deviation=1.0, length=2.0):
    """Real halves: mean gradients over `half` sequences of G + noise; tr(Sigma) = dimension * deviation^2."""
    mean = np.full(dimension, length / np.sqrt(dimension))
    first, second = mean + rng.normal(0, deviation / np.sqrt(half), (2, count, dimension))
    return ((first - second) ** 2).sum(1), (first * second).sum(1)


@pytest.mark.parametrize("half", [1, 4, 16])
def test_recovers_the_noise_scale_whatever_the_half(half):
    found = estimate(*probes(np.random.default_rng(half), 4000, half), half)
    assert found.trace == pytest.approx(200.0, rel=0.02)
    assert found.squared_gradient == pytest.approx(4.0, rel=0.15)
    assert found.sequences == pytest.approx(50.0, rel=0.15)
    assert found.tokens(128) == pytest.approx(128 * found.sequences)


def test_mixed_halves_agree_with_one():
    rng = np.random.default_rng(1)
    small, large = probes(rng, 3000, 2), probes(rng, 3000, 8)
    found = estimate(np.r_[small[0], large[0]], np.r_[small[1], large[1]], np.repeat([2, 8], 3000))
    assert found.sequences == pytest.approx(50.0, rel=0.15)


def test_interval_covers():
    rng = np.random.default_rng(3)
    hits = sum(
        estimate(*probes(rng, 40, 8, dimension=50), 8, 0.9, 300, seed=k).interval.contains(12.5) for k in range(150)
    )
    assert 0.84 <= hits / 150 <= 0.96


def test_not_identified_is_said():
    negative = estimate(np.array([1.0, 2.0, 3.0]), np.array([-0.5, 0.1, 0.1]), 4)
    assert np.isnan(negative.sequences) and "not identified" in negative.reason and not negative.interval.known
    open_end = estimate(np.array([1.0, 2.0, 3.0, 1.0]), np.array([-0.5, 0.9, 0.3, -0.2]), 4)
    assert open_end.interval.high == np.inf
    assert not estimate(np.array([1.0]), np.array([1.0]), 4).interval.known
    with pytest.raises(ValueError, match="finite"):
        estimate(np.array([np.nan]), np.array([1.0]), 4)
    with pytest.raises(ValueError, match="positive"):
        estimate(np.array([1.0]), np.array([1.0]), 0)
