"""How far the constants move with choices that the data do not make: outliers, delta, objective, cut-offs, counting.

Every choice that leaves rows out is a lane of one vectorised solve, from the headline's optimum and those of its other
basins; other objectives start there too, and only another counting is searched for anew. A difference is told in the
headline's standard errors: a choice that moves a constant by more than two of them says more about it than its interval
does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lab.laws import fit as fitting
from lab.laws import intervals
from lab.laws.design import standard_errors
from lab.laws.fit import Fit
from lab.laws.holdout import sizes
from lab.laws.objective import NAMES, Objective

SHARES, COUNT = (0.01, 0.02), 5  # outliers: shares of the rows, and a number of them
DECILE = 0.1
MOST_DROPPED = 0.5  # a cut-off that would drop more than this share is another experiment
Variant = tuple[str, str, np.ndarray]  # choice, setting, rows kept (bool [n])


def sensitivity(
    fit: Fit,
    columns: Sequence[str] | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
    counting: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> Any:
    """A frame with a row per choice and setting, the headline first.

    Args:
      columns: whose cut-offs and sizes are left out; all that hold one number a row where none are given.
      groups: labels [n] by name, for example {"sweep": frame["sweep"]}: each label is left out in turn.
      counting: other values [n] of columns, by convention, for example {"N with embeddings": {"N": ...}}.

    Columns of the frame: `choice`, `setting`, `rows` that counted, every constant and derived quantity by name, the
    same with ` shift` (difference from the headline in its standard errors; of the logarithm where the quantity is
    followed as one; NaN where the headline has none) and `converged`.
    """
    import pandas

    names = columns or [c.name for c in fit.law.columns if fit.rows.columns[c.name].ndim == 1]
    table = [_row(fit, "headline", str(fit.objective))]
    table += _without_rows(fit, list(_dropping(fit, names, groups or {})))
    table += [_under(fit, objective) for objective in _other_objectives(fit.objective)]
    for convention, values in (counting or {}).items():
        rows = dataclasses.replace(fit.rows, columns={**fit.rows.columns, **values})
        recounted = fitting.fit(fit.law, rows, fit.objective, fixed=fit.fixed)
        table.append(_row(recounted, "counting", convention))
    frame = pandas.DataFrame(table)
    _add_shifts(fit, frame)
    return frame[[*(c for c in frame if c != "converged"), "converged"]]


def largest_movers(fit: Fit, frame: Any) -> dict[str, str]:
    """A line per quantity on what moves it most, of the frame of `sensitivity`; unconverged fits do not count."""
    lines = {}
    others = frame[frame["converged"] & (frame["choice"] != "headline")]
    for name in intervals.names_of(fit):
        shift = others[f"{name} shift"].abs()
        if not shift.notna().any():
            lines[name] = f"{name}: no choice can be told in standard errors, the headline has none"
            continue
        most = others.loc[shift.idxmax()]
        lines[name] = (
            f"{name} {frame.loc[0, name]:.4g} moves most with {most['choice']} ({most['setting']}): {most[name]:.4g}, "
            f"{most[f'{name} shift']:+.1f} standard errors; {others[name].min():.4g} to {others[name].max():.4g} over "
            f"{len(others)} choices"
        )
    return lines


def _dropping(fit: Fit, columns: Sequence[str], groups: Mapping[str, np.ndarray]) -> Iterator[Variant]:
    """The choices that leave rows out, or put back those that the headline left out."""
    rows, counted = fit.rows, fit.rows.weights > 0
    n = int(counted.sum())
    whole = np.isfinite(fit.residuals)
    if (whole & ~counted).any():
        yield "outliers", f"the {int((whole & ~counted).sum())} rows back that were left out", whole
    orders = {"residuals": np.abs(fit.residuals), f"values of {fit.law.target.name}": rows.target}
    for count in sorted({*(round(share * n) for share in SHARES), COUNT} - {0}):
        for what, values in orders.items():
            kept = counted.copy()
            kept[np.argsort(np.where(counted, -values, np.inf), kind="stable")[:count]] = False
            yield "outliers", f"without the {count} largest {what}", kept
    for name in columns:
        values = rows.columns[name]
        ends = np.quantile(values[counted], [DECILE, 1 - DECILE])
        for side, dropped in (("smallest", values <= ends[0]), ("largest", values >= ends[1])):
            if (dropped & counted).sum() <= MOST_DROPPED * n:
                yield "cut-off", f"without the {side} tenth of {name}", counted & ~dropped
    for name in columns:
        label = np.full(len(rows), -1)
        label[counted], meant = sizes(rows.columns[name][counted])
        for i, size_name in enumerate(meant):
            yield "one size out", f"{name} without {size_name}", counted & (label != i)
    for name, labels in groups.items():
        for label in np.unique(labels):
            yield "one group out", f"{name} without {label}", counted & (np.asarray(labels) != label)


def _without_rows(fit: Fit, variants: list[Variant]) -> list[dict[str, Any]]:
    """The choices that leave more rows than constants, and no column with one value, solved together."""
    constants = len(fit.theta) - len(fit.fixed)
    counted = fit.rows.weights > 0
    axes = [values for values in fit.rows.columns.values() if values.ndim == 1 and np.ptp(values[counted]) > 0]

    def enough(kept: np.ndarray) -> bool:
        return kept.sum() > constants and all(np.ptp(values[kept]) > 0 for values in axes)

    weights = np.where(counted | ~np.isfinite(fit.residuals), fit.rows.weights, 1.0)
    whole = dataclasses.replace(fit, rows=dataclasses.replace(fit.rows, weights=weights))
    return _solved(whole, [variant for variant in variants if enough(variant[2])])


def _solved(fit: Fit, variants: list[Variant]) -> list[dict[str, Any]]:
    if not variants:
        return []
    found = intervals.bootstrap(fit, np.array([kept for _, _, kept in variants], float))
    table = []
    for i, (choice, setting, kept) in enumerate(variants):
        values = {name: float(quantity[i]) for name, quantity in found.quantities.items()}
        converged = bool(found.gradient[i] <= fitting.CONVERGED)
        table.append({"choice": choice, "setting": setting, "rows": int(kept.sum()), **values, "converged": converged})
    return table


def _other_objectives(own: Objective) -> list[Objective]:
    """Those of other names, and of a delta ten times larger and smaller."""
    others = [dataclasses.replace(own, name=name) for name in NAMES if name != own.name]
    if own.name == "huber":
        others += [dataclasses.replace(own, delta=own.delta * factor) for factor in (10.0, 0.1)]
    return others


def _under(fit: Fit, objective: Objective) -> dict[str, Any]:
    """The same rows under another objective, from the headline's optimum and those of its other basins."""
    counted = fit.rows.weights > 0
    typical = float(np.median(np.abs(fit.residuals[fit.counted])))
    other = dataclasses.replace(fit, objective=objective, scale=objective.scale(max(typical, 1e-12)))
    choice = "delta" if objective.name == fit.objective.name else "objective"
    return _solved(other, [(choice, str(objective), counted)])[0]


def _row(found: Fit, choice: str, setting: str) -> dict[str, Any]:
    values = {**found.values, **found.derived}
    rows = int((found.rows.weights > 0).sum())
    return {"choice": choice, "setting": setting, "rows": rows, **values, "converged": found.certificate.converged}


def _add_shifts(fit: Fit, frame: Any) -> None:
    errors = standard_errors(fit)
    for name, log in zip(intervals.names_of(fit), intervals.logs_of(fit)):
        values = np.log(frame[name]) if log else frame[name]
        with np.errstate(divide="ignore", invalid="ignore"):
            frame[f"{name} shift"] = (values - values[0]) / (errors[name] if errors[name] > 0 else np.nan)
