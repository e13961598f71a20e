from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import Akima1DInterpolator

from lab.laws import isoflop
from lab.laws.errors import LawError
from lab.laws.isoflop import Noise, allocation, budgets_of, nearest, optima

E, A, B, ALPHA, BETA = 1.82, 482.0, 2085.0, 0.348, 0.366
BUDGETS = 10.0 ** np.arange(17, 22)


def best(flops, alpha=ALPHA, beta=BETA):
    """N* of the surface, in closed form: alpha A / N^alpha = beta B / (C / 6 N)^beta."""
    return (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta))


def surface(sizes, alpha=ALPHA, beta=BETA, budgets=BUDGETS):
    """Budgets of the surface, at sizes(C)."""
    flops = np.concatenate([np.full(len(sizes(c)), c) for c in budgets])
    n = np.concatenate([sizes(c) for c in budgets])
    return budgets_of(flops, n, E + A * n**-alpha + B * (flops / (6 * n)) ** -beta)


def centred(reach=4.0, count=9, **exponents):
    return lambda flops: best(flops, **exponents) * np.geomspace(1 / reach, reach, count)


def test_saturating_valleys_give_the_closed_form():
    found = optima(surface(centred(reach=6.0)), "saturating", copies=50)
    np.testing.assert_allclose(found.log_n, np.log(best(BUDGETS)), atol=1e-5)
    np.testing.assert_allclose(found.log_n + found.log_d, np.log(BUDGETS / 6), atol=1e-3)
    off = optima(surface(lambda c: best(c) * np.geomspace(0.5, 60, 8)), "saturating", copies=50)
    np.testing.assert_allclose(off.log_n, np.log(best(BUDGETS)), atol=1e-5)


def test_akima_is_the_interpolation_of_ln_loss():
    budgets = surface(centred())
    found = optima(budgets, "akima", copies=50)
    for budget, log_n in zip(budgets, found.log_n):
        stationary = Akima1DInterpolator(budget.log_n, np.log(budget.loss)).derivative().roots()
        assert np.abs(stationary - log_n).min() < 0.02 * np.diff(budget.log_n)[0]
    np.testing.assert_allclose(found.log_n, np.log(best(BUDGETS)), atol=0.06)
    coarse = optima(budgets, "akima-grid", copies=50)
    assert (np.abs(coarse.log_n - found.log_n) <= 0.51 * np.ptp(budgets[0].log_n) / (8 * 25 - 1)).all()


def test_parabola_of_a_symmetric_valley_is_exact_and_of_an_asymmetric_one_is_not():
    """Equal exponents: both sides of the valley alike. Else the vertex moves to the flatter side: by one factor where
    windows sit alike about every optimum (exponent right, intercept wrong), by one that drifts where all budgets share
    their sizes (exponent wrong)."""
    symmetric = optima(surface(centred(beta=ALPHA), beta=ALPHA), "parabola", copies=50)
    np.testing.assert_allclose(symmetric.log_n, np.log(best(BUDGETS, beta=ALPHA)), atol=1e-9)

    skewed = {"alpha": 0.5, "beta": 0.25}
    true = 0.25 / 0.75
    found = optima(surface(centred(reach=8.0, **skewed), **skewed), "parabola", copies=50)
    shift = found.log_n - np.log(best(BUDGETS, **skewed))
    assert np.ptp(shift) < 1e-9 and abs(shift[0]) > 0.05
    assert allocation(found, weighted=False).n.exponent == pytest.approx(true, abs=1e-9)

    sizes = np.geomspace(best(BUDGETS[0], **skewed) / 8, best(BUDGETS[-1], **skewed) * 8, 15)
    fixed = surface(lambda c: sizes, **skewed)
    drifted = allocation(optima(fixed, "parabola", copies=50), weighted=False).n.exponent
    assert abs(drifted - true) > 0.02
    near = allocation(optima(nearest(fixed, 5), "parabola", copies=50), weighted=False).n.exponent
    assert abs(near - true) < 0.5 * abs(drifted - true)
    exact = optima(fixed, "saturating", copies=50)
    assert allocation(exact).n.exponent == pytest.approx(true, abs=1e-5)


@pytest.mark.parametrize("method", ["parabola", "saturating"])
def test_log_std_is_the_scatter_of_optima_over_fresh_noise(method):
    """The parabola's against the linear error of its vertex, the other's against optima of noise drawn apart."""
    budgets = surface(centred(reach=3.0))
    found = optima(budgets, method, Noise(0.002), copies=400, seed=1, floor=0.0)
    if method == "parabola":
        u = budgets[0].log_n - budgets[0].log_n.mean()
        bend, slope, _ = np.polyfit(u, budgets[0].loss, 2)
        pull = np.linalg.pinv(np.stack([u**2, u, np.ones_like(u)], 1))
        vertex = -0.5 * (pull[1] / bend - slope * pull[0] / bend**2)
        assert found.log_std[0] == pytest.approx(0.002 * np.sqrt((vertex**2).sum()), rel=0.12)
    rng, again = np.random.default_rng(9), []
    for _ in range(60):
        noisy = [isoflop.Budget(b.flops, b.log_n, b.loss + rng.normal(0, 0.002, 9), b.log_d) for b in budgets]
        again.append(optima(noisy, method, copies=2).log_n)
    assert np.median(found.log_std / np.std(again, 0)) == pytest.approx(1.0, abs=0.25)


def test_floor_and_lost_copies_set_the_weights():
    quiet = optima(surface(centred()), "akima", Noise(1e-9), copies=20)
    np.testing.assert_allclose(quiet.log_std, quiet.floor)
    spacing = np.log(4.0**2) / 8
    np.testing.assert_allclose(quiet.floor, 0.33 * spacing, rtol=0.01)
    near_edge = surface(lambda c: best(c) * np.geomspace(0.97, 8, 8))
    found = optima(near_edge, "akima", Noise(0.01), copies=400)
    share = np.isfinite(found.samples).mean(1)
    ok = found.usable
    assert ok.any() and (share < 0.95).all()
    scatter = np.maximum(np.nanstd(found.samples, 1), found.floor)
    np.testing.assert_allclose(found.log_std[ok], (scatter / share)[ok])


def test_allocation_is_weighted_least_squares_in_logs():
    found = optima(surface(centred()), "akima", copies=200)
    law = allocation(found).n
    slope, level = np.polyfit(np.log(found.flops), found.log_n, 1, w=1 / found.log_std)
    assert law.exponent == pytest.approx(slope) and law.log_coefficient == pytest.approx(level)
    both = allocation(found)
    assert both.n.exponent + both.d.exponent == pytest.approx(1.0, abs=1e-3)
    assert both.noise_interval().contains(np.mean(both.exponents))
    medians = allocation(found, weighted=False, centre="median").n
    assert medians.exponent == pytest.approx(np.polyfit(np.log(found.flops), found.median, 1)[0])


def test_noise_model():
    loss = np.array([2.0, 3.0, np.sqrt(21.0), 7.0, 9.0])
    found = Noise(0.002, 0.05).deviation(loss)
    np.testing.assert_allclose(found, [0.002, 0.002, np.sqrt(0.002 * 0.05), 0.05, 0.05])
    np.testing.assert_allclose(Noise(0.003).deviation(loss), 0.003)


def test_edges_and_bad_input_are_said():
    rising = surface(lambda c: best(c) * np.geomspace(1.5, 20, 8))
    found = optima(rising, "akima", copies=50)
    assert not found.usable.any() and "between its smallest and largest" in found.reasons[0]
    with pytest.raises(LawError, match="found 0 budgets with an optimum, expected 3"):
        allocation(found)
    with pytest.raises(LawError, match="expected one of akima"):
        optima(rising, "spline")
    with pytest.raises(LawError, match="at most 3 sizes"):
        optima(surface(centred(count=3)))
    with pytest.raises(LawError, match="column loss"):
        budgets_of([1e18] * 4, [1e6, 2e6, 3e6, 4e6], [3.0, np.nan, 2.9, 3.0])


def test_the_lowest_of_several_losses_of_a_size_counts():
    (budget,) = budgets_of([1e18] * 5, [2e6, 1e6, 4e6, 8e6, 2e6], [3.1, 3.2, 3.0, 3.3, 2.9])
    np.testing.assert_allclose(np.exp(budget.log_n), [1e6, 2e6, 4e6, 8e6])
    np.testing.assert_allclose(budget.loss, [3.2, 2.9, 3.0, 3.3])
    np.testing.assert_allclose(np.exp(budget.log_d), 1e18 / 6 / np.array([1e6, 2e6, 4e6, 8e6]))
