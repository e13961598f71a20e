"""Cooldown runs: made-up runs whose differences are known, and the published table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments import cooldown


def grid(exponent):
    """Runs of two schedules whose loss is a parabola in ln lr around 0.001 (length / 20,000)^exponent."""
    rows = []
    for group, length in ((g, n) for g in ("ann124-0.2", "cos-10-124m") for n in (15_000, 25_000, 50_000)):
        best = 1e-3 * (length / 20_000) ** exponent * (1.2 if group.startswith("cos") else 1.0)
        for lr in cooldown.RATES:
            loss = 3 + 0.05 * np.log(lr / best) ** 2
            rows.append({"group": group, "decay_type": "linear", "iterations": length, "lr": lr,
                         "final_val_loss": loss})  # fmt: skip
    return pd.DataFrame(rows)


def test_the_slope_of_the_best_rate_is_that_of_the_runs():
    slope, interval, regret = cooldown.horizon_slope(cooldown.best_rates(grid(-0.3)))
    assert slope == pytest.approx(-0.3, rel=1e-9)
    assert interval.half_width < 1e-6
    assert regret == pytest.approx(0.05 * (0.3 * np.log(50 / 15)) ** 2, rel=1e-6)


def test_runs_whose_final_loss_is_not_their_curves_are_left_out():
    runs = pd.DataFrame({"run_id": range(4), "name": list("abcd"), "n_params": 1e8, "dataset": "x",
                         "final_val_loss": [3.03, 3.13, 2.93, 3.20]})  # fmt: skip
    curves = pd.DataFrame({"run_id": [0, 1, 2, 3, 3], "iter": 9, "val_loss": [3.0, 3.1, 2.9, 3.05, 3.1]})
    kept, said = cooldown.consistent(runs, curves)
    assert list(kept["name"]) == ["a", "b", "c"] and said.endswith("d of 100M, final loss 3.200, +0.070 off its curve")


def test_published_runs_pair_at_equal_length(published):
    table = published("lr_schedule_runs")
    runs, said = cooldown.consistent(table, published("lr_schedule_val_curves"))
    assert len(table) - len(runs) == 2 and said.count("off its curve") == 2
    pairs = cooldown.equal_length(runs)
    mean, interval = cooldown.by_model(pairs["difference"], pairs["parameters"])
    assert len(pairs) == 24 and pairs["parameters"].nunique() == 9
    assert pairs["difference"].abs().max() < 0.011
    assert interval.contains(0.0) and abs(mean) < 0.003
    best = cooldown.best_rates(runs).set_index(["schedule", "iterations"])["best lr"]
    assert best["cos-10-124m sqrt", 25000] / best["cos-10-124m sqrt", 50000] > 1.2
    assert (cooldown.extensions(runs)["gain"] > 0).all()


def test_tokens_per_update_are_the_papers_tenth_of_a_million(published):
    runs = published("lr_schedule_runs")
    per_update = runs[["batch", "acc", "world", "seq_len"]].prod(axis=1)
    assert (per_update == 102_400 * np.where(runs["acc"] == 4, 2, 1)).all()
