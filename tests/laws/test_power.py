from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import linregress

from lab.laws.power import PowerLawError, fit_power_law, fit_power_law_linear

RNG = np.random.default_rng(1)
X = np.array([85.0, 151.0, 302.0, 604.0, 1200.0])
Y = 93.0 * X**0.47 * np.exp(RNG.normal(0, 0.05, 5))


def test_logs_against_scipy():
    ours, other = fit_power_law(X, Y), linregress(np.log(X), np.log(Y))
    assert ours.exponent == pytest.approx(other.slope, rel=1e-12)
    assert ours.log_coefficient == pytest.approx(other.intercept, rel=1e-12)
    assert ours.exponent_error == pytest.approx(other.stderr, rel=1e-9)
    assert ours.log_coefficient_error == pytest.approx(other.intercept_stderr, rel=1e-9)


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 0.5, 3.0, 1.0])])
def test_linear_space_against_scipy(weights):
    ours = fit_power_law_linear(X, Y, weights)
    sigma = None if weights is None else 1 / np.sqrt(weights)
    tight = {"xtol": 1e-14, "ftol": 1e-14}
    other, covariance = curve_fit(lambda x, c, p: np.exp(c) * x**p, X, Y, [4.0, 0.5], sigma=sigma, **tight)
    np.testing.assert_allclose([ours.log_coefficient, ours.exponent], other, rtol=1e-6)
    np.testing.assert_allclose(ours.covariance, covariance, rtol=1e-3)
    assert ours.gradient_norm < 1e-7


def test_weights_equal_repeats_and_band_meets_the_interval():
    weights = np.array([1.0, 2.0, 1.0, 3.0, 1.0])
    ours = fit_power_law(X, Y, weights)
    repeats = np.repeat(np.arange(5), weights.astype(int))
    assert ours.exponent == pytest.approx(fit_power_law(X[repeats], Y[repeats]).exponent, rel=1e-12)
    low, high = ours.band(np.array([1.0]))
    np.testing.assert_allclose((low[0], high[0]), ours.coefficient_interval(), rtol=1e-9)


def test_two_points_fit_without_an_interval_and_one_is_refused():
    two = fit_power_law([1.0, 4.0], [3.0, 6.0])
    assert two.exponent == pytest.approx(0.5) and two.coefficient == pytest.approx(3.0)
    assert np.isnan(two.exponent_interval()).all() and np.isnan(two.exponent_error)
    for x, y in (([1.0, 1.0], [2.0, 3.0]), ([1.0, 2.0], [2.0, -3.0]), ([1.0, 2.0], [np.nan, 3.0])):
        with pytest.raises(PowerLawError):
            fit_power_law(x, y)


def test_student_interval_covers():
    x, hits = np.geomspace(1, 30, 6), 0
    for _ in range(400):
        low, high = fit_power_law(x, 5 * x**0.4 * np.exp(RNG.normal(0, 0.1, 6))).exponent_interval(0.9)
        hits += low <= 0.4 <= high
    assert 0.86 <= hits / 400 <= 0.94
