"""Which runs to make next: those that shrink the standard error of what is asked for most, per FLOP.

About the optimum a law is linear in its coordinates. With their covariance V, the slopes j of a new run's prediction
and the variance v of a run about the law, the covariance after that run is (Sherman and Morrison)

    V - V j j^T V / (v + j^T V j)

whatever the run will give; V is the fit's own, so that the standard error before is the reported one. What counts is

    the variance of one quantity, g^T V g          c-optimality (a constant, an exponent, a derived quantity)
    the mean variance of predictions at points     I-optimality (the losses that the law will be used for)
    the volume of the ellipsoid of all constants   D-optimality

(Atkinson, Donev and Tobias 2007, chapters 10 and 11). The law is taken to be right: where a form is in doubt, these
designs, which like the ends of a range, do not test it, and a run in between does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lab.laws import intervals, solve
from lab.laws.errors import LawError
from lab.laws.fit import Fit, influence, problem_of

Columns = Mapping[str, np.ndarray]
Cost = Callable[[Columns], np.ndarray]


def flops(columns: Columns) -> np.ndarray:
    """C = 6 N D [n] (Kaplan et al. 2020): forward and backward of the weights, without attention."""
    return 6.0 * np.asarray(columns["N"], float) * np.asarray(columns["D"], float)


def cost_of(fit: Fit, cost: Cost | None) -> Cost:
    """The cost model that was given, else 6 N D.

    Raises:
      LawError: none was given and the law does not read N and D.
    """
    if cost is None and not {"N", "D"} <= set(fit.rows.columns):
        names = ", ".join(fit.rows.columns)
        raise LawError(f"law {fit.law.name} reads {names}, not N and D; say what a run costs in terms of those")
    return cost or flops


def grid(**values: Sequence[float]) -> dict[str, np.ndarray]:
    """All combinations of columns' values, [n] each."""
    points = np.array(list(itertools.product(*values.values())), float)
    return {name: points[:, i] for i, name in enumerate(values)}


def around(fit: Fit, reach: float = 4.0, points: int = 12) -> dict[str, np.ndarray]:
    """A grid of `points` values a column, from its smallest to `reach` times its largest, even in logarithms.

    Raises:
      LawError: a reach that is none, a column that is a vector a row, or not positive.
    """
    if not 1 < reach < np.inf:
        raise LawError(f"--reach: found {reach:g}, expected a finite number above 1")
    axes = {}
    for column in fit.law.columns:
        values = fit.rows.columns[column.name][fit.rows.weights > 0]
        if values.ndim > 1 or not (values > 0).all():
            raise LawError(f"column {column.name}: no grid can be laid over it, give the candidate runs")
        axes[column.name] = np.geomspace(values.min(), values.max() * reach, points)
    return grid(**axes)


def jacobian(fit: Fit, columns: Columns) -> np.ndarray:
    """Slopes [n, p] of the predictions at columns [n], in the objective's space, with respect to the coordinates."""
    columns = {column.name: np.asarray(columns[column.name], float) for column in fit.law.columns}
    return solve.slopes(problem_of(fit.law, fit.objective.space), fit.theta, columns)


def noise_variance(fit: Fit) -> float:
    """Variance v of a run about the law, in the objective's space, such that V = v (J^T J)^-1.

    For least squares that of the residuals; else E rho'^2 / (E rho'')^2, the asymptotic variance of the objective's
    estimate of a level (Huber 1964). NaN without degrees of freedom.
    """
    counted, freedom = fit.counted, fit.degrees_of_freedom
    if freedom <= 0:
        return np.nan
    r, weights = fit.residuals[counted] / fit.scale, fit.rows.weights[counted]
    squares, constants = fit.objective.name == "least-squares", len(fit.theta) - len(fit.fixed)
    slope, bend = influence(r, weights, fit.objective.stages[-1], squares, constants)
    once = np.average(slope**2, weights=weights) / np.average(bend, weights=weights) ** 2
    return float(once * fit.scale**2 * len(r) / freedom)


def prediction_variance(fit: Fit, columns: Columns) -> np.ndarray:
    """Variance [n] of the predictions at columns [n] that comes from the constants', in the objective's space."""
    slopes = jacobian(fit, columns)
    return np.einsum("ni,ij,nj->n", slopes, fit.covariance, slopes)


def quantity_slopes(fit: Fit) -> np.ndarray:
    """Derivatives [q, p] of constants and derived quantities, as they are followed, by the coordinates."""
    problem = problem_of(fit.law, fit.objective.space)
    data = solve.data_of(problem, fit.rows, fit.scale, 1.0, True)
    return solve.local(problem, data, fit.rows.weights, fit.theta)[-1]


def standard_errors(fit: Fit) -> dict[str, float]:
    """Of constants and derived quantities, by the delta method: of the logarithm where one is followed as such."""
    slopes = quantity_slopes(fit)
    variance = np.einsum("qi,ij,qj->q", slopes, fit.covariance, slopes)
    return dict(zip(intervals.names_of(fit), map(float, np.sqrt(np.maximum(variance, 0.0)))))


def rank(
    fit: Fit,
    candidates: Columns,
    quantity: str | None = None,
    at: Columns | None = None,
    cost: Cost | None = None,
    budget: float = np.inf,
) -> Any:
    """Candidate runs, the most useful per FLOP first: a frame with a row for each that the budget allows.

    Args:
      candidates: values [n] by column.
      quantity: a constant or derived quantity; or
      at: points [k] by column where the law is to predict well. With neither, all constants together.
      cost: FLOPs [n] of columns; 6 N D where none is given.

    Columns of the frame: the candidate's, `cost`, `standard_error` after it (of the quantity, in its own unit; root
    mean square over the points; or the mean radius of the ellipsoid of constants, 1 today), `shrinks` (1 - after /
    before) and `gain_per_cost` (ln before - ln after, over the cost).

    Raises:
      LawError: an unknown quantity, a fit without covariance, no candidate within the budget.
    """
    runs, price = _affordable(fit, candidates, cost, budget)
    aims, today = _aims(fit, quantity, at)
    ratio = _ratio(fit.covariance, noise_variance(fit), jacobian(fit, runs), aims)
    table = _frame(
        runs, cost=price, standard_error=today * ratio, shrinks=1 - ratio, gain_per_cost=-np.log(ratio) / price
    )
    return table.sort_values("gain_per_cost", ascending=False, kind="stable", ignore_index=True)


def plan(
    fit: Fit,
    candidates: Columns,
    budget: float,
    quantity: str | None = None,
    at: Columns | None = None,
    cost: Cost | None = None,
    runs: int = 20,
) -> Any:
    """At most `runs` runs within one budget, in the order in which they are chosen, a setting possibly more than once.

    Chosen one by one, by gain per cost and again by gain alone; the better of the two plans is given (the first spends
    little on each run, the second much; Leskovec et al. 2007, section 3.1). Arguments, columns and errors as of `rank`;
    `spent` is the cost so far, `standard_error` that after this run.
    """
    if runs < 1:
        raise LawError(f"--runs: found {runs}, expected 1 or more")
    possible, price = _affordable(fit, candidates, cost, budget)
    aims, today = _aims(fit, quantity, at)
    slopes, noise = jacobian(fit, possible), noise_variance(fit)
    plans = [_greedy(fit.covariance, noise, slopes, aims, price, budget, runs, power) for power in (1.0, 0.0)]
    picked, ratio = min(plans, key=lambda found: found[1][-1])
    chosen = {name: values[picked] for name, values in possible.items()}
    spent = np.cumsum(price[picked])
    return _frame(chosen, cost=price[picked], spent=spent, standard_error=today * ratio, shrinks=1 - ratio)


def _greedy(covariance, noise, slopes, aims, price, budget, most, power) -> tuple[list[int], np.ndarray]:
    """Runs by largest gain / cost^power within the budget: their indices, and the spread after each over today's."""
    picked, ratios, left = [], [1.0], budget
    while len(picked) < most and (price <= left).any():
        ratio = _ratio(covariance, noise, slopes, aims)
        best = int(np.argmax(np.where(price <= left, -np.log(ratio) / price**power, -np.inf)))
        along = covariance @ slopes[best]
        covariance = covariance - np.outer(along, along) / (noise + slopes[best] @ along)
        picked.append(best)
        ratios.append(ratios[-1] * float(ratio[best]))
        left -= price[best]
    return picked, np.array(ratios[1:])


def _ratio(covariance: np.ndarray, noise: float, slopes: np.ndarray, aims: np.ndarray | None) -> np.ndarray:
    """Spread after a run over the spread before it, [m], for runs with slopes [m, p] and aims [k, p]."""
    along = slopes @ covariance
    variance = noise + (along * slopes).sum(1)
    if aims is None:  # det(V') = det(V) v / (v + j^T V j); the root makes a mean radius of the volume
        return (noise / variance) ** (0.5 / (np.diag(covariance) > 0).sum())
    return np.sqrt(np.maximum(1 - ((along @ aims.T) ** 2).mean(1) / variance / _mean_square(covariance, aims), 0.0))


def _mean_square(covariance: np.ndarray, directions: np.ndarray) -> float:
    return float(np.einsum("ki,ij,kj->k", directions, covariance, directions).mean())


def _aims(fit: Fit, quantity: str | None, at: Columns | None) -> tuple[np.ndarray | None, float]:
    """Directions [k, p] whose mean variance counts (None: all constants), and today's spread along them."""
    if quantity is not None and at is not None:
        raise LawError("found a quantity and points to predict at, expected one of them")
    if not np.isfinite(fit.covariance).all() or not np.isfinite(noise_variance(fit)):
        why = "; ".join(fit.certificate.warnings) or f"{fit.degrees_of_freedom} degrees of freedom"
        raise LawError(f"law {fit.law.name}: the fit has no covariance that runs could improve ({why})")
    if at is not None:
        aims = jacobian(fit, _arrays(at))
        return aims, _mean_square(fit.covariance, aims) ** 0.5
    if quantity is None:
        return None, 1.0
    names = intervals.names_of(fit)
    if quantity not in names:
        raise LawError(f"law {fit.law.name}: found quantity {quantity!r}, expected one of {', '.join(names)}")
    i = names.index(quantity)
    aims = quantity_slopes(fit)[i : i + 1]
    unit = {**fit.values, **fit.derived}[quantity] if intervals.logs_of(fit)[i] else 1.0
    return aims, unit * _mean_square(fit.covariance, aims) ** 0.5


def _affordable(fit: Fit, candidates: Columns, cost: Cost | None, budget: float) -> tuple[dict, np.ndarray]:
    """The candidate runs that the budget allows, and their costs."""
    missing = {column.name for column in fit.law.columns} - set(candidates)
    if missing:
        raise LawError(f"law {fit.law.name}: the candidate runs lack {', '.join(sorted(missing))}")
    runs = _arrays(candidates)
    price = np.asarray(cost_of(fit, cost)(runs), float)
    if not (price > 0).all():
        raise LawError(f"found a cost of {price.min():g}, expected costs above 0")
    if not (price <= budget).any():
        raise LawError(f"found no candidate within the budget of {budget:g}; the cheapest costs {price.min():g}")
    return {name: values[price <= budget] for name, values in runs.items()}, price[price <= budget]


def _arrays(columns: Columns) -> dict[str, np.ndarray]:
    return {name: np.atleast_1d(np.asarray(values, float)) for name, values in columns.items()}


def _frame(runs: Columns, **further: np.ndarray) -> Any:
    import pandas

    return pandas.DataFrame({**runs, **further})
