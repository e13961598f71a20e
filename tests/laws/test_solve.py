"""The solver's derivatives against finite differences, and its lanes against each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.laws import solve
from lab.laws.fit import box, problem_of
from lab.laws.law import law
from lab.laws.solve import Rows

HOFFMANN = law("hoffmann")
CENTRE = np.array(HOFFMANN.search({"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}))


def rows(n: int = 30, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    N, D = 10 ** rng.uniform(7, 10, n), 10 ** rng.uniform(9, 11, n)
    loss = 1.8 + 480 * N**-0.35 + 2100 * D**-0.37
    loss = loss * np.exp(0.02 * rng.standard_normal(n))
    return Rows({"N": N, "D": D}, loss, rng.uniform(0.5, 2, n), rng.random(n) < 0.2)


@pytest.mark.parametrize("space", ["log", "linear"])
@pytest.mark.parametrize("squares", [True, False])
def test_gradient_and_hessian_are_those_of_the_value(space, squares):
    data_rows, problem = rows(), problem_of(HOFFMANN, space)
    data = solve.data_of(problem, data_rows, 0.01, 1.5, squares)
    count = 5 + len(HOFFMANN.derived)
    evaluate = jax.jit(solve._evaluate, static_argnums=(0, 4))
    lane = {"weights": data_rows.weights, "pull": 40.0, "goal": 0.3, "select": np.eye(count)[5]}
    rng = np.random.default_rng(1)
    with solve.exact():
        lane = {name: jnp.asarray(value) for name, value in lane.items()}

        def at(theta):
            return [np.asarray(x) for x in evaluate(problem, data, lane, jnp.asarray(theta), True)]

        for _ in range(3):
            theta = CENTRE + 0.05 * rng.standard_normal(5)
            _, _, gradient, hessian, majorizer = at(theta)
            step = 1e-6
            for i, side in enumerate(np.eye(5) * step):
                ahead, behind = at(theta + side), at(theta - side)
                assert (ahead[1] - behind[1]) / (2 * step) == pytest.approx(gradient[i], rel=2e-5, abs=1e-3)
                if squares:  # a Huber Hessian jumps where a row passes delta
                    change = (ahead[2] - behind[2]) / (2 * step)
                    assert change == pytest.approx(hessian[i], rel=1e-4, abs=1e-4 * np.abs(hessian).max())
            assert np.linalg.eigvalsh(majorizer)[0] > -1e-8 * np.abs(majorizer).max()


def test_rho_is_huber_and_its_derivatives():
    r = np.array([-3.0, -1.0, -0.2, 0.0, 0.5, 1.0, 7.0])
    with solve.exact():
        value, slope, bend, steep = (np.asarray(x) for x in solve.rho(jnp.asarray(r), 1.0))
    assert value == pytest.approx([2.5, 0.5, 0.02, 0.0, 0.125, 0.5, 6.5])
    assert slope == pytest.approx(np.clip(r, -1, 1))
    assert bend == pytest.approx((np.abs(r) <= 1).astype(float))
    assert steep == pytest.approx(1 / np.maximum(np.abs(r), 1))


def test_a_lane_does_not_depend_on_its_neighbours_or_their_number():
    data_rows, problem = rows(), problem_of(HOFFMANN, "log")
    data = solve.data_of(problem, data_rows, 1e-3, 1.0, False)
    starts = CENTRE + 0.2 * np.random.default_rng(2).standard_normal((solve.BLOCK + 7, 5))
    low, high = box(HOFFMANN)
    together = solve.minimise(problem, data, starts, low, high, data_rows.weights)
    alone = solve.minimise(problem, data, starts[-1:], low, high, data_rows.weights)
    assert together.objective[-1] == pytest.approx(alone.objective[0], rel=1e-12)
    assert together.arrived[-1] and together.theta[-1] == pytest.approx(alone.theta[0], rel=1e-6)


def test_a_pull_moves_along_the_profile():
    """At the pulled optimum, no point with the same value of the quantity is better: the gradients are parallel."""
    data_rows, problem = rows(), problem_of(HOFFMANN, "log")
    data = solve.data_of(problem, data_rows, 0.01, 1.0, True)
    low, high = box(HOFFMANN)
    count = 5 + len(HOFFMANN.derived)
    pulls = np.eye(count)[5:6], np.array([0.45]), np.array([1e5])
    found = solve.minimise(problem, data, CENTRE[None], low, high, data_rows.weights, pulls)
    with solve.exact():
        lane = {"weights": jnp.asarray(data_rows.weights)}
        evaluate = jax.jit(solve._evaluate, static_argnums=(0, 4))
        gradient = np.asarray(evaluate(problem, data, lane, jnp.asarray(found.theta[0]), False)[2])
    *_, quantities, slopes = solve.local(problem, data, data_rows.weights, found.theta[0])
    assert quantities[5] == pytest.approx(found.quantities[0, 5], rel=1e-12)
    across = gradient - slopes[5] * (gradient @ slopes[5]) / (slopes[5] @ slopes[5])
    assert np.linalg.norm(across) < 1e-5 * np.linalg.norm(gradient)
    free = solve.minimise(problem, data, CENTRE[None], low, high, data_rows.weights)
    assert found.objective[0] > free.objective[0]
