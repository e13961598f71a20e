"""Repeated data: the published objective, optimum and how flat it is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import huber

from experiments import data_constrained
from experiments.parametric import rows_of
from lab.laws.fit import fit
from lab.laws.intervals import bootstrap, draw
from lab.laws.law import law

PUBLISHED = data_constrained.BASE | data_constrained.REPEATS


@pytest.fixture(scope="module")
def table(published):
    return published("data_constrained_c4")


@pytest.fixture(scope="module")
def analysis(published):
    return data_constrained.analyse(published, resamples=60, wanted=())


def predicted(N, D, U, E, A, B, alpha, R_D, R_N):
    """The law as the paper writes it, anew."""
    U, G = np.minimum(U, D), (A / B) ** (1 / (2 * alpha))
    U_N = np.minimum(G * (U * G), N)
    tokens = U + U * R_D * (1 - np.exp(-(D / U - 1) / R_D))
    parameters = U_N + U_N * R_N * (1 - np.exp(-(N / U_N - 1) / R_N))
    return E + A / parameters**alpha + B / tokens**alpha


def test_the_published_objective_comes_back(table, analysis):
    columns = (table[name].to_numpy(float) for name in ("params", "tokens", "unique_tokens"))
    residuals = np.log(table["val_loss"]) - np.log(predicted(*columns, *PUBLISHED.values()))
    total = huber(1e-3, residuals).sum()
    assert total == pytest.approx(data_constrained.OBJECTIVE, rel=1e-6)  # the base is printed to seven digits
    found = analysis.tables["published-against-ours"].set_index("quantity")["ours"]
    assert found["objective at the published constants"] == pytest.approx(total, rel=1e-9)


def test_no_point_of_a_fine_grid_is_lower(table, analysis):
    found = analysis.tables["published-against-ours"].set_index("quantity")["ours"]
    assert found["objective"] < data_constrained.OBJECTIVE
    columns = [table[name].to_numpy(float) for name in ("params", "tokens", "unique_tokens")]
    limits = np.geomspace(5, 1000, 120)[:, None, None], np.geomspace(0.2, 30, 120)[None, :, None]
    surface = predicted(*columns, *data_constrained.BASE.values(), *limits)
    losses = huber(1e-3, np.log(table["val_loss"].to_numpy()) - np.log(surface)).sum(-1)
    assert found["objective"] <= losses.min() * (1 + 1e-9)


def test_a_search_from_the_published_point_stays_there(analysis):
    near = analysis.tables["optima"].set_index("start").loc["published"]
    assert near["R_D*"] == pytest.approx(PUBLISHED["R_D*"], rel=0.02)
    assert near["objective"] <= data_constrained.OBJECTIVE * (1 + 1e-8)
    assert near["excess"] > 1e-4


def test_verdicts_are_by_cells_and_hardly_determined(analysis):
    intervals = analysis.tables["intervals"].set_index(["quantity", "method"])
    profile = intervals.loc[("R_D*", "profile")]
    assert profile["low"] < 12 and profile["high"] > 200
    for name, finding in zip(data_constrained.CLAIMS, analysis.findings):
        cells = intervals.loc[(name, "cells resampled")]
        assert (finding.interval.low, finding.interval.high) == (cells["low"], cells["high"])
        assert finding.verdict == "inconclusive"


def test_reasons_name_the_numbers(analysis):
    reasons = analysis.tables["published-against-ours"].set_index("quantity")["reason"]
    assert reasons["R_D*"].startswith("theirs is not the optimum: the objective there is 1.3e-03")
    assert "of the resamples set it no limit" in reasons["R_D*"]


def test_figure(analysis, tmp_path):
    assert analysis.draw(tmp_path / "figure").stat().st_size > 30_000


@pytest.mark.parametrize("times, verdict", [(1.0, "holds"), (2.0, "contradicted")])
def test_simulated_repeats_give_their_constants_back(times, verdict):
    """Many repeats and little noise: what the released runs leave open is decided, either way."""
    rng, truth = np.random.default_rng(0), PUBLISHED | {"R_D*": times * PUBLISHED["R_D*"]}
    n, unique = 10 ** rng.uniform(7.5, 9.5, 182), 10 ** rng.uniform(8, 10.5, 182)
    d = unique * 10 ** rng.uniform(0, 2, 182)
    loss = predicted(n, d, unique, *truth.values()) * np.exp(0.003 * rng.standard_normal(182))
    found = fit(law("data-constrained"), rows_of({"N": n, "D": d, "U": unique}, loss), fixed=data_constrained.BASE)
    for name in data_constrained.REPEATS:
        assert found.values[name] == pytest.approx(truth[name], rel=0.05)
    draws = bootstrap(found, draw(182, 60, seed=0)).quantities
    intervals = data_constrained.intervals_of(draws["R_D*"], draws["R_N*"], 182)
    findings = data_constrained.verdicts(found.values, intervals, intervals)
    assert [findings[0].verdict, findings[1].verdict] == [verdict, "holds"]


@pytest.mark.long
def test_every_choice(published):
    choices = data_constrained.analyse(published).tables["choices"]
    assert len(choices) == 9 and (choices["R_D*_low"] <= choices["R_D*"] * (1 + 1e-6)).all()
