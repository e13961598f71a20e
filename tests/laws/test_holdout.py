"""Prediction as the test, against closed forms and simulated truth."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from lab.laws.errors import LawError, TableError
from lab.laws.fit import fit
from lab.laws.holdout import chosen, compare, hold_out, largest, leave_one_size_out, sizes
from lab.laws.law import Column, Law, exponent, law, positive
from lab.laws.objective import Objective
from lab.laws.power import fit_power_law
from lab.laws.solve import Rows

SQUARES = Objective("least-squares")
PRODUCT = Law(  # no floor: wrong for losses that have one
    name="product",
    formula="L = c / (N^a D^b)",
    source="-",
    columns=(Column("N", "parameters"), Column("D", "tokens")),
    target=Column("loss", "nats per token"),
    parameters=(positive("c"), exponent("a"), exponent("b")),
    predict=lambda p, x: p["c"] * x["N"] ** -p["a"] * x["D"] ** -p["b"],
    linear=("c",),
)


def rows(columns, target, censored=None) -> Rows:
    n = len(target)
    censored = np.zeros(n, bool) if censored is None else censored
    return Rows(columns, np.asarray(target, float), np.ones(n), censored)


def line(noise=0.05, n=12, seed=3) -> Rows:
    rng = np.random.default_rng(seed)
    x = np.geomspace(1, 1e3, n)
    return rows({"x": x}, 3 * x**-0.4 * np.exp(noise * rng.standard_normal(n)))


def surface(noise: float, n: int = 80, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    N, D = 10 ** rng.uniform(7, 10, n), 10 ** rng.uniform(8.5, 11.5, n)
    return rows({"N": N, "D": D}, (1.8 + 480 * N**-0.35 + 2100 * D**-0.37) * np.exp(noise * rng.standard_normal(n)))


def test_errors_are_those_of_a_law_that_never_saw_the_rows():
    data, mask = line(), np.arange(12) >= 9
    found = hold_out(law("power"), data, mask, SQUARES)
    known = fit_power_law(data.columns["x"][:9], data.target[:9])
    expected = np.log(known(data.columns["x"][9:])) - np.log(data.target[9:])
    np.testing.assert_allclose(found.errors, expected, atol=1e-9)
    last = np.log(data.target[8]) - np.log(data.target[9:])
    np.testing.assert_allclose(found.baselines["nearest run"], last, atol=1e-12)
    mean = np.log(data.target[:9]).mean() - np.log(data.target[9:])
    np.testing.assert_allclose(found.baselines["mean of the rest"], mean, atol=1e-12)


def test_the_right_law_extrapolates_and_the_wrong_one_is_told_apart():
    data = surface(0.002)
    budget = 6 * data.columns["N"] * data.columns["D"]
    mask = largest({"C": budget}, "C")
    assert mask.sum() == 8 and budget[mask].min() > budget[~mask].max()
    table = compare([hold_out(each, data, mask, SQUARES) for each in (PRODUCT, law("hoffmann"))])
    assert table["law"][0] == "hoffmann" and table["mean_error"][0] < 0.005
    wrong = table[table["law"] == "product"].iloc[0]
    assert wrong["behind"] > 3 * wrong["behind_error"] and abs(wrong["bias"]) > 0.01
    assert {"nearest run", "mean of the rest"} < set(table["law"])


def test_prediction_intervals_hold_what_they_promise():
    """90 % intervals about extrapolations of a law fitted to 30 noisy points."""
    mask = np.arange(40) >= 30
    shares = [hold_out(law("power"), line(0.1, 40, seed), mask, SQUARES).covered for seed in range(60)]
    assert np.mean(shares) == pytest.approx(0.9, abs=0.04)


def test_each_size_is_predicted_from_the_others():
    data = rows({"x": np.repeat(np.geomspace(1, 100, 4), 3)}, line().target)
    table = leave_one_size_out(fit(law("power"), data, SQUARES), "x")
    assert list(table["rows"]) == [3] * 4 + [12]
    errors = []
    for i, size in enumerate(np.geomspace(1, 100, 4)):
        held = np.isclose(data.columns["x"], size)
        known = fit_power_law(data.columns["x"][~held], data.target[~held])
        errors.append(np.log(known(data.columns["x"][held])) - np.log(data.target[held]))
        assert table["bias"][i] == pytest.approx(errors[-1].mean(), abs=1e-9)
    assert table["mean_error"][4] == pytest.approx(np.abs(np.concatenate(errors)).mean(), abs=1e-9)


def test_sizes_are_values_or_tenths():
    label, names = sizes(np.array([3.0, 1.0, 3.0, 2.0]))
    assert list(label) == [2, 0, 2, 1] and names == ["1", "2", "3"]
    label, names = sizes(np.geomspace(1, 1e4, 100))
    assert len(names) == 10 and list(np.bincount(label)) == [10] * 10


def test_a_lower_bound_that_is_exceeded_is_no_error():
    data = line(0.0)
    held = np.arange(12) >= 10
    bound = data.target * np.where(np.arange(12) == 10, 0.5, np.where(np.arange(12) == 11, 2.0, 1.0))
    found = hold_out(law("power"), rows(data.columns, bound, held), held, SQUARES)
    np.testing.assert_allclose(found.errors, [0.0, -np.log(2.0)], atol=1e-9)


def test_rows_that_do_not_count_may_hold_anything():
    data, mask = line(), np.arange(12) >= 9
    gone = np.isin(np.arange(12), (2, 10))
    columns, weights = {"x": np.where(gone, np.nan, data.columns["x"])}, np.where(gone, 0.0, 1.0)
    found = hold_out(law("power"), Rows(columns, data.target, weights, data.censored), mask, SQUARES)
    known = hold_out(law("power"), rows({"x": data.columns["x"][~gone]}, data.target[~gone]), mask[~gone], SQUARES)
    np.testing.assert_allclose(found.errors, known.errors, rtol=1e-9)
    for name, errors in known.baselines.items():
        np.testing.assert_allclose(found.baselines[name], errors, rtol=1e-9)
    table = leave_one_size_out(found.fit, "x")
    assert len(table) == 9 and table["mean_error"].notna().all()
    with pytest.raises(LawError, match="column x: found NaN"):
        hold_out(law("power"), Rows(columns, data.target, np.ones(12), data.censored), gone, SQUARES)


def test_rules_choose_rows():
    frame = pandas.DataFrame({"N": [1e8, 1e9, 1e9], "D": [1e10, 1e10, 2e10]})
    assert list(chosen(frame, "largest D")) == [False, False, True]
    assert list(chosen(frame, "N > 5e8 and D < 1.5e10")) == [False, True, False]
    for rule, message in (("largest C", "no column 'C'"), ("N * 2", "expected a condition"), ("M > 1", "M")):
        with pytest.raises(TableError, match=message):
            chosen(frame, rule)
    with pytest.raises(TableError, match="one value of N"):
        largest({"N": np.ones(3)}, "N")
    with pytest.raises(TableError, match="column run: found 'a' in 3 rows .*, expected numbers"):
        chosen(frame.assign(run=["a", "b", "c"]), "largest run")
    with pytest.raises(TableError, match="column D: found NaN or nothing in 1 row"):
        chosen(frame.assign(D=[1e10, np.nan, 2e10]), "largest D")


def test_what_cannot_be_held_out_is_refused():
    data = line()
    for mask in (np.zeros(12, bool), np.ones(12, bool)):
        with pytest.raises(LawError, match="expected some of each"):
            hold_out(law("power"), data, mask)
    found = [hold_out(law("power"), data, np.arange(12) >= k, SQUARES) for k in (9, 10)]
    with pytest.raises(LawError, match="different rows"):
        compare(found)


def test_hoffmann_extrapolates_to_the_largest_budgets_of_its_own_data(published):
    """A law with a floor predicts the tenth of the published runs with the most compute better than the nearest run."""
    frame = published("chinchilla_svg").nsmallest(240, "loss")
    columns = {"N": frame["params"].to_numpy(), "D": (frame["flops"] / frame["params"] / 6).to_numpy()}
    found = hold_out(law("hoffmann"), rows(columns, frame["loss"]), largest(frame, "flops"))
    error = np.abs(found.errors).mean()
    assert error < 0.02 and error < np.abs(found.baselines["nearest run"]).mean()
