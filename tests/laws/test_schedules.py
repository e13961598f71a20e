"""Columns of learning-rate histories against double loops, and the two laws on curves simulated from themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.laws import schedules
from lab.laws.catalogue.schedules import drops_effect
from lab.laws.errors import TableError
from lab.laws.fit import fit, predict
from lab.laws.law import law
from lab.laws.solve import Rows

MULTI_POWER = {"L0": 3.04, "A": 0.525, "alpha": 0.508, "B": 364.0, "C": 2.07, "beta": 0.583, "gamma": 0.641}
ANNEALING = {"L0": 2.6, "A": 0.5, "alpha": 0.5, "C": 0.4}


def cosine(updates: int, warmup: int = 50, peak: float = 3e-4, low: float = 3e-5) -> np.ndarray:
    share = np.arange(updates - warmup) / (updates - warmup)
    later = low + 0.5 * (peak - low) * (1 + np.cos(np.pi * share))
    return np.concatenate([np.linspace(0, peak, warmup), later])


def step_down(updates: int, at: int, to: float, peak: float = 3e-4) -> np.ndarray:
    return np.where(np.arange(updates) < at, peak, to)


def drop_sum_of_multi_power(p: dict, lr: np.ndarray, t: int, since: int = 0) -> float:
    """Equations 3 and 4 of Luo et al. as they are written, by loops."""
    total = 0.0
    for k in range(since + 1, t + 1):
        if lr[k - 1] == lr[k]:
            continue
        reach = sum(lr[i] for i in range(k, t + 1))
        total += (lr[k - 1] - lr[k]) * (1 - (1 + p["C"] * lr[k] ** -p["gamma"] * reach) ** -p["beta"])
    return total


def annealing_area_by_loops(lr: np.ndarray, t: int, decay: float, since: int = 0) -> float:
    """Equation 1 of Tissue et al.: the sum over i up to t of the sum over k up to i."""
    return sum((lr[k - 1] - lr[k]) * decay ** (i - k) for i in range(1, t + 1) for k in range(max(1, since + 1), i + 1))


@pytest.mark.parametrize("since", [0, 50])
def test_columns_agree_with_double_loops(since):
    lr, steps = cosine(220), np.array([50, 51, 90, 219])
    found = schedules.columns(lr, steps, decay=0.98, since=since, width=0)
    np.testing.assert_allclose(found["S1"], [lr[: t + 1].sum() for t in steps], rtol=1e-13)
    np.testing.assert_allclose(
        found["S2"], [annealing_area_by_loops(lr, t, 0.98, since) for t in steps], rtol=1e-10, atol=1e-18
    )
    ours = predict(law("multi-power"), np.array(law("multi-power").search(MULTI_POWER)), found)
    plain = MULTI_POWER["L0"] + MULTI_POWER["A"] * found["S1"] ** -MULTI_POWER["alpha"]
    theirs = [MULTI_POWER["B"] * drop_sum_of_multi_power(MULTI_POWER, lr, t, since) for t in steps]
    np.testing.assert_allclose(plain - ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "lr",
    [cosine(24_000, 2_160), step_down(12_000, 8_000, 3e-5), np.linspace(1e-3, 0.0, 9_000)],
    ids=["cosine", "step", "linear to zero"],
)
def test_grouped_drops_predict_what_every_drop_predicts(lr):
    steps = np.linspace(2_200, len(lr) - 1, 25).astype(int)
    theta = np.array(law("multi-power").search(MULTI_POWER))
    form, columns = law("multi-power"), schedules.columns(lr, steps)
    each = predict(form, theta, schedules.columns(lr, steps, width=0))
    whole = MULTI_POWER["B"] * lr.max()  # nats: what a drop from the peak to zero brings in the end
    assert np.abs(predict(form, theta, columns) - each).max() < 2e-4 * whole
    assert columns["drop"].shape[1] < 64


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-5, 1e-2), min_size=3, max_size=60), st.data())
def test_groups_keep_the_total_and_mean_of_any_history(values, data):
    lr = np.array(values)
    t = data.draw(st.integers(1, len(lr) - 1))
    each, grouped = schedules.drops(lr, np.array([t]), width=0), schedules.drops(lr, np.array([t]))
    assert grouped["drop"].sum() == pytest.approx(each["drop"].sum(), rel=1e-9, abs=1e-15)
    moment = [(c["drop"] * c["drop_sum"]).sum() for c in (each, grouped)]
    assert moment[1] == pytest.approx(moment[0], rel=1e-7, abs=1e-12)
    assert (grouped["drop_lr"] > 0).all() and (grouped["drop_sum"] >= -1e-12).all()


def test_derivatives_of_the_drops_effect_are_those_of_its_formula():
    rng = np.random.default_rng(0)
    drop, lr, reach = rng.normal(size=(5, 7)), rng.uniform(1e-5, 1e-2, (5, 7)), rng.uniform(0, 10, (5, 7))

    def plain(at):
        z = jnp.exp(at[0]) * lr ** -at[1] * reach
        return jnp.sum(drop * (1 - (1 + z) ** -at[2]), -1)

    def ours(at):
        return drops_effect(at[0], at[1], at[2], drop, jnp.log(lr), reach)

    with jax.enable_x64(True):
        at = jnp.array([0.3, 0.6, 0.5])
        for order in (lambda f: f, jax.jacfwd, jax.jacrev, jax.hessian):
            np.testing.assert_allclose(order(ours)(at), order(plain)(at), rtol=1e-11, atol=1e-13)


def test_runs_stack_whatever_their_number_of_drops():
    a = schedules.columns(step_down(300, 100, 1e-4), np.arange(150, 300, 50))
    b = schedules.columns(cosine(300), np.arange(150, 300, 50))
    both = schedules.stack([a, b])
    theta = np.array(law("multi-power").search(MULTI_POWER))
    apart = np.concatenate([predict(law("multi-power"), theta, c) for c in (a, b)])
    np.testing.assert_allclose(predict(law("multi-power"), theta, both), apart, rtol=1e-14)


@pytest.mark.parametrize("lr, steps", [([1e-3, np.nan], [0]), ([1e-3, -1e-3], [0]), ([0.0, 0.0], [0]), ([1e-3], [1])])
def test_a_history_that_cannot_be_meant_is_refused(lr, steps):
    with pytest.raises(TableError, match="found"):
        schedules.columns(np.array(lr), np.array(steps))


def simulated(name: str, truth: dict, noise: float, seed: int = 0) -> Rows:
    """A cosine, a step down and a constant schedule, 40 points each, with log-normal noise."""
    steps = np.linspace(300, 3_999, 40).astype(int)
    histories = [cosine(4_000, 200, 3e-3, 3e-4), step_down(4_000, 2_000, 6e-4, 3e-3), np.full(4_000, 3e-3)]
    columns = schedules.stack([schedules.columns(lr, steps) for lr in histories])
    chosen = {c.name: columns[c.name] for c in law(name).columns}
    loss = predict(law(name), np.array(law(name).search(truth)), chosen)
    loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
    return Rows(chosen, loss, np.ones(len(loss)), np.zeros(len(loss), bool))


@pytest.mark.parametrize(
    "name, truth", [("annealing", ANNEALING), pytest.param("multi-power", MULTI_POWER, marks=pytest.mark.long)]
)
def test_noise_free_curves_give_their_constants_back(name, truth):
    found = fit(law(name), simulated(name, truth, 0.0))
    assert found.values == pytest.approx(truth, rel=1e-4)
