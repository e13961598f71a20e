"""Regret of a recommendation, against surfaces of which it is known in closed form, and the published Step Law grid."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from lab.laws.errors import LawError, TableError
from lab.laws.fit import fit
from lab.laws.law import law
from lab.laws.objective import Objective
from lab.laws.regret import of_fits, regret, regrets
from lab.laws.solve import Rows

BEST = {"lr": 1.1e-3, "batch": 2.2e5}


def grid(ratio=2.0, steps=3):
    powers = ratio ** np.arange(-steps, steps + 1)
    lr, batch = np.meshgrid(1e-3 * powers, 2e5 * powers)
    return {"lr": lr.ravel(), "batch": batch.ravel()}


def bowl(axes, noise=0.0, seed=0):
    """ln L = ln 2.5 + 0.01 u^2 + 0.004 u v + 0.005 v^2, in u = ln lr / lr*, v = ln batch / batch*."""
    u, v = (np.log(np.asarray(axes[name]) / BEST[name]) for name in ("lr", "batch"))
    rng = np.random.default_rng(seed)
    return 2.5 * np.exp(0.01 * u**2 + 0.004 * u * v + 0.005 * v**2 + noise * rng.standard_normal(np.shape(u)))


def test_a_bowl_gives_its_own_height():
    axes, to = grid(), {"lr": 1.7e-3, "batch": 1.6e5}
    found = regret(axes, bowl(axes), to)
    assert found.method == "surface" and found.best == pytest.approx(BEST, rel=1e-6)
    assert found.excess == pytest.approx(float(np.log(bowl(to) / 2.5)), rel=1e-6)
    assert found.loss == pytest.approx(2.5, rel=1e-9)


def test_the_error_is_the_spread_over_draws():
    axes, to = grid(), {"lr": 1.7e-3, "batch": 1.6e5}
    found = [regret(axes, bowl(axes, 3e-4, seed), to) for seed in range(400)]
    assert {each.method for each in found} == {"surface"}
    assert np.median([each.error for each in found]) == pytest.approx(np.std([each.excess for each in found]), rel=0.1)
    assert np.mean([each.excess for each in found]) == pytest.approx(float(np.log(bowl(to) / 2.5)), rel=0.05)


def test_one_axis_and_diverged_runs():
    lr = 1e-3 * 2.0 ** np.arange(-3, 4)
    loss = 2.5 * np.exp(0.02 * np.log(lr / 1.3e-3) ** 2)
    loss[-1] = np.nan
    found = regret({"lr": lr}, loss, {"lr": 2e-3})
    assert found.excess == pytest.approx(0.02 * np.log(2 / 1.3) ** 2, rel=1e-6)


@pytest.mark.parametrize(
    "case, reason",
    [("saddle", "no bowl"), ("edge", "lowest outside"), ("far", "recommendation lies outside"), ("few", "do not")],
)
def test_what_is_no_bowl_is_told_by_the_nearest_run(case, reason):
    axes, to = grid(), {"lr": 1.1e-3, "batch": 1.9e5}
    u, v = (np.log(np.asarray(axes[name]) / BEST[name]) for name in ("lr", "batch"))
    loss = bowl(axes)
    if case == "saddle":
        loss = 2.5 * np.exp(0.01 * u**2 - 0.005 * v**2)
    elif case == "edge":
        loss = 2.5 * np.exp(0.01 * u**2 + 0.005 * (v - 5) ** 2)
    elif case == "far":
        to = {"lr": 7.9e-3, "batch": 1.9e5}
    else:
        axes, loss = {name: values[:4] for name, values in axes.items()}, loss[:4]
    found = regret(axes, loss, to)
    assert found.method == "nearest run" and reason in found.reason
    near = np.argmin(np.square(np.log(axes["lr"] / to["lr"])) + np.square(np.log(axes["batch"] / to["batch"])))
    assert found.excess == pytest.approx(np.log(loss[near] / loss.min()), abs=1e-12)


def test_a_law_is_judged_in_every_cell():
    """Optimal rate 0.05 N^-0.2 in truth; the law that is fitted to the optima has no regret, another has the bowl's."""
    table = []
    for N in (1e8, 1e9, 1e10):
        best = 0.05 * N**-0.2
        lr = best * 2.0 ** np.arange(-2.6, 2.8)
        table.append(pandas.DataFrame({"N": N, "lr": lr, "loss": 3 * np.exp(0.02 * np.log(lr / best) ** 2)}))
    frame = pandas.concat(table)
    sizes = np.array([1e8, 1e9, 1e10])
    data = Rows({"x": sizes}, 0.05 * sizes**-0.2, np.ones(3), np.zeros(3, bool))
    rate = fit(law("power"), data, Objective("least-squares"))
    recommend = of_fits({"lr": rate})
    found = regrets(frame.assign(x=frame["N"]), ["x"], ["lr"], "loss", recommend)
    assert found["excess"].abs().max() < 1e-9
    doubled = regrets(frame, ["N"], ["lr"], "loss", lambda cell: {"lr": 2 * 0.05 * cell["N"] ** -0.2})
    assert doubled["excess"].to_numpy() == pytest.approx(0.02 * np.log(2) ** 2, rel=1e-6)
    assert list(doubled["runs"]) == [6, 6, 6]


def test_bad_input_is_refused():
    axes = grid()
    with pytest.raises(LawError, match="recommendation of \\['lr'\\], expected \\['batch', 'lr'\\]"):
        regret(axes, bowl(axes), {"lr": 1e-3})
    with pytest.raises(LawError, match="above 0"):
        regret(axes, -bowl(axes), BEST)
    with pytest.raises(TableError, match="no column bs"):
        regrets(pandas.DataFrame({"N": [1.0], "lr": [1.0], "loss": [1.0]}), ["N"], ["lr", "bs"], "loss", dict)


def test_step_law_costs_a_tenth_of_a_percent_on_its_released_grid(published):
    """Published: 0.094 % above the best, on average over the authors' full table, of which these cells are a part."""
    frame = published("steplaw_dense")
    frame = frame.assign(batch=frame["bs"] * 2048.0)
    law_of = lambda cell: {"lr": 1.79 * cell["N"] ** -0.713 * cell["D"] ** 0.307, "batch": 0.58 * cell["D"] ** 0.571}  # noqa: E731
    found = regrets(frame, ["N", "D"], ["lr", "batch"], "smooth loss", law_of)
    assert len(found) == 17
    assert 0.00094 / 2 < found["excess"].mean() < 0.00094 * 2
