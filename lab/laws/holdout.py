"""Prediction as the test: a law is fitted without some rows and judged by what it says of them.

The error of a row is ln predicted - ln observed (predicted - observed where the target can be negative). It stands
beside two predictions that need no law: the mean of the rows that were kept, and the kept row that is nearest in the
logarithms of the columns, which for one column is the last value before the held-out ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from lab.laws import fit as fitting
from lab.laws.design import prediction_variance
from lab.laws.errors import LawError, TableError
from lab.laws.fit import Fit
from lab.laws.intervals import bootstrap
from lab.laws.law import Column, Law
from lab.laws.objective import Objective
from lab.laws.solve import Rows
from lab.laws.tables import check_values, evaluated, meant, numbers

MOST_SIZES = 12  # distinct values up to which each is a size of its own; beyond, tenths of the rows are
LARGEST = "largest "


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What a law said of k rows that its fit had not seen.

    Attributes:
      mask: the held-out rows, bool [n].
      errors: predicted minus observed [k], of logarithms unless the target can be negative.
      expected: standard deviation that the fit gives these errors [k]: of its constants and of a run about the law.
      baselines: errors [k] of predictions without a law, by name.
    """

    fit: Fit
    mask: np.ndarray
    observed: np.ndarray
    predicted: np.ndarray
    errors: np.ndarray
    expected: np.ndarray
    baselines: Mapping[str, np.ndarray]

    @property
    def covered(self) -> float:
        """Share of the rows within the 90 % prediction interval; NaN where the fit has no covariance.

        The interval takes the law to be right. Of Hoffmann's law with 1 % noise at the N and D of the 240 published
        Chinchilla points it holds 0.91 of the 24 largest budgets (200 draws; 0.93 if the noise is Student's with 3
        degrees of freedom); of the published losses themselves 0.67, as they do not scatter alike about that law.
        """
        reach = student.ppf(0.95, max(self.fit.degrees_of_freedom, 1)) * self.expected
        return float(np.mean(np.abs(self.errors) <= reach)) if np.isfinite(reach).all() else np.nan


def sizes(values: np.ndarray, most: int = MOST_SIZES) -> tuple[np.ndarray, list[str]]:
    """Rows by size, ascending: label of each row [n], and what each label means.

    A size is a distinct value; with more than `most` of those, a tenth of the rows.
    """
    values = np.asarray(values, float)
    distinct, label = np.unique(values, return_inverse=True)
    if len(distinct) <= most:
        return label, [f"{value:.4g}" for value in distinct]
    ends = np.quantile(values, np.arange(1, 10) / 10)
    label = np.unique(np.searchsorted(ends, values), return_inverse=True)[1]
    parts = [values[label == i] for i in range(label.max() + 1)]
    return label, [f"{part.min():.4g} to {part.max():.4g}" for part in parts]


def largest(table: Mapping[str, Any], column: str) -> np.ndarray:
    """The rows of the largest size of a column (see `sizes`), bool [n].

    Raises:
      TableError: no such column, values that are no numbers, or one size only.
    """
    import pandas

    if column not in table:
        raise TableError(f"hold-out: found no column {column!r} to take the largest of{meant(column, table)}")
    frame = pandas.DataFrame({column: table[column]})
    values = numbers(frame, column)
    check_values(frame, Column(column, ""), values, positive=False)
    label, names = sizes(values)
    if len(names) == 1:
        raise TableError(f"hold-out: found one value of {column} ({names[0]}), expected at least two")
    return label == label.max()


def chosen(frame: Any, rule: str) -> np.ndarray:
    """The rows that a rule holds out, bool [n]: `largest C`, or a condition on columns such as `N > 1e9 and D < 1e10`.

    Raises:
      TableError: an unknown column, or a rule that is no condition.
    """
    if rule.startswith(LARGEST):
        return largest(frame, rule.removeprefix(LARGEST).strip())
    holds = np.asarray(evaluated(frame, rule, f"--hold-out {rule!r}"))
    if holds.shape != (len(frame),) or holds.dtype != bool:
        raise TableError(f"--hold-out {rule!r}: found values, expected a condition such as 'N > 1e9', or 'largest N'")
    return holds


def hold_out(
    law: Law,
    rows: Rows,
    mask: np.ndarray,
    objective: Objective | None = None,
    starts: Sequence[Mapping[str, float]] = (),
    fixed: Mapping[str, float] | None = None,
) -> HeldOut:
    """Fits the law to the rows outside `mask` (bool [n]) and predicts those inside.

    Raises:
      LawError: nothing held out, or too little left to fit.
    """
    mask = np.asarray(mask, bool)
    counted = rows.weights > 0
    held, kept = mask & counted, counted & ~mask
    if not held.any() or not kept.any():
        raise LawError(
            f"hold-out: found {int(held.sum())} rows held out and {int(kept.sum())} kept, expected some of each"
        )
    fitting.check_rows(law, rows, objective or law.objective, 0)
    weights = np.where(mask, 0.0, rows.weights)
    found = fitting.fit(law, dataclasses.replace(rows, weights=weights), objective, starts, fixed)
    columns = {name: values[held] for name, values in rows.columns.items()}
    predicted = found.predict(columns)
    logs = in_logs(rows)
    deviation = np.sqrt(prediction_variance(found, columns) + _scatter(found))
    if logs and found.objective.space == "linear":
        deviation = deviation / np.abs(predicted)
    return HeldOut(
        fit=found,
        mask=held,
        observed=rows.target[held],
        predicted=predicted,
        errors=_errors(predicted, rows.target[held], rows.censored[held], logs),
        expected=deviation,
        baselines={
            name: _errors(guess, rows.target[held], rows.censored[held], logs)
            for name, guess in _without_a_law(rows, kept, held, logs).items()
        },
    )


def _scatter(found: Fit) -> float:
    """Variance of a run about the law, in the objective's space; NaN without degrees of freedom."""
    counted, freedom = found.counted, found.degrees_of_freedom
    if freedom <= 0:
        return np.nan
    squares = np.average(found.residuals[counted] ** 2, weights=found.rows.weights[counted])
    return float(squares * counted.sum() / freedom)


def in_logs(rows: Rows) -> bool:
    """Whether errors are of logarithms."""
    return bool((rows.target[rows.weights > 0] > 0).all())


def _errors(predicted: np.ndarray, observed: np.ndarray, censored: np.ndarray, logs: bool) -> np.ndarray:
    """Infinite where a prediction has no logarithm. Above a lower bound nothing is wrong."""
    if logs:
        error = np.full(predicted.shape, np.inf)
        np.log(predicted, out=error, where=predicted > 0)
        error = error - np.log(observed)
    else:
        error = predicted - observed
    return np.where(censored, np.minimum(error, 0.0), error)


def _without_a_law(rows: Rows, kept: np.ndarray, held: np.ndarray, logs: bool) -> dict[str, np.ndarray]:
    """Predictions [k] from the kept rows alone, by name."""
    target = np.log(rows.target) if logs else rows.target
    mean = np.average(target[kept], weights=rows.weights[kept])
    axes = []
    for values in rows.columns.values():
        if values.ndim == 1 and np.ptp(values[kept]) > 0:
            axis = np.log(values) if (values[kept | held] > 0).all() else values
            axes.append(axis / axis[kept].std())
    guesses = {"mean of the rest": np.full(held.sum(), mean)}
    if axes:
        place = np.stack(axes, 1)
        distance = np.square(place[held][:, None] - place[kept][None]).sum(2)
        close = distance <= distance.min(1, keepdims=True) * (1 + 1e-9) + 1e-18  # several runs of one setting
        guesses["nearest run"] = (close * target[kept]).sum(1) / close.sum(1)
    return {name: np.exp(guess) if logs else guess for name, guess in guesses.items()}


def summary(errors: np.ndarray) -> dict[str, float]:
    """Mean and worst size of errors [k], and their mean with sign."""
    size = np.abs(errors)
    return {"mean_error": float(size.mean()), "worst_error": float(size.max()), "bias": float(errors.mean())}


def compare(found: Sequence[HeldOut]) -> Any:
    """A frame with a row per law and per baseline, the least mean error first.

    `behind` is the mean of |error| - |error of the best|, row by row, and `behind_error` its standard error with the
    held-out rows taken as independent: laws within one or two of those are not told apart by these rows.

    Raises:
      LawError: the laws were not held against the same rows.
    """
    import pandas

    first = found[0]
    for other in found[1:]:
        if not np.array_equal(first.observed, other.observed) or not np.array_equal(first.mask, other.mask):
            names = f"{first.fit.law.name} and {other.fit.law.name}"
            raise LawError(f"hold-out: {names} were held against different rows, expected the same mask and target")
    errors = {name: values for name, values in first.baselines.items()}
    rows = [{"law": name, "constants": 0, "rows": len(first.errors)} for name in errors]
    for each in found:
        name = each.fit.law.name if each.fit.law.name not in errors else f"{each.fit.law.name}, {each.fit.objective}"
        errors[name] = each.errors
        constants = len(each.fit.theta) - len(each.fit.fixed)
        warnings = "; ".join(each.fit.certificate.warnings)
        rows.append({"law": name, "constants": constants, "rows": len(each.errors), "covered": each.covered})
        rows[-1]["warnings"] = warnings
    best = min(errors.values(), key=lambda values: np.abs(values).mean())
    for row in rows:
        behind = np.abs(errors[row["law"]]) - np.abs(best)
        spread = behind.std(ddof=1) / np.sqrt(len(behind)) if len(behind) > 1 else np.nan
        row |= summary(errors[row["law"]]) | {"behind": float(behind.mean()), "behind_error": float(spread)}
    order = ["law", "constants", "rows", "mean_error", "worst_error", "bias", "behind", "behind_error"]
    frame = pandas.DataFrame(rows, columns=[*order, "covered", "warnings"]).fillna({"warnings": ""})
    return frame.sort_values("mean_error", kind="stable", ignore_index=True)


def leave_one_size_out(fit: Fit, column: str | np.ndarray) -> Any:
    """Each size of a column (a name, or values [n]) predicted by the law fitted to the others: a frame, a row per size.

    The fits are solved in one call, from the optimum of all rows. The first and the last size are extrapolations. The
    last row gathers all sizes that could be predicted; a size without which too few rows are left has NaN.
    """
    import pandas

    rows, law = fit.rows, fit.law
    values = rows.columns[column] if isinstance(column, str) else column
    counted, logs = rows.weights > 0, in_logs(rows)
    label = np.full(len(rows), -1)
    label[counted], names = sizes(np.asarray(values)[counted])
    keep = label != np.arange(len(names))[:, None]  # [sizes, n]
    enough = (keep & counted).sum(1) >= len(fit.theta) - len(fit.fixed)
    if not enough.any():
        raise LawError(f"law {law.name}: no size can be left out, the others have too few rows for its constants")
    refitted = bootstrap(fit, keep[enough].astype(float))
    predicted = np.full(keep.shape, np.nan)
    predicted[enough] = fitting.predict(law, refitted.theta, rows.columns)
    table, all_errors = [], []
    for i, name in enumerate(names):
        held = counted & ~keep[i]
        row = {"size": name, "rows": int(held.sum()), "mean_error": np.nan, "worst_error": np.nan, "bias": np.nan}
        if enough[i]:
            errors = _errors(predicted[i, held], rows.target[held], rows.censored[held], logs)
            near = _without_a_law(rows, counted & keep[i], held, logs).get("nearest run")
            row |= summary(errors)
            if near is not None:
                guess = _errors(near, rows.target[held], rows.censored[held], logs)
                row["nearest_run_error"] = float(np.abs(guess).mean())
            all_errors.append(errors)
        table.append(row)
    joined = np.concatenate(all_errors)
    table.append({"size": "all", "rows": len(joined), **summary(joined)})
    return pandas.DataFrame(table)
