"""What a fit says as a document of plain numbers, and the record from which it can be made and used again.

Numbers keep full precision: constants rounded to two digits have given objectives several times the optimum. What is
not a finite number is null; an interval with a null end is open there, one without ends says why.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from lab.laws import design
from lab.laws.bootstrap import Interval
from lab.laws.compare import published_against_ours
from lab.laws.describe import plain
from lab.laws.fit import Fit
from lab.laws.intervals import Resamples, logs_of, names_of

VERSIONED = ("windtunnel", "jax", "numpy", "scipy", "pandas")


def document(
    fit: Fit, intervals: Mapping[str, Interval], resamples: Resamples | None, errors: Mapping[str, float]
) -> dict[str, Any]:
    """Law, objective, constants with unit and interval, derived quantities, published values beside, certificate.

    Args:
      errors: standard errors of constants and derived quantities.
    """
    law, objective = fit.law, fit.objective
    found = {**fit.values, **fit.derived}

    def entry(quantity: Any) -> dict[str, Any]:
        interval = intervals[quantity.name]
        said = {
            "value": found[quantity.name],
            "interval": [interval.low, interval.high] if interval.known else None,
            "unit": quantity.unit,
            "standard_error": errors.get(quantity.name),
            "meaning": quantity.meaning,
        }
        return said if interval.known else {**said, "reason": interval.reason}

    level = next(iter(intervals.values())).level
    method = {"method": "profile likelihood", "level": level}
    if resamples is not None:
        share = {"resamples": len(resamples.theta), "converged": resamples.converged}
        method = {"method": "bootstrap percentiles", "level": level, **share}
    open_ended = unlimited(fit, intervals)
    certificate = {
        "converged": fit.certificate.converged,
        "identified": fit.certificate.identified and fit.degrees_of_freedom > 0 and not open_ended,
        **dataclasses.asdict(fit.certificate),
        "warnings": [*fit.certificate.warnings, *open_ended],
    }
    return plain(
        {
            "law": law.name,
            "formula": law.formula,
            "source": law.source,
            "objective": {**dataclasses.asdict(objective), "value": fit.objective_value, "in_words": str(objective)},
            "rows": int((fit.rows.weights > 0).sum()),
            "fixed": dict(fit.fixed),
            "parameters": {parameter.name: entry(parameter) for parameter in law.parameters},
            "derived": {quantity.name: entry(quantity) for quantity in law.derived},
            "intervals": method,
            "published": [beside(fit, published, found, errors) for published in law.published],
            "certificate": certificate,
        }
    )


def unlimited(fit: Fit, intervals: Mapping[str, Interval]) -> list[str]:
    """Fitted constants that the rows do not limit, in words: those without an interval, and those with an open end."""
    found: dict[str, list[str]] = {}
    positive = {parameter.name for parameter in fit.law.parameters if parameter.log}  # 0 is their open end
    for name in fit.law.names:
        if name in fit.fixed:
            continue
        interval = intervals[name]
        if not interval.known:
            found.setdefault(f"not identified: no interval for {{}}, {interval.reason}", []).append(name)
        elif math.isinf(interval.high) or math.isinf(interval.low) or (interval.low == 0 and name in positive):
            found.setdefault("not identified: the rows set no limit to {} on one side or both", []).append(name)
    return [words.format(", ".join(names)) for words, names in found.items()]


def beside(fit: Fit, published: Any, found: Mapping[str, float], errors: Mapping[str, float]) -> dict[str, Any]:
    """A source's constants against ours, and what the objective is at them on these rows."""
    known = {name: value for name, value in published.values.items() if name in found}
    table = published_against_ours(known, found, errors, {})
    said = {"source": published.source, "note": published.note, "recalled": published.recalled}
    said["values"] = table.drop(columns="reason").to_dict("records")
    if set(fit.law.names) <= set(known):
        said["objective"] = objective_at(fit, {name: known[name] for name in fit.law.names})
    return said


def objective_at(fit: Fit, values: Mapping[str, float]) -> float:
    """The objective, in the paper's own unit, of other constants on the rows of a fit."""
    r = dataclasses.replace(fit, theta=np.array(fit.law.search(values))).residuals
    delta = fit.objective.delta
    if fit.objective.name == "huber":
        rho = np.where(np.abs(r) <= delta, 0.5 * r**2, delta * (np.abs(r) - 0.5 * delta))
    else:
        rho = 0.5 * r**2 if fit.objective.name == "least-squares" else np.abs(r)
    counted = fit.rows.weights > 0
    return float((fit.rows.weights * rho)[counted].sum())


def information(fit: Fit) -> tuple[float | None, str]:
    """Akaike's criterion, and what density it stands on; None with the reason where the objective is no likelihood.

    Least squares is a normal density of unknown width, least absolute deviations a Laplace density (whose width is the
    mean absolute residual). Huber's loss with a delta that was chosen beforehand is neither.
    """
    n, k = int((fit.rows.weights > 0).sum()), len(fit.law.parameters) - len(fit.fixed) + 1
    if fit.objective.name == "huber":
        return None, "Huber's loss at a chosen delta is no likelihood"
    if fit.rows.censored.any() or not np.isin(fit.rows.weights, (0, 1)).all():
        return None, "rows are weighted or censored"
    if fit.objective_value <= 0:
        return None, "the residuals are all zero"
    if fit.objective.name == "least-squares":
        return n * math.log(2 * fit.objective_value / n) + 2 * k, "normal residuals"
    return 2 * n * math.log(2 * fit.objective_value / n) + 2 * k, "Laplace residuals"


def standard_errors(fit: Fit, resamples: Resamples | None) -> dict[str, float]:
    """Of constants and derived quantities, in natural units: from resamples, or else from the covariance."""
    if resamples is not None:
        return resamples.standard_errors()
    found = {**fit.values, **fit.derived}
    logs = dict(zip(names_of(fit), logs_of(fit)))
    return {name: e * abs(found[name]) if logs[name] else e for name, e in design.standard_errors(fit).items()}


def full(fit: Fit, document: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The record: the document, search coordinates with their covariance, what was fitted and asked, versions.

    Args:
      asked: options by name, `seed` among them.
    """
    coordinates = [f"ln {p.name}" if p.log else p.name for p in fit.law.parameters]
    return plain(
        {
            **document,
            "coordinates": {"names": coordinates, "values": fit.theta, "covariance": fit.covariance},
            "rows_sha256": digest(fit),
            "seed": asked["seed"],
            "asked": asked,
            "versions": versions(),
        }
    )


def digest(fit: Fit) -> str:
    """Of the numbers that were fitted: columns in the law's order, target, weights, censoring."""
    hashed = hashlib.sha256()
    arrays = [*(fit.rows.columns[column.name] for column in fit.law.columns), fit.rows.target, fit.rows.weights]
    for array in (*arrays, fit.rows.censored):
        hashed.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return hashed.hexdigest()


def versions() -> dict[str, str]:
    """Of what computed."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def encoded(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
