"""Regressions from mixtures to losses: against scipy and closed forms, and on the published table."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments import regmix


@pytest.fixture(scope="module")
def analysis(published):
    return regmix.analyse(published)


def mixtures(n, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(17, 0.4), n)


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(1)
    a, b = np.round(rng.normal(size=(3, 40)), 1), rng.normal(size=(3, 40))
    np.testing.assert_allclose(regmix.rank_correlation(a, b), [spearmanr(x, y)[0] for x, y in zip(a, b)])


def test_without_a_penalty_ridge_is_least_squares_though_the_weights_sum_to_one():
    weights, rng = mixtures(200), np.random.default_rng(2)
    loss = 3 + weights @ rng.normal(size=17) + 0.1 * rng.normal(size=200)
    ours = regmix.ridges(weights, loss, [0.0])(weights)[0]
    np.testing.assert_allclose(ours, weights @ np.linalg.lstsq(weights, loss, rcond=None)[0], rtol=1e-9)


def test_ridge_solves_its_normal_equations():
    features, rng = np.random.default_rng(3).normal(size=(50, 8)) * 3 + 1, np.random.default_rng(4)
    loss = rng.normal(size=50)
    X = (features - features.mean(0)) / features.std(0)
    slope = np.linalg.solve(X.T @ X + 0.3 * 50 * np.eye(8), X.T @ (loss - loss.mean()))
    np.testing.assert_allclose(regmix.ridges(features, loss, [0.3])(features)[0], loss.mean() + X @ slope, rtol=1e-10)


def test_a_quadratic_loss_of_mixtures_is_ranked_well_by_the_quadratic_model_only():
    truth = lambda w: np.log(0.02 + w[:, 0]) ** 2 + 2 * np.sqrt(w[:, 1] * w[:, 2])  # noqa: E731
    train, test = mixtures(512), mixtures(200, seed=9)
    found = {}
    for kind in regmix.FEATURES:
        model, _ = regmix.fitted(kind, train, truth(train))
        found[kind] = float(regmix.rank_correlation(model(test), truth(test)))
    assert found["quadratic"] > 0.95 and found["quadratic"] > found["linear"] + 0.05


def test_the_papers_linear_model_gives_the_papers_rank_correlations(analysis, tmp_path):
    """Liu et al. 2024, recalled: 0.901, 0.893, 0.880 at 1M, 60M, 1B."""
    table = analysis.tables["ranking"].set_index(["model", "size"])["rank correlation"]
    np.testing.assert_allclose(table["linear"][["1M", "60M", "1B"]], [0.9008, 0.8926, 0.8801], atol=0.005)
    np.testing.assert_allclose(table["quadratic"][["1M", "60M", "1B"]], [0.9845, 0.9864, 0.9712], atol=0.02)
    assert analysis.draw(tmp_path / "figure").stat().st_size > 10_000
