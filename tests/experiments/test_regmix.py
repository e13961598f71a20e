"""Regressions from mixtures to losses: against scipy and closed forms, and on the published table."""

from __future__ import annotations

import numpy as np
import pandas as pd
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
    ours = regmix.ridges(weights, loss[:, None], [0.0])(weights)[0, :, 0]
    np.testing.assert_allclose(ours, weights @ np.linalg.lstsq(weights, loss, rcond=None)[0], rtol=1e-9)


def test_ridge_solves_its_normal_equations():
    features, rng = np.random.default_rng(3).normal(size=(50, 8)) * 3 + 1, np.random.default_rng(4)
    losses = rng.normal(size=(50, 2))
    X = (features - features.mean(0)) / features.std(0)
    ours = regmix.ridges(features, losses, [0.3, 2.0])(features)
    for penalty, found in zip((0.3, 2.0), ours):
        slope = np.linalg.solve(X.T @ X + penalty * 50 * np.eye(8), X.T @ (losses - losses.mean(0)))
        np.testing.assert_allclose(found, losses.mean(0) + X @ slope, rtol=1e-10)


def test_each_loss_is_fitted_with_its_own_penalty():
    weights, rng = mixtures(60), np.random.default_rng(6)
    losses = np.stack([weights @ np.arange(17), rng.normal(size=60)], 1)
    both, penalties = regmix.fitted("quadratic", weights, losses)
    assert penalties[0] < penalties[1]
    for t in (0, 1):
        alone, penalty = regmix.fitted("quadratic", weights, losses[:, [t]])
        assert penalty == penalties[[t]]
        np.testing.assert_allclose(both(weights)[:, [t]], alone(weights), rtol=1e-9)


def test_a_quadratic_loss_of_mixtures_is_ranked_well_by_the_quadratic_model_only():
    truth = lambda w: np.log(0.02 + w[:, 0]) ** 2 + 2 * np.sqrt(w[:, 1] * w[:, 2])  # noqa: E731
    train, test = mixtures(512), mixtures(200, seed=9)
    found = {}
    for kind in regmix.FEATURES:
        model, _ = regmix.fitted(kind, train, truth(train)[:, None])
        found[kind] = float(regmix.rank_correlation(model(test)[:, 0], truth(test)))
    assert found["quadratic"] > 0.95 and found["quadratic"] > found["linear"] + 0.05


def table(truth, runs, noise):
    """Runs of all splits on made-up mixtures; `truth`: losses of mixtures, `noise` of the `runs` that are fitted."""
    parts, rng = [], np.random.default_rng(5)
    for seed, (split, n) in enumerate((("train_1m", runs), ("test_1m", 60), ("test_60m", 60), ("test_1B", 150))):
        weights = mixtures(n, seed)
        part = pd.DataFrame(weights, columns=[f"train_the_pile_{i}" for i in range(17)])
        off = rng.normal(0, noise, n) if split == "train_1m" else 0.0
        parts.append(
            part.assign(split=split, index=np.arange(n) + 1000 * seed, **{regmix.TARGET: truth(weights) + off})
        )
    return pd.concat(parts, ignore_index=True)


def bent(weights):
    return np.log(0.02 + weights[:, 0]) ** 2 + 4 * np.sqrt(weights[:, 1] * weights[:, 2])


def straight(weights):
    return 3 + weights @ np.linspace(-1, 1, 17)


@pytest.mark.parametrize(
    "data, expected",
    [(table(bent, 200, 0.0), ("holds", "holds")), (table(straight, 100, 0.3), ("contradicted", "contradicted"))],
    ids=["bent", "straight"],
)
def test_verdicts_go_both_ways(data, expected):
    """Of the linear model's correlation, and of the gain by products; the other model's correlation is no claim."""
    linear, gain = regmix.analyse(lambda name: data).findings
    assert (linear.verdict, gain.verdict) == expected


def test_the_papers_linear_model_gives_the_papers_rank_correlations(analysis, tmp_path):
    """Liu et al. 2024, recalled: 0.901, 0.893, 0.880 at 1M, 60M, 1B."""
    table = analysis.tables["ranking"].set_index(["model", "size"])["rank correlation"]
    np.testing.assert_allclose(table["linear"][["1M", "60M", "1B"]], [0.9008, 0.8926, 0.8801], atol=0.005)
    np.testing.assert_allclose(table["quadratic"][["1M", "60M", "1B"]], [0.9845, 0.9864, 0.9712], atol=0.02)
    assert analysis.draw(tmp_path / "figure").stat().st_size > 10_000
