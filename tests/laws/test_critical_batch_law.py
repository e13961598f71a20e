from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from lab.laws import critical_batch as law
from lab.laws.power import fit_power_law, fit_power_law_linear

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "cbs_steps_to_target.csv"
BATCHES = 2.0 ** np.arange(6, 15)


def test_exact_law_comes_back():
    fit = law.fit_overhead(BATCHES, 1500.0 + 3e6 / BATCHES)
    assert fit.a == pytest.approx(1500.0, rel=1e-9) and fit.b == pytest.approx(3e6, rel=1e-9)
    assert fit.identified and fit.gradient_norm < 1e-10
    np.testing.assert_allclose(fit.steps(BATCHES), 1500.0 + 3e6 / BATCHES, rtol=1e-9)


def test_critical_batch_is_where_the_law_exceeds_linear_scaling():
    fit = law.fit_overhead(BATCHES, 1500.0 + 3e6 / BATCHES)
    star = fit.critical_batch(0.2, 256.0)
    assert fit.steps(star) == pytest.approx(1.2 * fit.steps(256.0) * 256.0 / star, rel=1e-9)
    assert law.data_overhead(star, fit.log_ratio, 256.0) == pytest.approx(0.2)
    limit = fit.critical_batch(0.2)
    assert limit == pytest.approx(0.2 * 3e6 / 1500.0)
    assert fit.critical_batch(0.2, 1e-9) == pytest.approx(limit)
    with pytest.raises(ValueError):
        fit.critical_batch(0.0)


def test_minimum_agrees_with_another_optimizer_under_censoring():
    rng = np.random.default_rng(3)
    steps = np.exp(np.log(900 + 2e6 / BATCHES) + rng.normal(0, 0.1, 9))
    censored = np.zeros(9, bool)
    censored[[0, 4]] = True
    steps[4] *= 1.5

    def objective(theta):
        residual = np.logaddexp(theta[0], theta[1] - np.log(BATCHES)) - np.log(steps)
        return 0.5 * np.sum(np.where(censored, np.minimum(residual, 0), residual) ** 2)

    fit = law.fit_overhead(BATCHES, steps, censored)
    tight = {"xatol": 1e-10, "fatol": 1e-16, "maxiter": 4000}
    other = minimize(objective, [7.0, 14.0], method="Nelder-Mead", options=tight)
    assert fit.objective == pytest.approx(other.fun, rel=1e-9)
    np.testing.assert_allclose([np.log(fit.a), np.log(fit.b)], other.x, atol=1e-6)
    assert np.abs(approx_fprime([np.log(fit.a), np.log(fit.b)], objective, 1e-6)).max() < 1e-5
    assert fit.measured == 7 and fit.censored == 2


def test_censored_cell_below_the_law_changes_nothing_and_above_it_pulls_up():
    steps = 1500.0 + 3e6 / BATCHES
    censored = np.arange(9) == 8
    loose, tight = steps.copy(), steps.copy()
    loose[8], tight[8] = 0.5 * steps[8], 2.0 * steps[8]
    assert law.fit_overhead(BATCHES, loose, censored).a == pytest.approx(1500.0, rel=1e-8)
    assert law.fit_overhead(BATCHES, tight, censored).a > 1600.0


def test_covariance_against_scatter_of_refits():
    rng = np.random.default_rng(0)
    clean = np.log(1500.0 + 3e6 / BATCHES)
    noisy = clean + rng.normal(0, 0.05, (2000, 9))
    theta, gradient, bound = law.fit_overheads(BATCHES, noisy, np.zeros((1, 9), bool), np.ones((1, 9)))
    assert gradient.max() < law.GRADIENT_TOLERANCE and not bound.any()
    errors = np.array([np.sqrt(law.fit_overhead(BATCHES, np.exp(row)).covariance[1, 1]) for row in noisy[:200]])
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(theta[:, 1].std(), rel=0.08)


def test_unidentified_fits_say_so():
    linear = law.fit_overhead(BATCHES, 3e6 / BATCHES)
    assert linear.at_bound == "high" and not linear.identified
    flat = law.fit_overhead(BATCHES, np.full(9, 700.0))
    assert flat.at_bound == "low" and not flat.identified
    assert np.isnan(law.fit_overhead(BATCHES[:2], [100.0, 60.0]).covariance).all()
    with pytest.raises(law.OverheadFitError, match="1 distinct"):
        law.fit_overhead(BATCHES[:3], [100.0, 60.0, 50.0], [False, True, True])
    with pytest.raises(law.OverheadFitError, match="finite"):
        law.fit_overhead(BATCHES[:3], [100.0, np.nan, 50.0])


@pytest.mark.skipif(not PUBLISHED.exists(), reason="shared/data lacks the authors' table: published fits NOT checked")
def test_published_fits_to_every_printed_digit():
    rows = list(csv.DictReader(PUBLISHED.open()))
    sizes = sorted({float(row["params_millions"]) for row in rows})
    fits = []
    for size in sizes:
        cells = [row for row in rows if float(row["params_millions"]) == size]
        batch, steps = ([float(c[name]) for c in cells] for name in ("batch_size", "steps_to_target_used_in_fit"))
        fits.append(law.fit_overhead(batch, steps))
    np.testing.assert_allclose([f.a for f in fits], [1293.83, 1752.42, 2095.35, 2459.93, 3897.31], atol=0.005)
    np.testing.assert_allclose([f.b for f in fits], [2834258, 5677479, 11383270, 19449689, 43381130], atol=1.0)
    stars = [f.critical_batch(0.2, 256.0) for f in fits]
    np.testing.assert_allclose(stars, [745.3, 955.2, 1393.7, 1888.5, 2533.4], atol=0.05)
    logs, linear = fit_power_law(sizes, stars), fit_power_law_linear(sizes, stars)
    assert logs.coefficient == pytest.approx(93.197, abs=5e-4) and logs.exponent == pytest.approx(0.46828, abs=5e-6)
    assert linear.coefficient == pytest.approx(99.506, abs=5e-4) and linear.exponent == pytest.approx(0.45764, abs=5e-6)
    limit = fit_power_law(sizes, [f.critical_batch(0.2) for f in fits])
    assert limit.coefficient == pytest.approx(29.2, abs=0.05) and limit.exponent == pytest.approx(0.619, abs=5e-4)
