"""Timelines: closed forms, and what may not depend on batch or micro-batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.config import default_config, override
from lab.optim.timeline import evaluation_steps, schedule, timeline

SCHEDULES = ("constant", "linear", "cosine", "wsd", "one-minus-sqrt")
SEQUENCE = 16


def config(**changes):
    small = {"model.sequence_length": SEQUENCE, "run.horizon_tokens": 4096, "run.batch_tokens": 64}
    small |= {"execution.microbatch_tokens": 64, "optimizer.learning_rate": 0.5}
    return override(default_config(), small | {key.replace("__", "."): value for key, value in changes.items()})


@given(
    batch=st.sampled_from([1, 2, 3, 4, 8, 16, 32]),
    micro=st.sampled_from([1, 2, 4]),
    whole=st.integers(1, 9),
    left=st.integers(0, 15),
)
@settings(max_examples=60, deadline=None)
def test_ticks_make_whole_updates(batch, micro, whole, left):
    """As many updates as the horizon holds; one every batch / micro-batch ticks; padding applies nothing."""
    if batch % micro:
        batch *= micro
    horizon = SEQUENCE * batch * whole + min(left, SEQUENCE * batch - 1)
    tokens = {"run__batch_tokens": SEQUENCE * batch, "execution__microbatch_tokens": SEQUENCE * micro}
    made = timeline(config(**tokens, run__horizon_tokens=horizon))
    accumulation = batch // micro
    assert made.steps == whole and made.ticks == whole * accumulation
    assert np.flatnonzero(made.apply).tolist() == [accumulation * (i + 1) - 1 for i in range(whole)]
    for column in (made.learning_rate, made.weight_decay, made.averaging):
        assert (column.reshape(whole, accumulation) == column[made.apply][:, None]).all()
    padded = made.rows(made.ticks - 1, 3)
    assert padded["apply"].tolist() == [True, False, False] and padded["learning_rate"][1:].tolist() == [0, 0]
    assert not any(column[1:].any() for column in made.rows(made.ticks + 5, 3).values())


@given(name=st.sampled_from(SCHEDULES), warmup=st.sampled_from([0, 512, 1000]), cooldown=st.floats(0.05, 0.9))
@settings(max_examples=40, deadline=None)
def test_the_sum_of_rates_does_not_depend_on_the_batch(name, warmup, cooldown):
    """The midpoint rule: batch x sum of rates is the integral of the schedule, up to its kinks and curvature."""
    changes = {"schedule__name": name, "schedule__warmup_tokens": warmup, "schedule__cooldown_fraction": cooldown}
    fine = np.linspace(0, 4096, 40961)
    exact = np.trapezoid(schedule(config(**changes), fine), fine)
    for batch in (64, 128, 512):
        made = timeline(config(**changes, run__batch_tokens=batch))
        total = batch * made.learning_rate[made.apply].astype(np.float64).sum() / 0.5
        assert total == pytest.approx(exact, abs=batch / 2 + 1), batch
    if name in ("constant", "linear", "cosine") and not warmup:
        sums = [
            b * timeline(config(**changes, run__batch_tokens=b)).learning_rate.astype(np.float64).sum() * min(1, 64 / b)
            for b in (64, 128, 512)
        ]
        np.testing.assert_allclose(sums, sums[0], rtol=1e-6)


def test_schedules_at_points_worked_by_hand():
    tokens = np.array([256.0, 512, 2048, 3072, 3584, 4096])
    changes = {"schedule__warmup_tokens": 512, "schedule__cooldown_fraction": 0.25, "schedule__final_fraction": 0.1}
    expected = {
        "constant": [0.5, 1, 1, 1, 1, 1],
        "linear": [0.5, 1, 1 - 0.9 * 1536 / 3584, 1 - 0.9 * 2560 / 3584, 1 - 0.9 * 3072 / 3584, 0.1],
        "cosine": [0.5, 1, *(0.1 + 0.45 * (1 + np.cos(np.pi * np.array([1536, 2560, 3072, 3584]) / 3584)))],
        "wsd": [0.5, 1, 1, 1, 0.55, 0.1],
        "one-minus-sqrt": [0.5, 1, 1, 1, 1 - 0.9 * np.sqrt(0.5), 0.1],
    }
    assert set(expected) == set(SCHEDULES)
    for name, values in expected.items():
        np.testing.assert_allclose(schedule(config(schedule__name=name, **changes), tokens), values, rtol=1e-12)


def test_no_update_is_spent_at_a_rate_of_zero():
    for name in SCHEDULES:
        made = timeline(config(schedule__name=name, schedule__warmup_tokens=1024))
        assert (made.learning_rate > 0).all() and made.learning_rate.max() <= 0.5


def test_averages_weigh_updates_as_their_closed_forms_say():
    """What the recursion a <- d a + (1 - d) w gives each update, against weights written down directly."""

    def weights(decays):
        """[1 + updates]: of the initial weights, then of each update."""
        found = np.zeros(len(decays) + 1)
        found[0] = 1
        for i, decay in enumerate(decays):
            found *= decay
            found[i + 1] = 1 - decay
        return found

    for batch in (64, 256):
        steps, age = 4096 // batch, (4096 - batch * np.arange(0, 4096 // batch + 1)) / 1024
        made = timeline(config(averaging__name="exponential", averaging__window_tokens=1024, run__batch_tokens=batch))
        found = weights(made.averaging[made.apply].astype(np.float64))
        expected = np.exp(-age) * np.append(1, np.full(steps, 1 - np.exp(-batch / 1024)))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    made = timeline(config(averaging__name="polynomial", averaging__window_fraction=0.25))
    found = weights(made.averaging[made.apply].astype(np.float64))
    step = np.arange(65)
    late = (step[1:] - 1.0) * (step[1:] - 2) * (step[1:] - 3)  # 1 - 4 / n: the weight of update i grows as i^3
    np.testing.assert_allclose(found[5:], 4 * late[4:] / (64.0 * 63 * 62 * 61), rtol=1e-4)
    assert found[0] == 0 and found.sum() == pytest.approx(1)
    assert not timeline(config(averaging__name="none")).averaging.any()


@given(batch=st.sampled_from([16, 64, 192, 1024]), points=st.integers(1, 40), first=st.integers(1, 8000))
@settings(max_examples=60, deadline=None)
def test_evaluations_are_increasing_whole_steps_that_end_at_the_last(batch, points, first):
    cfg = config(run__batch_tokens=batch, evaluation__points=points, evaluation__first_tokens=first)
    steps = evaluation_steps(cfg)
    assert (np.diff(steps) > 0).all() and 1 <= steps[0] and steps[-1] == 4096 // batch and len(steps) <= points + 1
    if first <= 4096 and points > 1:
        assert (steps[0] - 1) * batch < first <= max(first, steps[0] * batch)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("peak", [0.5, 0.01])
def test_independent_decay_does_not_depend_on_the_peak(name, peak):
    """An update multiplies weights by 1 - schedule x coefficient (arXiv:2309.14322); coupled, by 1 - rate x that."""
    changes = {"schedule__name": name, "optimizer__learning_rate": peak, "optimizer__weight_decay": 0.3}
    shape = schedule(config(**changes), (np.arange(64) + 0.5) * 64)
    for decay, expected in (("independent", 0.3 * shape), ("coupled", 0.3 * peak * shape)):
        made = timeline(config(**changes, optimizer__decay=decay))
        np.testing.assert_allclose(made.learning_rate * made.weight_decay, expected, rtol=1e-6)  # float32 columns
