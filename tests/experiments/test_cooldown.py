"""Cooldown runs: made-up runs whose differences are known, and the published table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments import cooldown
from lab.laws.bootstrap import Interval
from lab.report.findings import judge


def grid(exponents):
    """Runs of two schedules whose ln loss is a parabola in ln lr around 0.001 (length / 20,000)^exponent."""
    rows = []
    for group, exponent in zip(("ann124-0.2", "cos-10-124m"), exponents):
        for length in (15_000, 25_000, 50_000):
            best = 1e-3 * (length / 20_000) ** exponent
            for lr in cooldown.RATES:
                loss = 3 * np.exp(0.02 * np.log(lr / best) ** 2)
                row = {"group": group, "decay_type": "linear", "iterations": length}
                rows.append({**row, "lr": lr, "final_val_loss": loss})
    return pd.DataFrame(rows)


def test_slopes_and_regrets_are_those_of_the_runs():
    best = cooldown.best_rates(grid((-0.4, -0.2)))
    slopes = cooldown.schedule_slopes(best)
    assert list(slopes["schedule"]) == ["20 % cooldown, linear", "cosine to a tenth"]
    np.testing.assert_allclose(slopes["slope"], [-0.4, -0.2], rtol=1e-9)
    costs = cooldown.transferred(best, slopes).set_index(["schedule", "exponent"])["regret %"]
    for schedule, own, other in (("20 % cooldown, linear", -0.4, -0.2), ("cosine to a tenth", -0.2, -0.4)):
        for name, exponent in (("none", 0.0), ("ours", other), ("theirs", -0.5)):
            lost = 100 * 0.02 * ((exponent - own) * np.log(50 / 15)) ** 2
            assert costs[schedule, name] == pytest.approx(lost, rel=1e-6)


def test_a_mean_over_groups_is_students():
    """scipy's interval of the means of the groups."""
    values, labels = pd.Series([1.0, 3.0, 4.0, 7.0, 7.5]), pd.Series([1, 1, 2, 3, 3])
    found, means = cooldown.group_mean(values, labels), np.array([2.0, 4.0, 7.25])
    assert found.mean == pytest.approx(means.mean()) and found.error == pytest.approx(stats.sem(means))
    expected = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert (found.interval.low, found.interval.high) == pytest.approx(expected)
    assert not cooldown.group_mean(values[:2], labels[:2]).interval.known


def study(difference, apart, slopes, gain):
    """What `compared` finds of made-up runs of six models."""
    models = pd.Series(np.arange(6) * 1e7 + 1e8)
    wiggle = 0.001 * np.array([-1, 1, 0, 2, -2, 0.0])
    found = {"exponent": cooldown.Mean(apart, Interval(apart - 0.02, apart + 0.02, 0.95), 0.01)}
    found["pairs"] = pd.DataFrame({"parameters": models, "difference": difference + wiggle})
    found["extended"] = pd.DataFrame({"parameters": models, "gain": gain + wiggle})
    found["best"] = cooldown.best_rates(grid(slopes))
    found["slopes"] = cooldown.schedule_slopes(found["best"])
    found["horizon"] = cooldown.group_mean(found["slopes"]["slope"], found["slopes"]["schedule"])
    found["match"] = cooldown.group_mean(found["pairs"]["difference"], models)
    found["extend"] = cooldown.group_mean(found["extended"]["gain"], models)
    return [finding.verdict for finding in cooldown.judged(found)]


def test_every_verdict_goes_both_ways():
    assert study(0.001, 0.0, (-0.31, -0.3), 0.01) == ["holds"] * 4
    assert study(0.02, 0.2, (0.31, 0.3), -0.01) == ["contradicted"] * 4
    assert study(0.01, 0.04, (-0.4, 0.1), 0.0) == ["inconclusive"] * 4


def test_runs_whose_final_loss_is_not_their_curves_are_named():
    runs = pd.DataFrame({"run_id": range(4), "name": list("abcd"), "n_params": 1e8, "dataset": "x",
                         "final_val_loss": [3.03, 3.13, 2.93, 3.20]})  # fmt: skip
    curves = pd.DataFrame({"run_id": [0, 1, 2, 3, 3], "iter": 9, "val_loss": [3.0, 3.1, 2.9, 3.05, 3.1]})
    off, named = cooldown.off_their_curves(runs, curves)
    assert list(off) == [False, False, False, True]
    assert named == "d of 100M, final loss 3.200, +0.070 off its curve"


def test_published_runs_pair_at_equal_length(published):
    """Whether cooldowns match cosines is decided by one run of 235, whose final loss is not that of its curve's end."""
    runs = published("lr_schedule_runs")
    off, named = cooldown.off_their_curves(runs, published("lr_schedule_val_curves"))
    assert off.sum() == 2 and named.count("off its curve") == 2
    verdicts = []
    for kept in (runs, runs[~off]):
        pairs = cooldown.equal_length(kept)
        found = cooldown.group_mean(pairs["difference"], pairs["parameters"])
        assert pairs["parameters"].nunique() == 9
        verdicts.append(judge(cooldown.CLAIMS["match"], found.mean, found.interval).verdict)
    assert verdicts == ["inconclusive", "holds"]
    best = cooldown.best_rates(runs).set_index(["schedule", "iterations"])["best lr"]
    assert best["cosine to a tenth", 25000] / best["cosine to a tenth", 50000] > 1.2
    extended = cooldown.extensions(runs)
    assert (extended["gain"] > 0).all() and extended["parameters"].nunique() == 2


@pytest.mark.long
def test_whole(published, tmp_path):
    found = cooldown.analyse(published, resamples=100)
    assert [finding.verdict for finding in found.findings] == ["inconclusive", "inconclusive", "holds", "inconclusive"]
    assert len(found.tables["left-in-or-out"]) == 8
    assert found.tables["published-against-ours"]["published"].notna().sum() == 1
    assert found.draw(tmp_path / "figure").stat().st_size > 10_000


def test_tokens_per_update_are_the_papers_tenth_of_a_million(published):
    runs = published("lr_schedule_runs")
    per_update = runs[["batch", "acc", "world", "seq_len"]].prod(axis=1)
    assert (per_update == 102_400 * np.where(runs["acc"] == 4, 2, 1)).all()
