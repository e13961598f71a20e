"""Approaches 2 and 3 on Marin's runs, and on runs of a known law whose budgets are not 6 N D."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments import marin
from experiments.isoflop_estimators import jackknife_error

E, A, B, ALPHA, BETA = 2.0, 400.0, 900.0, 0.34, 0.32


@pytest.fixture(scope="module")
def analysis(published):
    return marin.analyse(published, corpora=("dclm",))


def simulated(noise=0.0, power=0.05):
    """Budgets with 6 N D / C = (N / 1e9)^power."""
    rng, rows = np.random.default_rng(0), []
    for c in 10.0 ** np.arange(18, 21.1, 0.5):
        n = np.geomspace(0.1, 10, 11) * 0.3 * (c / 6) ** 0.48
        d = c / (6 * n) * (n / 1e9) ** power
        loss = E + A * n**-ALPHA + B * d**-BETA + rng.normal(0, noise, len(n))
        rows.append(pd.DataFrame({"budget": c, "params": n, "tokens": d, "loss": loss}))
    return pd.concat(rows, ignore_index=True)


def test_approach_3_follows_the_budgets_own_tokens():
    """Along D ~ C N^(power - 1) the exponent is beta / (alpha + (1 - power) beta), not beta / (alpha + beta)."""
    runs = simulated()
    surface, found = marin.estimates(runs, np.ones(len(runs), bool))
    assert surface.exponent == pytest.approx(BETA / (ALPHA + BETA), abs=1e-6)
    along = BETA / (ALPHA + (1 - 0.05) * BETA)
    assert found[marin.ALONG].law()[0] == pytest.approx(along, abs=1e-3)
    assert found["saturating valley"].law()[0] == pytest.approx(along, abs=0.01)
    np.testing.assert_allclose(found[marin.ALONG].exponents, along, atol=2e-3)
    assert found[marin.ALONG].missed == pytest.approx(0.0, abs=0.01)


def test_jackknife_and_residuals():
    """Of straight lines the jackknife's error is on average the textbook's; noise is what was added."""
    rng, flops, errors = np.random.default_rng(3), 10.0 ** np.linspace(18, 21, 40), []
    for _ in range(50):
        log_n = 0.4 * np.log(flops) + rng.normal(0, 0.1, 40)
        located = marin.Located(flops, log_n, np.tile(log_n, (40, 1)), np.ones(40))
        errors.append(jackknife_error(located.exponents))
    assert np.mean(errors) == pytest.approx(0.1 / np.sqrt(40 * np.log(flops).var()), rel=0.1)
    runs = simulated(noise=0.01)
    surface, _ = marin.estimates(runs, np.ones(len(runs), bool))
    assert marin.residual_deviation(surface.fit) == pytest.approx(0.01, rel=0.3)


def test_every_estimator(analysis):
    table = analysis.tables["estimators"]
    assert table.groupby("data").size().tolist() == [len(marin.VALLEYS) + 2]
    assert table["exponent"].between(0.3, 0.5).all() and table["standard_error"].between(0.001, 0.1).all()
    constants = analysis.tables["approach-3"]
    assert constants["rows"].tolist() == [85] and (constants["warnings"] == "").all()
    assert constants["residual_nats"].between(0.03, 0.045).all()


@pytest.mark.long
def test_every_corpus(published):
    whole = marin.analyse(published)
    assert whole.tables["estimators"].groupby("data").size().tolist() == [len(marin.VALLEYS) + 2] * 3
    assert whole.tables["approach-3"]["rows"].tolist() == [85] * 3


@pytest.mark.parametrize("apart, verdict", [(0.0, "holds"), (0.1, "contradicted"), (0.05, "inconclusive")])
def test_verdicts_come_out_both_ways(apart, verdict):
    rng, flops = np.random.default_rng(1), 10.0 ** np.linspace(18, 21, 7)

    def located(exponent):
        log_n = exponent * np.log(flops) + rng.normal(0, 0.02, 7)
        return marin.Located(flops, log_n, np.tile(log_n, (7, 1)), np.ones(7))

    found = {
        corpus: {name: located(0.4 + apart * (name != marin.ALONG)) for name in (*marin.COMPARED, marin.ALONG)}
        for corpus in marin.CORPORA
    }
    assert [finding.verdict for finding in marin.verdicts(found)] == [verdict] * 3


def test_nothing_was_published_so_nothing_is_compared(analysis):
    table = analysis.tables["published-against-ours"]
    assert table["published"].isna().all() and table["reason"].str.contains("no constants were published").all()
    assert [finding.claim.kind for finding in analysis.findings] == ["near_zero"] * 3


def test_figure(analysis, tmp_path):
    assert analysis.draw(tmp_path / "figure").stat().st_size > 20_000
