"""All that is asked of a fit, in order: optimum, intervals, sensitivity; and several laws on the same held-out rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lab.laws import record
from lab.laws.describe import plain
from lab.laws.errors import LawError, TableError
from lab.laws.fit import Fit, fit
from lab.laws.holdout import compare, hold_out
from lab.laws.intervals import Resamples, bootstrap, draw, settled
from lab.laws.law import Law
from lab.laws.objective import Objective
from lab.laws.sensitivity import largest_movers, sensitivity
from lab.laws.solve import Rows

LEAST_RESAMPLES = 50
MOST_GROUPS = 24  # of which each is left out in turn


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is asked.

    Attributes:
      name, delta, space: of the objective; the law's own where None.
      level: of the intervals.
      resamples: of the bootstrap; 0 for profile likelihoods.
      by: label of each row's group [n], drawn whole; None draws rows.
      sensitivity: whether the fit is repeated under other choices.
      recounted: for that, values [n] of columns under other conventions of counting, by convention.
      fixed: constants that are not fitted, by name; a law holds those that it has.
    """

    name: str | None = None
    delta: float | None = None
    space: str | None = None
    level: float = 0.9
    resamples: int = 0
    by: np.ndarray | None = None
    seed: int = 0
    sensitivity: bool = True
    recounted: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.resamples and self.resamples < LEAST_RESAMPLES:
            raise LawError(f"--bootstrap: found {self.resamples}, expected 0 or at least {LEAST_RESAMPLES} resamples")
        if self.by is not None and not self.resamples:
            raise LawError("--by: found no --bootstrap R beside it, which says how often to draw groups")
        if self.seed < 0:
            raise LawError(f"--seed: found {self.seed}, expected 0 or more")
        if not 0 < self.level < 1:
            raise LawError(f"--level: found {self.level}, expected a share between 0 and 1, such as 0.9")

    def objective(self, law: Law) -> Objective:
        given = {key: getattr(self, key) for key in ("name", "delta", "space") if getattr(self, key) is not None}
        return dataclasses.replace(law.objective, **given)

    def fixed_of(self, law: Law) -> dict[str, float]:
        """The law's constants that are held."""
        return {name: value for name, value in self.fixed.items() if name in law.names}


@dataclasses.dataclass(frozen=True)
class Answer:
    """A fit, its resamples where they were asked for, and its document."""

    fit: Fit
    resamples: Resamples | None
    document: dict[str, Any]


def answer(law: Law, rows: Rows, ask: Ask) -> Answer:
    """Fits a law and says how far to trust it.

    Raises:
      LawError: rows that cannot determine the law, or groups too few to resample.
    """
    found = fit(law, rows, ask.objective(law), fixed=ask.fixed_of(law))
    resamples, labels = None, np.arange(len(rows)) if ask.by is None else ask.by
    size = len(np.unique(labels[found.counted]))
    if ask.resamples:
        if size < 2:
            raise LawError(f"--by: found {size} group, expected at least two to draw from")
        resamples = bootstrap(found, draw(len(rows), ask.resamples, ask.seed, ask.by))
        intervals = resamples.intervals(ask.level, size)
    else:
        found, intervals = settled(found, level=ask.level)
    document = record.document(found, intervals, resamples, record.standard_errors(found, resamples))
    if ask.sensitivity:
        groups = {"group": ask.by} if ask.by is not None and size <= MOST_GROUPS else {}
        known = {column.name for column in law.columns}
        recounted = {how: values for how, values in ask.recounted.items() if set(values) <= known}
        table = sensitivity(found, groups=groups, counting=recounted)
        document["sensitivity"] = plain(table.to_dict("records"))
        document["moves_most"] = largest_movers(found, table)
    return Answer(found, resamples, document)


def held_out(answers: Sequence[Answer], mask: np.ndarray, rule: str) -> list[dict[str, Any]]:
    """Each law fitted to the rows outside `mask` and judged inside, the best first; predictions without a law beside.

    Each answer's document gets its own line and those of the predictions without a law.
    """
    tests = [hold_out(a.fit.law, a.fit.rows, mask, a.fit.objective, (a.fit.values,), a.fit.fixed) for a in answers]
    judged = plain(compare(tests).to_dict("records"))
    for each in answers:
        own = [row for row in judged if row["constants"] == 0 or row["law"].split(",")[0] == each.fit.law.name]
        each.document["held_out"] = {"rule": rule, "errors": own}
    return judged


def on_fitted_rows(answers: Sequence[Answer]) -> dict[str, Any]:
    """Each law on the rows that it was fitted to: a row per law, and in words what may be compared."""
    rows, reasons = [], []
    for each in answers:
        criterion, reason = record.information(each.fit)
        reasons.append(reason)
        size = np.abs(each.fit.residuals[each.fit.counted])
        constants = len(each.fit.theta) - len(each.fit.fixed)
        row = {"law": each.fit.law.name, "constants": constants, "objective": each.fit.objective_value}
        row |= {"objective_is": str(each.fit.objective), "mean_residual": float(size.mean()), "AIC": criterion}
        rows.append(row | {"identified": "yes" if each.document["certificate"]["identified"] else "no"})
    targets = {each.fit.law.target.name for each in answers}
    if len(targets) > 1 or len({str(each.fit.objective) for each in answers}) > 1:
        words = "The laws minimise different objectives, so that neither those nor AIC compare; `--objective` sets one."
        if len(targets) > 1:
            words = f"The laws predict {' and '.join(sorted(targets))}: neither objectives nor AIC compare."
        rows = [{**row, "AIC": None} for row in rows]
    elif rows[0]["AIC"] is None:
        words = f"No AIC: {reasons[0]}. Of objectives on the same rows the lower is the better fit, not the better law."
    else:
        words = f"AIC ({reasons[0]}): lower is better, and a difference under 2 tells nothing apart."
    return {"fitted": plain(rows), "information": words}


def rule_of(given: str | None, laws: Sequence[Law], table: Mapping[str, Any]) -> str | None:
    """The rows to hold out, as `holdout.chosen` takes it; where laws are compared and none is given, the largest
    compute, data or size that a law reads.

    Raises:
      TableError: a rule for laws that predict different columns.
    """
    targets = sorted({law.target.name for law in laws})
    if given and len(targets) > 1:
        raise TableError(f"--hold-out: found laws that predict {' and '.join(targets)}, expected one target to compare")
    if given:
        return given.replace("largest:", "largest ", 1)
    if len(laws) == 1 or len(targets) > 1:
        return None
    read = [column.name for law in laws for column in law.columns]
    for name in (*(name for name in ("C", "D", "N") if name in read), *read):
        if name in table and len(np.unique(table[name])) > 1:
            return f"largest {name}"
    return None
