"""The fitter against closed forms, scipy, and simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.special import huber
from scipy.stats import t as student

from lab.laws import fit as fitting
from lab.laws.bootstrap import percentile_interval
from lab.laws.errors import LawError
from lab.laws.fit import fit
from lab.laws.intervals import bootstrap, draw, profile, settled
from lab.laws.law import Column, Law, exponent, law, positive, real
from lab.laws.objective import Objective
from lab.laws.record import unlimited
from lab.laws.solve import Rows

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
SQUARES = Objective("least-squares")


def rows(columns, target, weights=None, censored=None) -> Rows:
    n = len(target)
    weights = np.ones(n) if weights is None else weights
    return Rows(columns, np.asarray(target, float), weights, np.zeros(n, bool) if censored is None else censored)


def surface(noise: float, seed: int = 0, n: int = 120) -> Rows:
    """Points of the Hoffmann law with log-normal noise."""
    rng = np.random.default_rng(seed)
    N, D = 10 ** rng.uniform(7, 10, n), 10 ** rng.uniform(8.5, 11.5, n)
    loss = TRUTH["E"] + TRUTH["A"] * N ** -TRUTH["alpha"] + TRUTH["B"] * D ** -TRUTH["beta"]
    return rows({"N": N, "D": D}, loss * np.exp(noise * rng.standard_normal(n)))


def line(noise: float = 0.05, n: int = 12, seed: int = 3) -> Rows:
    rng = np.random.default_rng(seed)
    x = np.geomspace(1, 1e3, n)
    return rows({"x": x}, 3 * x**-0.4 * np.exp(noise * rng.standard_normal(n)))


@pytest.mark.parametrize("name", ["huber", "least-squares", "lad"])
def test_noise_free_points_give_their_constants_back(name):
    found = fit(law("hoffmann"), surface(0.0), Objective(name))
    for constant, value in TRUTH.items():
        assert found.values[constant] == pytest.approx(value, rel=1e-6)
    assert found.objective_value < 1e-12


def test_least_squares_agree_with_scipy():
    data = surface(0.02)
    found = fit(law("hoffmann"), data, SQUARES)

    def residual(t):
        predicted = t[0] + np.exp(t[1]) * data.columns["N"] ** -t[3] + np.exp(t[2]) * data.columns["D"] ** -t[4]
        return np.log(predicted) - np.log(data.target)

    start = [TRUTH["E"], np.log(TRUTH["A"]), np.log(TRUTH["B"]), TRUTH["alpha"], TRUTH["beta"]]
    theirs = least_squares(residual, start, xtol=1e-15, ftol=1e-15, gtol=1e-15, x_scale="jac")
    assert found.objective_value <= theirs.cost * (1 + 1e-10)
    assert found.values["alpha"] == pytest.approx(theirs.x[3], rel=1e-5)
    assert found.certificate.converged and found.certificate.identified


def test_the_objective_is_the_papers_own_sum():
    data = surface(0.02)
    for objective, total in (
        (Objective("huber", 1e-3), lambda r: huber(1e-3, r).sum()),
        (SQUARES, lambda r: 0.5 * (r**2).sum()),
        (Objective("lad"), lambda r: np.abs(r).sum()),
    ):
        found = fit(law("hoffmann"), data, objective)
        assert found.objective_value == pytest.approx(total(found.residuals), rel=1e-6)


@pytest.mark.parametrize("name", ["huber", "lad"])
def test_no_nearby_point_is_better(name):
    """Of a convex-by-pieces objective, the optimum beats steps along every axis and many random directions."""
    data = surface(0.02)
    found = fit(law("hoffmann"), data, Objective(name))
    rng = np.random.default_rng(0)

    def total(theta):
        E, A, B, alpha, beta = theta
        r = np.log(np.exp(E) + np.exp(A) * data.columns["N"] ** -np.exp(alpha)
                   + np.exp(B) * data.columns["D"] ** -np.exp(beta)) - np.log(data.target)  # fmt: skip
        return huber(1e-3, r).sum() if name == "huber" else np.abs(r).sum()

    here = total(found.theta)
    assert here == pytest.approx(found.objective_value, rel=1e-6)
    for size in (1e-2, 1e-4, 1e-6):
        steps = size * rng.standard_normal((200, 5))
        assert min(total(found.theta + step) for step in steps) >= here * (1 - 1e-9)


def test_a_fit_does_not_depend_on_units():
    data = surface(0.02)
    thousands = rows({"N": data.columns["N"] / 1e6, "D": data.columns["D"] / 1e9}, data.target)
    a, b = (fit(law("hoffmann"), each) for each in (data, thousands))
    assert b.objective_value == pytest.approx(a.objective_value, rel=1e-8)
    assert b.values["alpha"] == pytest.approx(a.values["alpha"], rel=1e-5)
    assert b.values["A"] * 1e6 ** b.values["alpha"] == pytest.approx(a.values["A"], rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_profile_of_a_straight_line_is_students_interval(seed):
    """Where the law is linear in its coordinates, the profile interval is exact and known in closed form.

    It is Student's, or, if that is wider, the one with White's errors (1980, with n / (n - p)).
    """
    data = line(seed=seed)
    found = fit(law("power"), data, SQUARES)
    ours = profile(found, level=0.9)
    X = np.stack([np.ones(12), np.log(data.columns["x"])], 1)
    y = np.log(data.target)
    inverse = np.linalg.inv(X.T @ X)
    best = inverse @ X.T @ y
    r = y - X @ best
    usual = np.sqrt(np.diag(inverse) * (r**2).sum() / 10)
    white = np.sqrt(np.diag(inverse @ (X.T * r**2) @ X @ inverse) * 12 / 10)
    reach = student.ppf(0.95, 10) * np.maximum(usual, white)
    for name, centre, half in zip(("c", "p"), best, reach):
        low, high = ours[name].low, ours[name].high
        low, high = (np.log(low), np.log(high)) if name == "c" else (low, high)
        assert (low, high) == pytest.approx((centre - half, centre + half), rel=1e-3)


def test_weights_count_rows():
    data = line()
    counts = np.array([0, 1, 2, 3, 1, 0, 2, 1, 1, 1, 4, 1], float)
    weighted = fit(law("power"), rows(data.columns, data.target, counts), SQUARES)
    index = np.repeat(np.arange(12), counts.astype(int))
    repeated = fit(law("power"), rows({"x": data.columns["x"][index]}, data.target[index]), SQUARES)
    assert weighted.values == pytest.approx(repeated.values, rel=1e-8)


@pytest.mark.parametrize("factor", [0.01, 100.0])
@pytest.mark.parametrize("name", ["huber", "least-squares", "lad"])
def test_only_ratios_of_weights_count(name, factor):
    data, weights = line(n=20), np.random.default_rng(0).uniform(0.2, 3, 20)
    ours, scaled = (
        fit(law("power"), rows(data.columns, data.target, w), Objective(name)) for w in (weights, factor * weights)
    )
    np.testing.assert_allclose(scaled.theta, ours.theta, rtol=1e-6)
    np.testing.assert_allclose(scaled.covariance, ours.covariance, rtol=1e-5)
    np.testing.assert_allclose(scaled.alike_covariance, ours.alike_covariance, rtol=1e-5)
    known = profile(ours, level=0.9)
    for constant, interval in profile(scaled, level=0.9).items():
        assert (interval.low, interval.high) == pytest.approx((known[constant].low, known[constant].high), rel=1e-4)


def test_every_resample_is_solved_to_its_optimum():
    data = surface(0.02)
    found = fit(law("hoffmann"), data)
    counts = draw(len(data), 40, seed=1)
    resamples = bootstrap(found, counts)
    assert resamples.converged == 1.0
    for i in (0, 7, 23):
        alone = fit(law("hoffmann"), rows(data.columns, data.target, counts[i]))
        assert resamples.quantities["alpha"][i] == pytest.approx(alone.values["alpha"], rel=1e-5)


def custom(formula, parameters, predict) -> Law:
    columns, target = (Column("x", "any"),), Column("y", "any")
    return Law("custom", formula, "-", columns, target, parameters, predict, ("c",), SQUARES)


def test_a_constant_that_resamples_run_to_zero_has_an_open_interval():
    """A power law has no offset: searches for one end where it is lost in rounding, not at 0."""
    data = line(n=30)
    found = fit(law("power-offset"), data, SQUARES)
    resamples = bootstrap(found, draw(30, 100, seed=0))
    assert resamples.quantities["E"].min() > 0
    interval = resamples.intervals(0.9, 30)["E"]
    assert interval.low == 0 == profile(found, ["E"], 0.9)["E"].low and 0 < interval.high < np.inf
    assert unlimited(found, resamples.intervals(0.9, 30)) == [
        "not identified: the rows set no limit to E on one side or both"
    ]


def test_a_constant_that_resamples_run_to_infinity_has_an_open_interval():
    x = np.geomspace(1, 1e3, 30)
    data = rows({"x": x}, 3 * np.exp(0.05 * np.random.default_rng(0).standard_normal(30)))
    parameters = positive("c"), positive("K", starts=(10.0, 1e3))
    found = fit(custom("y = c / (1 + x / K)", parameters, lambda p, x: p["c"] / (1 + x["x"] / p["K"])), data)
    interval = bootstrap(found, draw(30, 100, seed=0)).intervals(0.9, 30)["K"]
    assert interval.high == np.inf == profile(found, ["K"], 0.9)["K"].high and 1e3 < interval.low < 1e6


def test_the_exponent_of_a_term_that_resamples_lose_is_no_answer():
    """Losses that rise leave nothing of a term that falls."""
    x = np.geomspace(1, 1e3, 30)
    data = rows({"x": x}, 3 * x**0.2 * np.exp(0.01 * np.random.default_rng(0).standard_normal(30)))
    parameters = positive("c"), positive("A"), exponent("alpha")
    found = fit(custom("y = c + A / x^alpha", parameters, lambda p, x: p["c"] + p["A"] * x["x"] ** -p["alpha"]), data)
    resamples = bootstrap(found, draw(30, 100, seed=0))
    assert (resamples.unlimited["A"] == 0).all() and np.isnan(resamples.unlimited["alpha"]).all()
    assert resamples.intervals(0.9, 30)["alpha"].reason == "only 0 of 100 resamples gave an answer (50 needed)"


def test_constants_that_are_limited_have_the_percentiles_of_their_resamples():
    """Those that are held fixed are none of the constants that small samples pay for."""
    data = surface(0.02)
    for fixed in ({}, {"alpha": 0.35}):
        resamples = bootstrap(fit(law("hoffmann"), data, SQUARES, fixed=fixed), draw(len(data), 60, seed=0))
        for name, interval in resamples.intervals(0.9, 12).items():
            if name not in fixed:
                assert interval == percentile_interval(resamples.quantities[name], 0.9, 12, 5 - len(fixed))
    assert resamples.intervals(0.9, 12)["alpha"].reason == "held fixed"


def test_groups_are_drawn_whole():
    counts = draw(6, 50, seed=0, groups=np.array(["a", "a", "b", "b", "b", "c"]))
    assert (counts[:, 0] == counts[:, 1]).all() and (counts[:, 2] == counts[:, 4]).all()
    assert (counts[:, [0, 2, 5]].sum(1) == 3).all()


def test_a_constant_that_the_data_do_not_hold_is_said_not_to_be_identified():
    """A steepening curve has no floor: E runs to its bound."""
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7, 10, 60), 10 ** rng.uniform(9, 11, 60)
    loss = (40 * N**-0.2 + 90 * D**-0.2 - 0.3) * np.exp(0.001 * rng.standard_normal(60))
    found = fit(law("hoffmann"), rows({"N": N, "D": D}, loss))
    assert "E" in found.certificate.at_bound
    assert not found.certificate.identified
    assert any("not identified" in line for line in found.certificate.warnings)


def test_censored_rows_push_only_upwards():
    data = line(noise=0.0)
    censored = np.zeros(12, bool)
    censored[-3:] = True
    below = np.where(censored, data.target / 5, data.target)  # true values lie above what was seen
    found = fit(law("power"), rows(data.columns, below, censored=censored), SQUARES)
    assert found.values["p"] == pytest.approx(-0.4, rel=1e-6)
    above = np.where(censored, data.target * 5, data.target)
    found = fit(law("power"), rows(data.columns, above, censored=censored), SQUARES)
    assert found.values["p"] > -0.4 + 0.02


@pytest.mark.parametrize("name", ["huber", "least-squares"])
def test_a_lower_bound_that_is_exceeded_counts_for_nothing(name):
    """The fit, its errors and its intervals are those without the row, but for the last digits of the search."""
    data, objective = line(), Objective(name, 0.03)
    bounds = np.arange(12) % 4 == 1
    seen = np.where(bounds, data.target / 2, data.target)
    found = fit(law("power"), rows(data.columns, seen, censored=bounds), objective)
    alone = fit(law("power"), rows(data.columns, data.target, ~bounds * 1.0), objective)
    assert (found.residuals[bounds] == 0).all() and (found.counted == ~bounds).all()
    np.testing.assert_allclose(found.residuals[~bounds], alone.residuals[~bounds], atol=1e-7)
    assert found.degrees_of_freedom == alone.degrees_of_freedom == 7
    dispersions = [
        each.dispersion * each.scale**2 for each in (found, alone)
    ]  # least squares have a scale of their own
    assert dispersions[0] == pytest.approx(dispersions[1], rel=1e-6)
    np.testing.assert_allclose(found.covariance, alone.covariance, rtol=1e-6)
    for constant, interval in profile(alone, level=0.9).items():
        ours = profile(found, level=0.9)[constant]
        assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-3)


def test_intervals_of_censored_rows_hold_what_they_promise():
    """Ten of 30 true values lie above a bound, and what would be above it is seen as the bound."""
    x, draws = np.geomspace(1, 1e3, 30), 200
    true = 3 * x**-0.4
    bound = 0.999 * np.sort(true)[-10]
    held = {"c": 0, "p": 0}
    for seed in range(draws):
        y = true * np.exp(0.05 * np.random.default_rng(seed).standard_normal(30))
        found = fit(law("power"), rows({"x": x}, np.minimum(y, bound), censored=y > bound), SQUARES)
        for constant, interval in profile(found, level=0.9).items():
            held[constant] += interval.contains({"c": 3.0, "p": -0.4}[constant])
    assert all(0.85 <= share / draws <= 0.95 for share in held.values()), held


def test_lower_bounds_alone_are_refused():
    data = line()
    with pytest.raises(LawError, match="lower bounds alone"):
        fit(law("power"), rows(data.columns, data.target, censored=np.ones(12, bool)))


def test_rows_that_do_not_count_may_hold_anything():
    """NaN and zero in columns and target of rows of weight 0: fit, resamples and profiles do not see them."""
    data = surface(0.02)
    kept = np.arange(120) % 8 > 0
    columns = {"N": np.where(kept, data.columns["N"], np.nan), "D": np.where(kept, data.columns["D"], 0.0)}
    found = fit(law("hoffmann"), rows(columns, np.where(kept, data.target, np.nan), kept * 1.0))
    expected = fit(law("hoffmann"), rows(data.columns, data.target, kept * 1.0))
    assert found.certificate.converged and (found.theta == expected.theta).all()
    resamples, known = (bootstrap(each, draw(120, 20, seed=0)) for each in (found, expected))
    assert resamples.converged == 1.0 and (resamples.theta == known.theta).all()
    assert profile(found, ["a"]) == profile(expected, ["a"])


def winding(start: float) -> tuple[Law, Rows]:
    """A law with an optimum in each turn, the best of them near m = 0, searched from one place."""
    import jax.numpy as jnp

    turns = Law(
        name="winding",
        formula="y = u cos(2 pi m) + v sin(2 pi m) + m w",
        source="-",
        columns=tuple(Column(name, "any", positive=False) for name in "uvw"),
        target=Column("y", "any"),
        parameters=(real("m", starts=(start,)),),
        predict=lambda p, x: (
            jnp.cos(2 * jnp.pi * p["m"]) * x["u"] + jnp.sin(2 * jnp.pi * p["m"]) * x["v"] + p["m"] * x["w"]
        ),
        objective=Objective("least-squares", space="linear"),
    )
    rng = np.random.default_rng(0)
    columns = {name: rng.standard_normal(20) for name in "uvw"}
    return turns, rows(columns, columns["u"] + 0.1 * rng.standard_normal(20))


def test_a_lower_objective_on_a_profile_becomes_the_fit():
    turns, data = winding(3.0)
    stuck = fit(turns, data)
    assert stuck.values["m"] == pytest.approx(3, abs=0.1) and stuck.certificate.converged
    with pytest.warns(UserWarning, match="law winding: profiles met 0.0113"):
        profile(stuck, level=0.9)
    found, intervals = settled(stuck, level=0.9)
    best = fit(*winding(0.0))
    assert found.objective_value == pytest.approx(best.objective_value, rel=1e-9)
    assert found.objective_value < 0.02 * stuck.objective_value
    assert intervals["m"].contains(0) and intervals["m"].half_width < 0.05
    assert found.certificate.lower is None and not found.certificate.warnings


def test_a_fit_that_stays_above_its_profile_says_so_first(monkeypatch):
    stuck = fit(*winding(3.0))
    monkeypatch.setattr(fitting, "fit", lambda *_: stuck)
    found, _ = settled(stuck, level=0.9)
    assert found.certificate.lower == pytest.approx(87, abs=1)
    assert found.certificate.warnings[0].startswith("not the best optimum: profiles met an objective")


def test_each_other_basin_is_listed_once():
    """Of six searches two end in each of three turns; the two that are not the best are its rivals."""
    turns, data = winding(0.0)
    starts = [{"m": m} for m in (0.01, 1.0, 1.01, -1.0, -1.02)]
    shallow = rows(data.columns | {"w": 0.01 * data.columns["w"]}, data.target)
    found = fit(turns, shallow, starts=starts)
    assert found.certificate.starts == 6 and found.certificate.reached == pytest.approx(2 / 6)
    assert len(found.others) == 2
    assert sorted(round(m) for m in (found.values["m"], *found.others[:, 0])) == [-1, 0, 1]


def test_fixed_constants_stay():
    found = fit(law("hoffmann"), surface(0.02), fixed={"alpha": 0.3})
    assert found.values["alpha"] == pytest.approx(0.3, rel=1e-12)
    assert found.covariance[found.law.names.index("alpha")].sum() == 0


def test_what_follows_from_fixed_constants_alone_has_no_interval():
    found = fit(law("hoffmann"), surface(0.02), SQUARES, fixed={"alpha": 0.35, "beta": 0.37})
    for intervals in (profile(found), bootstrap(found, draw(120, 60, seed=0)).intervals(0.9, 120)):
        held = {name for name, interval in intervals.items() if interval.reason == "held fixed"}
        assert held == {"alpha", "beta", "a"}
        assert all(intervals[name].known for name in ("E", "A", "B")) and unlimited(found, intervals) == []


@pytest.mark.parametrize(
    "fixed, words",
    [
        ({"gamma": 1.0}, "no constant 'gamma' to hold fixed, expected E, A, B, alpha, beta"),
        ({"alpha": 0.0}, "alpha = 0 to hold fixed, expected a finite number above 0"),
        ({"E": np.nan}, "E = nan"),
        (TRUTH, "all its constants held fixed"),
    ],
)
def test_constants_that_cannot_be_held_are_refused(fixed, words):
    with pytest.raises(LawError, match=words):
        fit(law("hoffmann"), surface(0.02), fixed=fixed)


def test_rows_that_cannot_determine_a_law_are_refused():
    with pytest.raises(LawError, match="found 4 rows, expected at least 5"):
        fit(law("hoffmann"), surface(0.0, n=4))
    bad = surface(0.0, n=20)
    with pytest.raises(LawError, match="N: found 0"):
        fit(law("hoffmann"), rows({**bad.columns, "N": np.zeros(20)}, bad.target))
    with pytest.raises(LawError, match="NaN"):
        fit(law("hoffmann"), rows(bad.columns, np.full(20, np.nan)))


@settings(max_examples=10, deadline=None)
@given(st.floats(-1.5, 1.5).filter(lambda p: abs(p) > 0.05), st.floats(-8, 8))
def test_any_power_law_is_found(p, log_c):
    x = np.geomspace(0.1, 1e4, 15)
    found = fit(law("power"), rows({"x": x}, np.exp(log_c) * x**p), SQUARES)
    assert found.values["p"] == pytest.approx(p, rel=1e-7)
    assert np.log(found.values["c"]) == pytest.approx(log_c, abs=1e-6)
