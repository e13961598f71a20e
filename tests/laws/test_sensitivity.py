"""Choices and what they move, against closed forms of the line, a planted outlier, the published Chinchilla points."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from lab.laws.fit import fit
from lab.laws.law import law
from lab.laws.objective import Objective
from lab.laws.power import fit_power_law
from lab.laws.sensitivity import largest_movers, sensitivity
from lab.laws.solve import Rows

SQUARES = Objective("least-squares")


def rows(columns, target, weights=None) -> Rows:
    n = len(target)
    weights = np.ones(n) if weights is None else weights
    return Rows(columns, np.asarray(target, float), weights, np.zeros(n, bool))


def line(noise=0.05, n=40, seed=3) -> Rows:
    rng = np.random.default_rng(seed)
    x = np.repeat(np.geomspace(1, 1e3, 8), n // 8)
    return rows({"x": x}, 3 * x**-0.4 * np.exp(noise * rng.standard_normal(n)))


def setting(frame, text):
    found = frame[frame["setting"] == text]
    assert len(found) == 1, list(frame["setting"])
    return found.iloc[0]


def test_every_choice_is_the_fit_of_the_rows_that_it_keeps():
    data = line()
    x, y = data.columns["x"], data.target
    found = fit(law("power"), data, SQUARES)
    frame = sensitivity(found)
    size = np.abs(found.residuals)
    worst, highest = np.argsort(-size)[:5], np.argsort(-y)[:5]
    choices = {
        str(SQUARES): np.ones(40, bool),
        "without the 5 largest residuals": ~np.isin(np.arange(40), worst),
        "without the 5 largest values of y": ~np.isin(np.arange(40), highest),
        "without the smallest tenth of x": x > x.min(),
        "without the largest tenth of x": x < x.max(),
        **{f"x without {size:.4g}": x != size for size in np.unique(x)},
    }
    for text, kept in choices.items():
        row, known = setting(frame, text), fit_power_law(x[kept], y[kept])
        assert row["rows"] == kept.sum() and row["converged"]
        assert row["p"] == pytest.approx(known.exponent, rel=1e-8)
        assert row["c"] == pytest.approx(known.coefficient, rel=1e-8)
        shift = (known.exponent - found.values["p"]) / found.errors["p"]
        assert row["p shift"] == pytest.approx(shift, abs=1e-6)
        shift = np.log(known.coefficient / found.values["c"]) / (found.errors["c"] / found.values["c"])
        assert row["c shift"] == pytest.approx(shift, abs=1e-6)


def test_objectives_agree_with_linear_programming():
    """Least absolute deviations of a line in logs is a linear programme; a tiny delta is nearly that."""
    data = line(noise=0.2, seed=5)
    frame = sensitivity(fit(law("power"), data, Objective("huber", 1e-2)))
    n, X = 40, np.column_stack([np.ones(40), np.log(data.columns["x"])])
    cost = np.concatenate([np.zeros(2), np.ones(2 * n)])
    equal = np.column_stack([X, np.eye(n), -np.eye(n)])
    bounds = [(None, None)] * 2 + [(0, None)] * (2 * n)
    known = linprog(cost, A_eq=equal, b_eq=np.log(data.target), bounds=bounds).x
    assert setting(frame, "lad of log residuals")["p"] == pytest.approx(known[1], abs=1e-5)
    assert setting(frame, "huber of log residuals, delta 0.1")["choice"] == "delta"
    assert setting(frame, "huber of log residuals, delta 0.001")["p"] == pytest.approx(known[1], abs=3e-3)
    squares = fit_power_law(data.columns["x"], data.target)
    assert setting(frame, "least-squares of log residuals")["p"] == pytest.approx(squares.exponent, rel=1e-8)


def test_one_bad_row_is_found_to_decide():
    data = line(noise=1e-3)
    target = data.target.copy()
    target[-1] *= 2.0
    found = fit(law("power"), rows(data.columns, target), SQUARES)
    frame = sensitivity(found)
    assert setting(frame, "without the 1 largest residuals")["p"] == pytest.approx(-0.4, abs=1e-3)
    assert abs(found.values["p"] + 0.4) > 0.005
    assert set(largest_movers(found, frame)) == {"c", "p"}
    assert "p -0.38" in largest_movers(found, frame)["p"] and "standard errors" in largest_movers(found, frame)["p"]


def test_counting_conventions_and_groups():
    """Ten times the x leaves the exponent alone and multiplies the coefficient by 10^-p."""
    data = line()
    labels = np.where(np.arange(40) % 2, "odd", "even")
    found = fit(law("power"), data, SQUARES)
    frame = sensitivity(found, groups={"seed": labels}, counting={"x in tenths": {"x": data.columns["x"] * 10}})
    row = setting(frame, "x in tenths")
    assert row["p"] == pytest.approx(found.values["p"], rel=1e-8)
    assert row["c"] == pytest.approx(found.values["c"] * 10 ** -found.values["p"], rel=1e-8)
    known = fit_power_law(data.columns["x"][::2], data.target[::2])
    assert setting(frame, "seed without odd")["p"] == pytest.approx(known.exponent, rel=1e-8)


def test_too_few_rows_leave_choices_out():
    data = line(n=8)
    kept = np.isin(np.arange(8), (0, 3, 5, 7))
    frame = sensitivity(fit(law("power"), rows(data.columns, data.target, kept * 1.0), SQUARES))
    assert (frame["rows"] > 2).all() and not frame["setting"].str.contains("the 5 largest").any()
    back = setting(frame, "the 4 rows back that were left out")
    assert back["p"] == pytest.approx(fit_power_law(data.columns["x"], data.target).exponent, rel=1e-8)


def test_rows_that_do_not_count_may_hold_anything():
    """Of two rows that were left out, the one with numbers is put back; the other is as if it were not there."""
    data = line()
    kept, x = ~np.isin(np.arange(40), (3, 7)), np.where(np.arange(40) == 3, np.nan, data.columns["x"])
    frame = sensitivity(fit(law("power"), rows({"x": x}, data.target, kept * 1.0), SQUARES))
    back, there = setting(frame, "the 1 rows back that were left out"), np.isfinite(x)
    assert back["p"] == pytest.approx(fit_power_law(x[there], data.target[there]).exponent, rel=1e-8)
    assert frame["converged"].all() and (frame["rows"] <= 39).all()
    sizes = frame["setting"][frame["choice"] == "one size out"]
    assert len(sizes) == len(np.unique(data.columns["x"])) and not sizes.str.contains("nan").any()


def test_no_column_is_left_with_one_value():
    data = line()
    two = rows({"x": np.where(np.arange(40) < 20, 1.0, 100.0)}, data.target)
    frame = sensitivity(fit(law("power"), two, SQUARES))
    assert set(frame["choice"]) == {"headline", "outliers", "objective"}


def test_five_points_decide_the_chinchilla_exponent(published):
    """a = 0.514 without the five highest losses, 0.565 with them (independent re-fits of the published points)."""
    frame = published("chinchilla_svg")
    kept = ~frame.index.isin(frame["loss"].nlargest(5).index)
    columns = {"N": frame["params"].to_numpy(), "D": (frame["flops"] / frame["params"] / 6).to_numpy()}
    found = fit(law("hoffmann"), rows(columns, frame["loss"].to_numpy(), kept * 1.0))
    table = sensitivity(found)
    assert table["converged"].all()
    assert found.derived["a"] == pytest.approx(0.514, abs=5e-4)
    back = setting(table, "the 5 rows back that were left out")
    assert back["a"] == pytest.approx(0.565, abs=2e-3)
    alone = fit(law("hoffmann"), rows(columns, frame["loss"].to_numpy()))
    assert back["a"] == pytest.approx(alone.derived["a"], rel=1e-5)
    published = {"E": 0.02566, "A": 124.52, "alpha": 0.01540}  # 4,000 resamples (Besiroglu et al. 2024, notebook)
    assert {name: found.errors[name] for name in published} == pytest.approx(published, rel=0.25)
