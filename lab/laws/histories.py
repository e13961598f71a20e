"""Loss curves in a table: from the learning rate of each logged row to the columns that laws of schedules read.

A row is a logged update of a run: `step`, `lr` there, `loss`. Laws need the learning rate of every update: between
logged rows it is interpolated, and before the first one it rises from 0 in a straight line, like a warm-up that was not
logged. The first rise is no annealing (S2), but counts for the area S1 and among the drops of the multi-power law.
A jump between two rows is smeared over the updates between them: log more often, or make the columns with
`lab.laws.schedules` from the exact history.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lab.laws.errors import TableError
from lab.laws.law import Law
from lab.laws.schedules import annealing_area, columns, stack

READS = ("step", "lr")
GIVES = ("S1", "S2", "drop", "drop_lr", "drop_sum")
ANNEALING_DECAY = 0.999  # of S2 per update
RUNS = ("curve", "run", "run_id")  # names of the column that tells runs apart, where none is given


def needed(law: Law, frame: Any) -> bool:
    """Whether a law reads columns that the frame lacks and a history gives."""
    return any(column.name in GIVES and column.name not in frame for column in law.columns)


def run_column(frame: Any, given: str | None) -> str | None:
    """The column that tells runs apart; None where all rows are one run."""
    return given or next((name for name in RUNS if name in frame), None)


def logged(steps: np.ndarray, lr: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """`GIVES` of rows [n] in their order, by the update, the learning rate and the run of each.

    Raises:
      TableError: a step that is no whole number or occurs twice in a run, a learning rate that is none.
    """
    if not np.isfinite(steps).all() or (steps != np.floor(steps)).any() or (steps < 0).any():
        raise TableError("column step: found values that are no whole numbers, expected updates, counted from 0")
    if not np.isfinite(lr).all() or (lr < 0).any():
        raise TableError("column lr: found NaN or negative values, expected the learning rate of each row")
    order, parts = [], []
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        mine = mine[np.argsort(steps[mine], kind="stable")]
        at = steps[mine].astype(int)
        repeated = np.flatnonzero(np.diff(at) == 0)
        if len(repeated):
            found = f"step {at[repeated[0]]} twice in one run"
            raise TableError(f"column step: found {found}; name the column that tells runs apart with --run COLUMN")
        known = (at, lr[mine]) if at[0] == 0 else (np.r_[0, at], np.r_[0.0, lr[mine]])
        history = np.interp(np.arange(at[-1] + 1), *known)
        area = annealing_area(history, ANNEALING_DECAY, first_rise(history))[at]
        parts.append({**columns(history, at), "S2": area})
        order.append(mine)
    back = np.argsort(np.concatenate(order))
    return {name: values[back] for name, values in stack(parts).items()}


def first_rise(lr: np.ndarray) -> int:
    """The update at which a history [T] has risen for the last time before it first falls: the end of the warm-up."""
    change = np.diff(lr)
    falls = np.flatnonzero(change < 0)
    rises = np.flatnonzero(change[: falls[0] if len(falls) else None] > 0)
    return int(rises[-1]) + 1 if len(rises) else 0
