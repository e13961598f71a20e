"""Porian et al.'s five steps against their own optima and exponents, and the estimators on a surface that is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments import discrepancies
from experiments.isoflop_estimators import APPROACH_3, AUTHORS, Estimate


@pytest.fixture(scope="module")
def analysis(published):
    return discrepancies.analyse(published, estimators=())


@pytest.fixture(scope="module")
def whole(published):
    return discrepancies.analyse(published)


@pytest.mark.parametrize(
    "estimators", [("parabola, all sizes", APPROACH_3), pytest.param(discrepancies.ESTIMATORS, marks=pytest.mark.long)]
)
def test_estimators_find_the_exponent_of_a_symmetric_surface(estimators):
    """alpha = beta: a = 1/2 exactly, and valleys are symmetric, so that parabolas are right as well."""
    flops = np.repeat(10.0 ** np.arange(17, 23), 9)
    n = np.sqrt(flops / 6) * np.tile(np.geomspace(1 / 5, 5, 9), 6)
    loss = 1.8 + 400 * n**-0.33 + 400 * (flops / 6 / n) ** -0.33
    runs = pd.DataFrame({"flops": flops, "n": n, "tokens": flops / 6 / n, "loss": loss})
    found = discrepancies.estimates(runs, np.ones(len(runs), bool), estimators)
    for name, estimate in found.items():
        assert estimate.exponent == pytest.approx(0.5, abs=0.01), name
    assert found[APPROACH_3].exponent == pytest.approx(0.5, abs=1e-6)


def test_the_authors_rule_gives_the_authors_exponents(analysis):
    """Weighted medians, and the ends of the intervals, to what other noise draws move."""
    table = analysis.tables["published-against-ours"]
    exact = table[table["quantity"].isin(["a, weighted", "a, unweighted"])]
    np.testing.assert_allclose(exact["ours"], exact["published"], atol=0.004)
    ends = table[table["quantity"].isin(["a, low end", "a, high end"])]
    np.testing.assert_allclose(ends["ours"], ends["published"], atol=0.006)
    printed = exact[exact["quantity"] == "a, weighted"]["published"]
    np.testing.assert_allclose(printed, [0.835, 0.706, 0.602, 0.571, 0.497], atol=5e-4)


def test_optima_of_every_budget(analysis):
    """ln N* within two points of the authors' grid; budgets without an optimum are the authors' too."""
    table = analysis.tables["optima"]
    assert (table["ours"].isna() == table["published"].isna()).all()
    assert table["log_ratio"].abs().max() < 0.04 and table["log_ratio"].abs().median() < 1e-6
    assert table["points_apart"].abs().max() <= table["points_between_draws"].max() <= 2
    ratio = (table["log_std"] / table["published_log_std"]).dropna()
    assert ratio.median() == pytest.approx(1.0, abs=1e-6) and table["on_floor"].mean() > 0.5


def test_estimators_and_intervals(analysis):
    table = analysis.tables["estimators"]
    assert set(table["estimator"]) == {AUTHORS, discrepancies.UNWEIGHTED} and len(table) == 10
    mine = table[table["estimator"] == AUTHORS]
    assert (mine["high"] - mine["low"] > mine["noise_high"] - mine["noise_low"]).all()
    assert table["exponent"].between(0.2, 1.2).all()


@pytest.mark.long
def test_every_estimator(whole):
    table = whole.tables["estimators"]
    assert set(table["estimator"]) == set(discrepancies.ESTIMATORS) and len(table) == 45
    assert table["exponent"].between(0.2, 1.2).all()


def test_verdicts_come_out_both_ways():
    """Exponents as printed, then all of them Chinchilla's: the first and every fall but none are contradicted."""
    printed = [value for _, value in discrepancies.STEPS.values()]
    for exponents, equals, falls in (
        (printed, ["holds"] * 5, ["holds"] * 4),
        ([0.5] * 5, ["contradicted"] * 4 + ["holds"], ["inconclusive"] * 4),
        (printed[::-1], ["contradicted"] * 2 + ["holds"] + ["contradicted"] * 2, ["contradicted"] * 4),
    ):
        found = {label: {AUTHORS: Estimate(value, 0.003, 10)} for label, value in zip(discrepancies.STEPS, exponents)}
        verdicts = [finding.verdict for finding in discrepancies.verdicts(found)]
        assert verdicts[:5] == equals and verdicts[5:] == falls


def test_reasons_count_the_medians():
    points, between = np.array([0.0, 0.0, 1.0, np.nan]), np.array([0.0, 1.0, np.nan])
    assert discrepancies.reason_of_medians(points[:2], between).startswith("all 2 medians")
    said = discrepancies.reason_of_medians(points, between)
    assert said.startswith("1 of 3 medians") and "no more than 20 other draws" in said and said.endswith("1.0")
    assert "grid in ln N: more than 20 other draws" in discrepancies.reason_of_medians(np.array([0.0, -7.0]), between)
    assert "grid in ln N: more than 20 other draws" in discrepancies.reason_of_medians(points, np.zeros(3))


def test_verdicts_and_figure(analysis, tmp_path):
    values, falls = analysis.findings[:5], analysis.findings[5:]
    assert [finding.claim.kind for finding in analysis.findings] == ["equals"] * 5 + ["sign"] * 4
    assert all(finding.verdict == "holds" for finding in values)
    assert [finding.verdict for finding in falls][:2] == ["holds", "holds"]
    assert analysis.draw(tmp_path / "figure").stat().st_size > 20_000
