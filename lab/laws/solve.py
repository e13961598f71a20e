"""Many fits of one law at once: damped Newton with exact derivatives, in float64, in blocks on every core.

A *lane* is one minimisation: a start, box bounds, row weights, and optionally a pull towards a value of one quantity
(from which profile likelihoods are made). All lanes share the rows, so that starts, resamples, profiles, held-out
rows (weight 0) and leave-one-out fits are the same program.

With residuals r, objective sum w rho(r), J = dr/dtheta:

    gradient   J^T (w rho')
    Hessian    J^T diag(w rho'') J + sum w rho' r''                  exact
    majorizer  J^T diag(w rho'(r) / r) J                             of iteratively reweighted least squares

A step solves (Hessian + damping x majorizer) s = -gradient, or, where that matrix is not positive definite, takes the
majorizer in its place: reweighted least squares. The damping falls when a step succeeds, so that the end is Newton's
(quadratic, whatever the conditioning), and grows when one fails. Steps stay in the box by holding the coordinates that
push out of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 32  # lanes of one call: small enough for the caches, large enough to vectorise
ITERATIONS = 8  # of one call; lanes that need more are gathered into new blocks
CALLS = 60
DECREMENT = 1e-18  # g^T H^-1 g / objective at which a lane has arrived
EXACT = 1e-18  # objective under which rows are met to the last digit; gradients are not compared with less
UNSEEN = 1e-14  # decrease promised, over the objective, that rounding hides: a step that fails there ends the lane


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Float64 on the CPU inside the block and in this thread alone, whatever the process is set to."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


@dataclasses.dataclass(frozen=True)
class Rows:
    """The data of a fit. `columns` and `target` are float64 [n]; `weights` [n] >= 0; `censored` bool [n].

    A row of weight 0 may hold anything, NaN too.
    """

    columns: dict[str, np.ndarray]
    target: np.ndarray
    weights: np.ndarray
    censored: np.ndarray

    def __len__(self) -> int:
        return len(self.target)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is compiled once: how residuals and quantities follow from search coordinates [p]."""

    predict: Callable[[Any, Any], Any]
    quantities: Callable[[Any], Any]
    space: str


@dataclasses.dataclass(frozen=True)
class Solution:
    """Of L lanes: coordinates [L, p], scaled objective without the pull [L], quantities [L, q], gradient [L] as the
    root of Newton's decrement g^T H^-1 g over the objective (free coordinates), and whether the lane arrived [L]."""

    theta: np.ndarray
    objective: np.ndarray
    quantities: np.ndarray
    gradient: np.ndarray
    arrived: np.ndarray


def residuals(problem: Problem, theta: Any, columns: Any, target: Any, censored: Any) -> Any:
    """[n], in float64; NaN where the prediction has no logarithm."""
    predicted = problem.predict(theta, columns)
    r = jnp.log(predicted) - target if problem.space == "log" else predicted - target
    return jnp.where(censored, jnp.minimum(r, 0.0), r)


def rho(r: Any, delta: Any) -> tuple[Any, Any, Any, Any]:
    """Huber's function of r in units of its scale, rho', rho'' and rho'/r; for a small delta it is |r| - delta / 2."""
    size, inside = jnp.abs(r), jnp.abs(r) <= delta
    value = jnp.where(inside, 0.5 * r * r / delta, size - 0.5 * delta)
    slope = jnp.where(inside, r / delta, jnp.sign(r))
    return value, slope, jnp.where(inside, 1 / delta, 0.0), 1 / jnp.maximum(size, delta)


def _evaluate(problem: Problem, data: Any, lane: Any, theta: Any, pulled: bool) -> tuple[Any, ...]:
    """Objective without and with the pull, gradient [p], Hessian and majorizer [p, p] of one lane."""
    columns, target, censored, scale, delta, kind = data
    weights = lane["weights"]

    def scaled(at):
        return residuals(problem, at, columns, target, censored) / scale

    r = scaled(theta)
    J = jax.jacfwd(scaled)(theta)
    huber = rho(r, delta)
    square = (0.5 * r * r, r, jnp.ones_like(r), jnp.ones_like(r))
    value, slope, bend, steep = (jnp.where(kind == 1, s, h) for s, h in zip(square, huber))
    dropped = weights == 0  # a row that does not count may have any residual
    J = jnp.where(dropped[:, None], 0.0, J)
    value, slope, bend, steep = (jnp.where(dropped, 0.0, x) for x in (value, slope, bend, steep))
    push = weights * slope
    curved = jax.jacfwd(jax.grad(lambda at: jnp.sum(push * jnp.where(dropped, 0.0, scaled(at)))))(theta)
    gradient = J.T @ push
    hessian = (J * (weights * bend)[:, None]).T @ J + curved
    majorizer = (J * (weights * steep)[:, None]).T @ J
    base = jnp.sum(weights * value)
    if not pulled:
        return base, base, gradient, hessian, majorizer
    pull = lane["pull"]
    quantity = lambda at: jnp.dot(lane["select"], problem.quantities(at))  # noqa: E731
    gap, slope_q = jax.value_and_grad(quantity)(theta)
    gap = gap - lane["goal"]
    outer = jnp.outer(slope_q, slope_q)
    bent = jax.hessian(quantity)(theta) * gap
    total = base + 0.5 * pull * gap * gap
    return base, total, gradient + pull * gap * slope_q, hessian + pull * (outer + bent), majorizer + pull * outer


def _step_of(gradient: Any, hessian: Any, majorizer: Any, damping: Any, held: Any) -> tuple[Any, Any]:
    """The damped step of the free coordinates, and whether it is Newton's; all scaled to unit majorizer."""
    free = jnp.where(held, 0.0, 1.0)
    both = free / jnp.sqrt(jnp.maximum(jnp.diag(majorizer), 1e-300))
    metric = majorizer + 1e-10 * jnp.diag(jnp.diag(majorizer))
    pair = jnp.stack([hessian + damping * metric, jnp.maximum(damping, 1.0) * metric])
    factors = jnp.linalg.cholesky(pair * jnp.outer(both, both) + jnp.diag(1 - free))
    newton = jnp.isfinite(factors[0]).all()
    factor = jnp.where(newton, factors[0], factors[1])
    return -jax.scipy.linalg.cho_solve((factor, True), both * gradient) * both, newton


def _minimise_lane(problem: Problem, data: Any, lane: Any, iterations: int, pulled: bool) -> dict[str, Any]:
    low, high = lane["low"], lane["high"]
    p = len(low)

    def body(carry):
        """One step; the first, from a point of infinite objective, only evaluates the start."""
        theta, here, damping, _, _, i = carry
        _, total, gradient, hessian, majorizer = here
        outward = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)) | (low == high)
        step, newton = _step_of(gradient, hessian, majorizer, damping, outward)
        trial = jnp.clip(theta + jnp.where(jnp.isfinite(step).all(), step, 0.0), low, high)
        there = _evaluate(problem, data, lane, trial, pulled)
        finite = jnp.isfinite(there[1]) & jnp.isfinite(there[2]).all() & jnp.isfinite(there[3]).all()
        moved = finite & (there[1] <= total)
        promise = -jnp.dot(jnp.where(outward, 0.0, gradient), step) * (1 + damping)
        size = jnp.where(newton & jnp.isfinite(total), promise / jnp.maximum(total, EXACT), jnp.inf)
        arrived = (size <= DECREMENT) | (~moved & (size <= UNSEEN)) | (~moved & (damping > 1e12)) | (total == 0)
        theta = jnp.where(moved, trial, theta)
        here = jax.tree.map(lambda new, old: jnp.where(moved, new, old), there, here)
        damping = jnp.where(moved, jnp.where(damping < 1e-9, 0.0, damping * 0.1), jnp.maximum(damping * 10, 1e-6))
        return theta, here, damping, arrived, size, i + 1

    infinite, eye = jnp.full((), jnp.inf), jnp.eye(p)
    start = infinite, infinite, jnp.zeros(p), eye, eye
    carry = jnp.clip(lane["theta"], low, high), start, lane["damping"], jnp.array(False), infinite, 0
    theta, here, damping, arrived, size, _ = jax.lax.while_loop(lambda c: ~c[3] & (c[5] < iterations), body, carry)
    return {
        "theta": theta,
        "damping": damping,
        "arrived": arrived,
        "objective": here[0],
        "gradient": jnp.sqrt(jnp.maximum(size, 0.0)),
        "quantities": problem.quantities(theta),
    }


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _block(problem: Problem, data: Any, lanes: Any, iterations: int, pulled: bool) -> dict[str, Any]:
    return jax.vmap(lambda lane: _minimise_lane(problem, data, lane, iterations, pulled))(lanes)


@functools.partial(jax.jit, static_argnums=0)
def _residuals_at(problem: Problem, theta: Any, columns: Any, target: Any, censored: Any) -> Any:
    return jax.vmap(lambda at: residuals(problem, at, columns, target, censored))(theta)


@functools.partial(jax.jit, static_argnums=0)
def _predictions(problem: Problem, theta: Any, columns: Any) -> Any:
    return jax.vmap(lambda at: problem.predict(at, columns))(theta)


@functools.partial(jax.jit, static_argnums=0)
def _slopes(problem: Problem, theta: Any, columns: Any) -> Any:
    return jax.jacfwd(lambda at: residuals(problem, at, columns, 0.0, False))(theta)


@functools.partial(jax.jit, static_argnums=0)
def _local(problem: Problem, data: Any, weights: Any, theta: Any) -> tuple[Any, ...]:
    columns, target, censored, scale, _, _ = data
    scaled = lambda at: residuals(problem, at, columns, target, censored) / scale  # noqa: E731
    hessian = _evaluate(problem, data, {"weights": weights}, theta, False)[3]
    return (
        scaled(theta),
        jax.jacfwd(scaled)(theta),
        hessian,
        problem.quantities(theta),
        jax.jacfwd(problem.quantities)(theta),
    )


def residuals_at(problem: Problem, rows: Rows, theta: np.ndarray) -> np.ndarray:
    """Residuals [S, n] at coordinates [S, p]."""
    columns, target, censored, *_ = data_of(problem, rows, 1.0, 1.0, False)
    with exact():
        return np.asarray(_residuals_at(problem, theta, columns, target, censored))


def predictions(problem: Problem, theta: np.ndarray, columns: dict[str, np.ndarray]) -> np.ndarray:
    """The target [S, n] at coordinates [S, p] and columns [n]."""
    with exact():
        return np.asarray(_predictions(problem, theta, columns))


def slopes(problem: Problem, theta: np.ndarray, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Derivatives [n, p] of the predictions at columns [n], in the problem's space, by coordinates [p]."""
    with exact():
        return np.asarray(_slopes(problem, theta, columns))


def local(problem: Problem, data: tuple, weights: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, ...]:
    """At coordinates [p]: scaled residuals [n], their Jacobian [n, p], Hessian of the objective [p, p], quantities [q]
    and their Jacobian [q, p]."""
    with exact():
        return tuple(np.asarray(x) for x in _local(problem, data, weights, theta))


def data_of(problem: Problem, rows: Rows, scale: float, delta: float, squares: bool) -> tuple:
    """What all lanes share. A row of weight 0 gets the columns of one that counts: 0 x NaN would spoil derivatives."""
    columns, target, counted = rows.columns, rows.target, rows.weights > 0
    if not counted.all():
        index = np.where(counted, np.arange(len(rows)), np.argmax(counted))
        columns, target = {name: values[index] for name, values in columns.items()}, target[index]
    target = np.log(target) if problem.space == "log" else target
    kind = np.int64(1 if squares else 0)
    return columns, target, rows.censored, np.float64(scale), np.float64(delta), kind


def minimise(
    problem: Problem,
    data: tuple,
    theta: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    weights: np.ndarray,
    pulls: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    calls: int = CALLS,
) -> Solution:
    """Solves all lanes to their optima, or as far as `calls` x ITERATIONS steps lead.

    Args:
      data: of `data_of`.
      theta: starts [L, p].
      low, high: boxes [p] or [L, p]; equal bounds fix a coordinate.
      weights: of rows, [n] or [L, n].
      pulls: (select [L, q], goal [L], strength [L]): adds strength / 2 (select . quantities - goal)^2. The optimum
        lies on the profile of that quantity at the value that it has there, however strong the pull.
    """
    lanes, p = theta.shape
    n = len(data[1])
    with exact():
        q = jax.eval_shape(problem.quantities, jax.ShapeDtypeStruct((p,), jnp.float64)).shape[0]
    select, goal, strength = pulls if pulls is not None else (np.zeros((1, q)), np.zeros(1), np.zeros(1))
    table = {
        "theta": theta,
        "low": np.broadcast_to(low, (lanes, p)),
        "high": np.broadcast_to(high, (lanes, p)),
        "weights": np.broadcast_to(weights, (lanes, n)),
        "select": np.broadcast_to(select, (lanes, q)),
        "goal": np.broadcast_to(goal, (lanes,)),
        "pull": np.broadcast_to(strength, (lanes,)),
        "damping": np.full(lanes, 1e-2),
    }
    found = {
        "theta": np.array(theta, float),
        "damping": np.full(lanes, 1e-2),
        "arrived": np.zeros(lanes, bool),
        "objective": np.full(lanes, np.nan),
        "gradient": np.full(lanes, np.nan),
        "quantities": np.full((lanes, q), np.nan),
    }

    def solve(index: np.ndarray) -> None:
        padded = np.resize(index, BLOCK)
        with exact():
            chosen = {name: np.ascontiguousarray(column[padded]) for name, column in table.items()}
            result = jax.device_get(_block(problem, data, chosen, ITERATIONS, pulls is not None))
        for name, values in result.items():
            found[name][index] = values[: len(index)]

    left = np.arange(lanes)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in range(calls):
            list(pool.map(solve, np.split(left, range(BLOCK, len(left), BLOCK))))
            left = left[~found["arrived"][left]]
            if not len(left):
                break
            table["theta"], table["damping"] = found["theta"], found["damping"]
    return Solution(*(found[name] for name in ("theta", "objective", "quantities", "gradient", "arrived")))
