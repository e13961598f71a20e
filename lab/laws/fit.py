"""Fits a law to rows: starts, the best optimum, and a certificate of how far to trust it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lab.laws import solve
from lab.laws.errors import LawError
from lab.laws.law import Law
from lab.laws.objective import Objective
from lab.laws.solve import Problem, Rows, Solution
from lab.laws.starts import start_grid

SEARCHES = 48  # of the start grid, the best are minimised
SEARCH_CALLS = 9  # of the solver, before the searches that cannot be the best are left where they are
SAME_OPTIMUM = 1e-6  # relative difference of objectives under which two searches ended in one basin
RIVAL = 1.2  # times the best objective: optima that a resample might prefer
CONVERGED = 1e-6  # gradient (see `Solution`) under which a fit counts as converged
CONDITION = 1e14  # of the scaled Hessian, above which constants are not identified


@dataclasses.dataclass(frozen=True)
class Certificate:
    """How the optimum was reached.

    Attributes:
      gradient: root of Newton's decrement g^T H^-1 g over the objective, H being the damped Hessian of the last step
        and g its free coordinates (see `solve.Solution`).
      starts, reached: searches made, and the share that ended within 1e-6 of the best objective.
      second_basin: relative excess of the best optimum among the other searches; None where all agree.
      condition: condition number of the Hessian scaled to unit diagonal, in search coordinates.
      at_bound: constants at an end of their bounds, by name.
      lower: relative excess over an objective that a profile met (see `intervals.settled`); None where none did.
    """

    gradient: float
    starts: int
    reached: float
    second_basin: float | None
    condition: float
    at_bound: tuple[str, ...]
    lower: float | None = None

    @property
    def converged(self) -> bool:
        return bool(self.gradient <= CONVERGED)

    @property
    def identified(self) -> bool:
        return bool(self.converged and self.condition < CONDITION and not self.at_bound)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers; empty where all is well."""
        said = []
        if self.lower is not None:
            said.append(
                f"not the best optimum: profiles met an objective that this one exceeds by {self.lower:.2g} of it"
            )
        if not self.converged:
            said.append(f"not converged: gradient {self.gradient:.1e}, expected at most {CONVERGED:.0e}")
        if self.at_bound:
            said.append(f"not identified: {', '.join(self.at_bound)} at the end of its bounds")
        elif not self.condition < CONDITION:
            said.append(f"not identified: condition number {self.condition:.1e}")
        return tuple(said)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law with fitted constants.

    Attributes:
      values: constants by name, in natural units, full precision.
      derived: derived quantities by name.
      theta: search coordinates [p] (see `Parameter.log`).
      objective_value: sum of w rho, in the objective's own unit.
      covariance: of theta, [p, p], sandwich H^-1 (sum w^2 rho'^2 J J^T) H^-1 with the factor n / (n - p).
      alike_covariance: the same if all rows scatter alike, dispersion x H^-1.
      dispersion: what twice a difference of the scaled objective is divided by to compare it with F(1, n - p).
      others: optima [K, p] of the other basins that the searches found within 20 % of the best, best first.
    """

    law: Law
    objective: Objective
    rows: Rows
    values: Mapping[str, float]
    derived: Mapping[str, float]
    theta: np.ndarray
    objective_value: float
    scaled_value: float
    scale: float
    covariance: np.ndarray
    alike_covariance: np.ndarray
    dispersion: float
    certificate: Certificate
    others: np.ndarray
    fixed: Mapping[str, float]

    @property
    def counted(self) -> np.ndarray:
        """Rows that decide, bool [n]: of a weight above 0, and no lower bound that the law exceeds."""
        counted = self.rows.weights > 0
        return counted & ~(self.rows.censored & (self.residuals == 0)) if self.rows.censored.any() else counted

    @property
    def degrees_of_freedom(self) -> int:
        return int(self.counted.sum()) - len(self.theta) + len(self.fixed)

    def predict(self, columns: Mapping[str, Any]) -> np.ndarray:
        """The target [n] at columns [n]."""
        return predict(self.law, self.theta, columns)

    @property
    def residuals(self) -> np.ndarray:
        """[n] in the objective's space, predicted minus observed; 0 for a lower bound that the law exceeds."""
        predicted, observed = self.predict(self.rows.columns), self.rows.target
        r = np.log(predicted) - np.log(observed) if self.objective.space == "log" else predicted - observed
        return np.where(self.rows.censored, np.minimum(r, 0.0), r)

    @property
    def errors(self) -> dict[str, float]:
        """Standard errors by name, in natural units (of a logarithmic parameter by the delta method)."""
        deviations = np.sqrt(np.maximum(np.diag(self.covariance), 0.0))
        pairs = zip(self.law.parameters, deviations)
        return {p.name: float(d * self.values[p.name] if p.log else d) for p, d in pairs}


@functools.lru_cache(maxsize=64)
def problem_of(law: Law, space: str) -> Problem:
    """One problem, and so one compilation, for each law and residual space."""

    def quantities(theta):
        values = law.natural(theta)
        further = []
        for d in law.derived:
            value = jnp.asarray(d.value(values), theta.dtype)
            further.append(jnp.log(value) if d.log else value)
        return jnp.concatenate([theta, jnp.stack(further)]) if further else theta

    return Problem(lambda theta, columns: law.predict(law.natural(theta), columns), quantities, space)


def box(law: Law) -> tuple[np.ndarray, np.ndarray]:
    low, high = zip(*(parameter.box for parameter in law.parameters))
    return np.array(low, float), np.array(high, float)


def values_of(law: Law, theta: np.ndarray) -> dict[str, float]:
    """Constants by name, in natural units, of coordinates [p]."""
    return {p.name: float(np.exp(at)) if p.log else float(at) for p, at in zip(law.parameters, theta)}


def predict(law: Law, theta: np.ndarray, columns: Mapping[str, Any]) -> np.ndarray:
    """The law's target for coordinates [..., p] at columns [n]: [..., n]."""
    flat = np.asarray(theta, float).reshape(-1, len(law.parameters))
    columns = {column.name: np.asarray(columns[column.name], float) for column in law.columns}
    found = solve.predictions(problem_of(law, "linear"), flat, columns)
    return found.reshape(*np.shape(theta)[:-1], -1)


def fit(
    law: Law,
    rows: Rows,
    objective: Objective | None = None,
    starts: Sequence[Mapping[str, float]] = (),
    fixed: Mapping[str, float] | None = None,
) -> Fit:
    """The best optimum over many starts.

    Args:
      starts: further starts beside the law's own grid; with `fixed`, those values hold everywhere.
      fixed: constants that are not fitted, in natural units.

    Raises:
      LawError: rows that cannot determine the law (see `check_rows`), no start with a finite objective, or a constant
        held fixed that the law lacks or at a value without a logarithm where one is taken.
    """
    objective = objective or law.objective
    fixed = dict(fixed or {})
    check_fixed(law, fixed)
    check_rows(law, rows, objective, len(law.parameters) - len(fixed))
    low, high = box(law)
    for name, value in fixed.items():
        i = law.names.index(name)
        low[i] = high[i] = np.log(value) if law.parameters[i].log else value
    problem = problem_of(law, objective.space)
    grid = start_grid(law, rows, objective.space, fixed)
    given = np.array([law.search({**start, **fixed}) for start in starts], float).reshape(-1, len(low))
    theta = np.clip(np.concatenate([given, grid]), low, high)
    scale = _scale(problem, rows, theta, objective)
    squares = objective.name == "least-squares"
    theta = _best_apart(problem, rows, theta, scale, len(given))
    weights = np.asarray(rows.weights, float)
    for stage in objective.stages:
        data = solve.data_of(problem, rows, scale, stage, squares)
        found = _search(problem, data, theta, low, high, weights)
        theta = found.theta
    return _fit_of(law, objective, rows, problem, data, found, scale, fixed)


def _search(problem, data, theta, low, high, weights) -> Solution:
    """All lanes for some steps, then those that may still be the best to their ends: the rest wander on flat ground."""
    found = solve.minimise(problem, data, theta, low, high, weights, calls=SEARCH_CALLS)
    value = np.where(np.isfinite(found.objective), found.objective, np.inf)
    going = ~found.arrived & (value <= value.min() * RIVAL)
    if not going.any():
        return found
    further = solve.minimise(problem, data, found.theta[going], low, high, weights)
    for field in dataclasses.fields(Solution):
        getattr(found, field.name)[going] = getattr(further, field.name)
    return found


def check_fixed(law: Law, fixed: Mapping[str, float]) -> None:
    """Raises LawError for constants that cannot be held, or where none is left to fit."""
    for name, value in fixed.items():
        if name not in law.names:
            raise LawError(f"law {law.name}: found no constant {name!r} to hold fixed, expected {', '.join(law.names)}")
        positive = law.parameters[law.names.index(name)].log
        if not np.isfinite(value) or (positive and not value > 0):
            wanted = "a finite number above 0" if positive else "a finite number"
            raise LawError(f"law {law.name}: found {name} = {value:g} to hold fixed, expected {wanted}")
    if len(fixed) == len(law.names):
        raise LawError(f"law {law.name}: found all its constants held fixed, expected one to fit")


def check_rows(law: Law, rows: Rows, objective: Objective, free: int) -> None:
    """Raises LawError where the rows cannot determine the law."""
    counted = rows.weights > 0
    if counted.sum() < free:
        raise LawError(f"law {law.name}: found {int(counted.sum())} rows, expected at least {free}, one per parameter")
    if rows.censored[counted].all() and counted.any():
        raise LawError(
            f"column {law.target.name}: found lower bounds alone, expected rows that were measured beside them"
        )
    for column in law.columns:
        values = np.asarray(rows.columns[column.name])[counted]
        if not np.isfinite(values).all():
            raise LawError(f"column {column.name}: found NaN or infinity, expected numbers")
        if column.positive and not (values > 0).all():
            raise LawError(f"column {column.name}: found {values.min():g}, expected values above 0")
    target = np.asarray(rows.target)[counted]
    if not np.isfinite(target).all():
        raise LawError(f"column {law.target.name}: found NaN or infinity, expected numbers")
    if objective.space == "log" and not (target > 0).all():
        raise LawError(f"column {law.target.name}: found {target.min():g}; log residuals need values above 0")


def _scale(problem: Problem, rows: Rows, theta: np.ndarray, objective: Objective) -> float:
    """The residual that counts as one, from the best start's median residual where the objective names none."""
    measured = (rows.weights > 0) & ~rows.censored  # a lower bound that is exceeded has no residual
    typical = np.median(np.abs(solve.residuals_at(problem, rows, theta)[:, measured]), axis=1)
    if not np.isfinite(typical).any():
        raise LawError("no start gives finite predictions: check the units of the columns")
    return objective.scale(max(float(np.nanmin(typical)), 1e-12))


def _best_apart(problem: Problem, rows: Rows, theta: np.ndarray, scale: float, given: int) -> np.ndarray:
    """The starts that were given, and the best of the others by mean absolute residual."""
    counted = rows.weights > 0
    size = np.abs(solve.residuals_at(problem, rows, theta)[:, counted]).mean(1)
    size = np.where(np.isfinite(size), size, np.inf)
    size[:given] = -1.0
    order = np.argsort(size, kind="stable")[: SEARCHES + given]
    return theta[order[np.isfinite(size[order])]]


def _fit_of(
    law: Law,
    objective: Objective,
    rows: Rows,
    problem: Problem,
    data: tuple,
    found: Solution,
    scale: float,
    fixed: Mapping[str, float],
) -> Fit:
    value = np.where(np.isfinite(found.objective), found.objective, np.inf)
    best = int(np.argmin(value))
    if not np.isfinite(value[best]):
        raise LawError(f"law {law.name}: no search ended with a finite objective; check the units of the columns")
    near = value <= value[best] * (1 + SAME_OPTIMUM) + 1e-20
    apart = np.argsort(value, kind="stable")
    apart = [i for i in apart if found.arrived[i] and not near[i] and np.isfinite(value[i])]
    rivals: list[int] = []
    for i in apart:
        if value[i] <= value[best] * RIVAL and (not rivals or value[i] > value[rivals[-1]] * (1 + SAME_OPTIMUM)):
            rivals.append(i)
    theta = found.theta[best]
    free = [i for i, name in enumerate(law.names) if name not in fixed]
    covariance, alike, condition, dispersion = spread(problem, data, theta, rows.weights, free)
    further = found.quantities[best][len(theta) :]
    derived = {d.name: float(np.exp(v) if d.log else v) for d, v in zip(law.derived, further)}
    low, high = box(law)
    ends = [law.names[i] for i in free if theta[i] <= low[i] or theta[i] >= high[i]]
    unit = {"huber": scale**2, "least-squares": scale**2, "lad": scale}[objective.name]
    return Fit(
        law=law,
        objective=objective,
        rows=rows,
        values=values_of(law, theta),
        derived=derived,
        theta=theta,
        objective_value=float(value[best] * unit),
        scaled_value=float(value[best]),
        scale=scale,
        covariance=covariance,
        alike_covariance=alike,
        dispersion=dispersion,
        certificate=Certificate(
            gradient=float(found.gradient[best]),
            starts=len(value),
            reached=float(near.mean()),
            second_basin=float(value[apart[0]] / value[best] - 1) if apart and value[best] > 0 else None,
            condition=condition,
            at_bound=tuple(ends),
        ),
        others=found.theta[rivals[:3]],
        fixed=fixed,
    )


def influence(
    r: np.ndarray, weights: np.ndarray, delta: float, squares: bool, constants: int
) -> tuple[np.ndarray, np.ndarray]:
    """rho' and rho'' of scaled residuals r [n], as the variance of an M-estimator needs them.

    Where few rows lie within delta, or (lad) none, their number over delta says little of the density of residuals at
    0, which rho'' stands for; it is then taken over the inner half of them (Powell 1991), and at least three rows for
    each constant. Of normal residuals the half makes standard errors 8 % too large; fewer rows make them uncertain.
    """
    if squares:
        return r, np.ones_like(r)
    size = np.abs(r[weights > 0])
    window = max(delta, np.quantile(size, min(1.0, max(0.5, 3 * constants / len(size)))))
    return np.clip(r / delta, -1, 1), (np.abs(r) <= window) / window


def spread(
    problem: Problem, data: tuple, theta: np.ndarray, weights: np.ndarray, free: list[int]
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Sandwich covariance [p, p] (0 for fixed constants), that of alike rows, condition of the Hessian, dispersion.

    The Hessian is exact for least squares, else J^T diag(w rho'') J: the rest of it has mean 0, but not with the rho''
    of `influence`, with which it would be another objective's away from its optimum.
    """
    _, _, censored, _, delta, kind = data
    r, J, hessian, *_ = solve.local(problem, data, weights, theta)
    weights = np.where(censored & (r == 0), 0.0, weights)  # a lower bound that is exceeded says nothing of the scatter
    slope, bend = influence(r, weights, delta, kind == 1, len(free))
    J = np.where((weights > 0)[:, None], J, 0.0)
    slope, bend = np.where(weights > 0, slope, 0.0), np.where(weights > 0, bend, 0.0)
    n, p = int((weights > 0).sum()), len(free)
    meat = (J * ((weights * slope) ** 2)[:, None]).T @ J
    if kind != 1:
        hessian = (J * (weights * bend)[:, None]).T @ J
    H, V, alike = hessian[np.ix_(free, free)], *np.zeros((2, len(theta), len(theta)))
    unit = 1 / np.sqrt(np.maximum(np.abs(np.diag(H)), 1e-300))
    condition = float(np.linalg.cond(H * np.outer(unit, unit))) if np.isfinite(H).all() else np.inf
    inside = float((weights * bend).sum())
    dispersion = float(((weights * slope) ** 2).sum() / inside) if inside > 0 else np.nan
    if n > p and condition < 1e16:
        inverse = np.linalg.inv(H * np.outer(unit, unit)) * np.outer(unit, unit)
        V[np.ix_(free, free)] = inverse @ meat[np.ix_(free, free)] @ inverse * n / (n - p)
        dispersion *= n / (n - p)
        alike[np.ix_(free, free)] = inverse * dispersion
    else:
        V[np.ix_(free, free)] = alike[np.ix_(free, free)] = np.nan
        dispersion = np.nan
    return V, alike, condition, dispersion
