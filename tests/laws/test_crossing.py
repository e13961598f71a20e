from __future__ import annotations

import numpy as np
import pytest

from lab.laws.crossing import monotone_curve, steps_to_target


def test_interpolates_in_log_steps():
    steps = np.array([10.0, 100.0, 1000.0])
    found = steps_to_target(steps, [5.0, 4.0, 3.0], 3.5)
    assert found.steps == pytest.approx(100 * 10**0.5) and not found.censored
    assert steps_to_target(steps, [5.0, 4.0, 3.0], 4.0).steps == pytest.approx(100.0)


def test_exact_on_a_curve_linear_in_log_steps():
    steps = np.geomspace(7, 9000, 23)
    for target in (4.9, 3.3, 2.01):
        expected = np.exp((6.0 - target) / 0.5)
        assert steps_to_target(steps, 6.0 - 0.5 * np.log(steps), target).steps == pytest.approx(expected, rel=1e-12)


def test_not_reached_is_censored_at_the_last_step_seen():
    found = steps_to_target([10, 20, 40], [5, 4, 3], 2.0)
    assert found.censored and found.steps == 40
    diverged = steps_to_target([10, 20, 40, 80], [5, 4, np.nan, 1.0], 2.0)
    assert diverged.censored and diverged.steps == 20
    assert steps_to_target([10, 20], [np.inf, np.nan], 2.0).censored


def test_met_at_the_first_evaluation_is_flagged():
    found = steps_to_target([10, 20], [1.5, 1.0], 2.0)
    assert found.before_first and found.steps == 10 and not found.censored


def test_initial_weights_at_step_zero():
    assert steps_to_target([0, 10], [5.0, 3.0], 4.0).steps == pytest.approx(5.0)


def test_an_early_dip_is_pooled_and_a_later_rise_is_not():
    assert steps_to_target([1, 2, 3, 4, 5], [5, 3.9, 4.5, 4.3, 3.0], 4.0).steps > 4
    late = steps_to_target([1, 2, 3, 4], [5, 3, 4, 5], 3.5)
    assert 1 < late.steps < 2


def test_monotone_treatment_removes_most_of_the_first_passage_bias():
    rng = np.random.default_rng(0)
    steps = np.arange(20.0, 2001.0, 20.0)
    clean = 8.0 - 0.6 * np.log(steps)
    target, truth = 8.0 - 0.6 * np.log(1000.0), 1000.0
    plain, treated = [], []
    for _ in range(300):
        noisy = clean + rng.normal(0, 0.03, steps.size)
        plain.append(steps[np.argmax(noisy <= target)])
        treated.append(steps_to_target(steps, noisy, target).steps)
    assert abs(np.mean(treated) / truth - 1) < 0.5 * abs(np.mean(plain) / truth - 1)
    assert abs(np.mean(treated) / truth - 1) < 0.03


def test_loss_at_and_bad_input():
    curve = monotone_curve([10, 100], [5.0, 4.0])
    assert curve.loss_at(10**1.5) == pytest.approx(4.5)
    assert np.isnan(curve.loss_at(101))
    with pytest.raises(ValueError, match="increase"):
        monotone_curve([10, 10], [5.0, 4.0])
    with pytest.raises(ValueError, match="one length"):
        monotone_curve([10], [5.0, 4.0])
