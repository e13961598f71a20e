"""What a recommended setting costs: how far its loss lies above the best of its cell, ln L(recommended) - ln L(best).

Optima are flat. An exponent of the optimal learning rate can be far off, or badly known, at a cost of a thousandth of
the loss; so a law of hyperparameters is judged by this regret, beside its exponents.

Runs of one cell (say one model size and one token count) differ in some axes (say learning rate and batch size). About
the best run a quadratic of ln loss in the logarithms of the axes is fitted by least squares. It is believed where it is
a bowl (positive definite) whose lowest point lies within the runs that it was fitted to, and so does the
recommendation; the regret is then the height above that point, free of the luck of the best run. Else it is the
difference between the run that is nearest to the recommendation and the best one, and the reason is told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lab.laws.errors import LawError, TableError
from lab.laws.fit import Fit

STEPS = 2.0  # of the grid, that the quadratic reaches from the best run along each axis
FURTHER = 1.5  # runs per coefficient that it needs: it reaches further where the grid has gaps

Recommend = Callable[[Mapping[str, float]], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Regret:
    """Of one recommendation in one cell.

    Attributes:
      excess: ln loss there minus ln loss at the best, 0.001 being a tenth of a percent.
      error: its standard error from the scatter about the quadratic; NaN where that was not used or is exact.
      best: setting of the best loss by axis; loss: the least loss, of the quadratic or of a run.
      method: "surface" or "nearest run"; `reason` says why it is the second.
    """

    excess: float
    error: float
    best: Mapping[str, float]
    loss: float
    method: str
    reason: str = ""


def regret(axes: Mapping[str, np.ndarray], loss: np.ndarray, recommended: Mapping[str, float]) -> Regret:
    """Regret of a setting in a cell.

    Args:
      axes: settings of the runs [n] by name, above 0.
      loss: of the runs, [n], above 0; runs without a finite loss (diverged) are left out.
      recommended: by axis, above 0.

    Raises:
      LawError: axes that differ, or nothing to compare with.
    """
    if set(axes) != set(recommended):
        raise LawError(f"regret: found a recommendation of {sorted(recommended)}, expected {sorted(axes)}")
    loss = np.asarray(loss, float)
    finite = np.isfinite(loss)
    x = np.stack([np.log(np.asarray(axes[name], float)[finite]) for name in axes], 1)
    to = np.log([float(recommended[name]) for name in axes])
    if not len(x) or not np.isfinite(x).all() or not np.isfinite(to).all() or not (loss[finite] > 0).all():
        raise LawError(
            "regret: found no run with a loss, or a setting or loss of zero or less; expected values above 0"
        )
    y, step = np.log(loss[finite]), _steps(x)
    best = int(np.argmin(y))
    surface = _surface((x - x[best]) / step, y, (to - x[best]) / step)
    if isinstance(surface, str):
        near = int(np.argmin(np.square((x - to) / step).sum(1)))
        excess, error, place, least = y[near] - y[best], np.nan, x[best], y[best]
    else:
        excess, error, place, least = surface
        place = x[best] + place * step
    return Regret(
        excess=float(excess),
        error=float(error),
        best=dict(zip(axes, map(float, np.exp(place)))),
        loss=float(np.exp(least)),
        method="nearest run" if isinstance(surface, str) else "surface",
        reason=surface if isinstance(surface, str) else "",
    )


def _steps(x: np.ndarray) -> np.ndarray:
    """Spacing of each axis, [k]: the median gap between neighbouring values."""
    gaps = [np.diff(np.unique(np.round(column, 9))) for column in x.T]
    return np.array([np.median(gap) if len(gap) else 1.0 for gap in gaps])


def _terms(x: np.ndarray) -> np.ndarray:
    """1, x_i, x_i x_j (i <= j) of points [..., k]."""
    k = x.shape[-1]
    products = [x[..., i] * x[..., j] for i in range(k) for j in range(i, k)]
    return np.stack([np.ones(x.shape[:-1]), *np.moveaxis(x, -1, 0), *products], -1)


def _surface(x: np.ndarray, y: np.ndarray, to: np.ndarray) -> tuple[float, float, np.ndarray, float] | str:
    """(excess, its error, lowest point [k], its height) of the quadratic about the origin, or why there is none.

    Args:
      x: settings [n, k] in steps from the best run; y: ln loss [n]; to: the recommendation [k].
    """
    k = x.shape[1]
    terms = _terms(to).shape[0]
    distance = np.abs(x).max(1)
    needed = min(int(np.ceil(FURTHER * terms)), len(x))
    near = distance <= max(STEPS, np.sort(distance)[needed - 1]) + 1e-6
    design = _terms(x[near])
    if np.linalg.matrix_rank(design) < terms:
        return f"{int(near.sum())} runs about the best do not determine a quadratic"
    coefficients, *_ = np.linalg.lstsq(design, y[near], rcond=None)
    hessian = np.zeros((k, k))
    hessian[np.triu_indices(k)] = coefficients[1 + k :]
    hessian = hessian + hessian.T  # the diagonal doubles, as second derivatives of x_i^2 do
    if np.linalg.eigvalsh(hessian)[0] <= 0:
        return "the quadratic about the best run is no bowl"
    lowest = np.linalg.solve(hessian, -coefficients[1 : 1 + k])
    low, high = x[near].min(0), x[near].max(0)
    if not ((low < lowest) & (lowest < high)).all():
        return "the quadratic is lowest outside the runs about the best one"
    if not ((low - 1e-6 <= to) & (to <= high + 1e-6)).all():
        return "the recommendation lies outside the runs about the best one"
    difference = _terms(to) - _terms(lowest)  # by the envelope theorem, the slope of the excess in the coefficients too
    freedom = int(near.sum()) - terms
    error = np.nan
    if freedom > 0:
        variance = np.square(y[near] - design @ coefficients).sum() / freedom
        error = np.sqrt(variance * difference @ np.linalg.inv(design.T @ design) @ difference)
    return float(difference @ coefficients), float(error), lowest, float(_terms(lowest) @ coefficients)


def regrets(frame: Any, cells: Sequence[str], axes: Sequence[str], loss: str, recommend: Recommend) -> Any:
    """Regret of a law in every cell: a frame with a row per cell.

    Args:
      frame: a row per run.
      cells: columns that name a cell, for example N and D.
      axes: columns of the settings, for example lr and batch.
      recommend: from a cell's values by column to a setting by axis (see `of_fits`).

    Raises:
      TableError: the frame lacks a column.
    """
    import pandas

    missing = {*cells, *axes, loss} - set(frame.columns)
    if missing:
        raise TableError(f"regret: found no column {', '.join(sorted(missing))}, expected cells, axes and a loss")
    table = []
    for values, runs in frame.groupby(list(cells)):
        cell = dict(zip(cells, map(float, values)))
        setting = recommend(cell)
        found = regret({axis: runs[axis].to_numpy(float) for axis in axes}, runs[loss].to_numpy(float), setting)
        settings = {
            f"{axis} {what}": at[axis] for axis in axes for what, at in (("law", setting), ("best", found.best))
        }
        row = {**cell, "runs": len(runs), **settings, "loss": found.loss, "excess": found.excess}
        table.append({**row, "error": found.error, "method": found.method, "reason": found.reason})
    return pandas.DataFrame(table)


def of_fits(fits: Mapping[str, Fit]) -> Recommend:
    """Recommends what fitted laws predict, one law per axis, of the cell's columns."""

    def recommend(cell: Mapping[str, float]) -> dict[str, float]:
        return {
            axis: float(fit.predict({column.name: np.array([cell[column.name]]) for column in fit.law.columns})[0])
            for axis, fit in fits.items()
        }

    return recommend
