from __future__ import annotations

import numpy as np
import pytest

from lab.laws.bootstrap import Interval, hierarchical_weights, no_interval, percentile_interval
from lab.laws.critical_batch import fit_overheads


def test_weights_keep_totals_and_are_deterministic():
    cells = np.array([0, 0, 0, 1, 1, 2])
    weights = hierarchical_weights(cells, 4000, np.random.default_rng(5))
    assert np.array_equal(weights, hierarchical_weights(cells, 4000, np.random.default_rng(5)))
    np.testing.assert_allclose(weights.mean(0), 1.0, atol=0.1)
    per_cell = np.stack([weights[:, cells == c].mean(1) for c in range(3)], 1)
    np.testing.assert_allclose(per_cell.sum(1), 3.0)
    assert (weights > 0).all()


def test_variance_of_a_mean_is_that_of_cells_and_seeds():
    """Var of a Dirichlet(1 x n) weighted mean is var / (n + 1); a cell's squared weight has mean 2 n / (n + 1)."""
    rng = np.random.default_rng(0)
    cells = np.repeat(np.arange(40), 3)
    values = np.repeat(rng.normal(0, 1, 40), 3) + rng.normal(0, 0.5, 120)
    means = (hierarchical_weights(cells, 8000, rng) * values).sum(1) / 120
    of_cells = values.reshape(40, 3).mean(1).var() / 41
    within = (2 * 40 / 41) * (values.reshape(40, 3).var(1) / 4).mean() / 40
    assert means.var() == pytest.approx(of_cells + within, rel=0.05)


def test_intervals_that_cannot_be_had_say_why():
    few = percentile_interval(np.r_[np.arange(10.0), np.full(90, np.nan)])
    many = percentile_interval(np.r_[np.arange(60.0), np.full(40, np.nan)])
    same, saturated = percentile_interval(np.ones(100)), percentile_interval(np.arange(100.0), 0.95, 2, 2)
    for interval in (few, many, same, saturated):
        assert not interval.known and interval.reason and np.isnan(interval.low)
        assert not interval.contains(1.0) and not interval.excludes(1.0)
    assert not no_interval("why").known
    open_end = percentile_interval(np.r_[np.arange(90.0), np.full(10, np.inf)])
    assert open_end.known and open_end.high == np.inf and open_end.excludes(-1.0) and not open_end.excludes(1e9)
    assert Interval(0.0, 2.0, 0.95).half_width == 1.0


def test_expanded_percentiles_cover_a_small_sample_mean_where_plain_ones_do_not():
    rng = np.random.default_rng(2)
    plain = expanded = 0
    for _ in range(500):
        sample = rng.normal(0, 1, 6)
        means = sample[rng.integers(6, size=(600, 6))].mean(1)
        plain += percentile_interval(means, 0.9).contains(0.0)
        expanded += percentile_interval(means, 0.9, observations=6).contains(0.0)
    assert plain / 500 < 0.86 and 0.86 <= expanded / 500 <= 0.95


@pytest.mark.parametrize("sizes", [5, 9])
def test_coverage_of_the_critical_batch(sizes):
    rng = np.random.default_rng(7)
    batch = 2.0 ** np.arange(6, 6 + sizes)
    truth = np.log(1000.0)
    hits, trials = 0, 200
    for _ in range(trials):
        log_steps = np.log(2000 * (1 + 1000.0 / batch)) + rng.normal(0, 0.05, sizes)
        weights = hierarchical_weights(np.arange(sizes), 400, rng)
        theta, _, _ = fit_overheads(batch, log_steps[None], np.zeros((1, sizes), bool), weights)
        hits += percentile_interval(theta[:, 1], 0.9, sizes, 2).contains(truth)
    assert 0.8 <= hits / trials <= 0.96
