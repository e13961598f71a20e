"""Columns of a law from a learning-rate history: what a loss curve under any schedule depends on.

A history lr [T] holds the learning rate of every update; a row is the loss after update t (an index into it).

    S1  = sum of lr[0..t]                                               the area under the schedule
    S2  = sum over k <= i <= t of (lr[k-1] - lr[k]) decay^(i-k)         the annealing area (Tissue et al. 2024)
    drop, drop_lr, drop_sum [n, K]                                      an entry per change of the learning rate

The entry of update k is the drop lr[k-1] - lr[k] (negative for a rise), the learning rate lr[k] after it, and the sum
of lr[k..t] since. A cosine changes at every update, which would make K the number of updates. What happened long ago
acts almost alike, so neighbouring drops are grouped by age (and by learning rate), and a group is replaced by two
entries with the same total, mean, variance and skewness of `drop_sum`: Gauss's two nodes. K is then about 50 whatever
T, and the multi-power law's sum over drops is met to 2e-4 of their whole effect, which is 1e-5 nats for a cosine from
3e-4 to 3e-5; `width=0` keeps every drop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.signal import lfilter

from lab.laws.errors import TableError

WIDTH = 0.7  # of a group, in the logarithm of the drop's age in updates
LR_WIDTH = 1.0  # of a group, in the logarithm of the learning rate
LEAST = 1e-6  # of the peak: a learning rate of zero, which has no power, counts as this


def columns(
    lr: np.ndarray, steps: np.ndarray, decay: float = 0.999, since: int = 0, width: float = WIDTH
) -> dict[str, np.ndarray]:
    """All columns above for the rows at `steps` [n] of one run.

    Args:
      lr: learning rate of every update [T], warm-up included.
      decay: of S2, per update.
      since: changes up to this update do not count (that of the warm-up's end: only the changes after it do).
      width: of the groups; 0 keeps every drop.

    Raises:
      TableError: a history that is not positive, or rows outside it.
    """
    lr, steps = _checked(lr, steps)
    return {
        "S1": np.cumsum(lr)[steps],
        "S2": annealing_area(lr, decay, since)[steps],
        **drops(lr, steps, since, width),
    }


def annealing_area(lr: np.ndarray, decay: float, since: int = 0) -> np.ndarray:
    """S2 after every update [T]; see the module's text."""
    return np.cumsum(lfilter([1.0], [1.0, -decay], _changes(lr, since)))


def drops(lr: np.ndarray, steps: np.ndarray, since: int = 0, width: float = WIDTH) -> dict[str, np.ndarray]:
    """`drop`, `drop_lr`, `drop_sum` [n, K]; rows with fewer entries end in drops of 0."""
    change = _changes(lr, since)
    at = np.flatnonzero(change)
    after = np.maximum(lr, LEAST * lr.max())
    apart = np.stack([np.sign(change[at]), np.floor(np.log(after[at]) / LR_WIDTH)])
    total = np.cumsum(lr)
    before = (total - lr)[at]
    ages = np.floor(np.log(np.arange(1, len(lr) + 1)) / width) if width else None
    rows = []
    for step in steps:
        known = np.searchsorted(at, step, side="right")
        row = np.stack([change[at[:known]], after[at[:known]], total[step] - before[:known]])
        rows.append(_two_nodes(row, np.vstack([apart[:, :known], ages[step - at[:known]]])) if width else row)
    return dict(zip(("drop", "drop_lr", "drop_sum"), _padded(rows, max(1, *(r.shape[1] for r in rows)))))


def stack(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The columns of several runs below each other."""
    joined = {}
    for name, first in runs[0].items():
        parts = [run[name] for run in runs]
        if first.ndim == 2:
            longest = max(part.shape[1] for part in parts)
            parts = [np.pad(p, ((0, 0), (0, longest - p.shape[1])), constant_values=_FILL[name]) for p in parts]
        joined[name] = np.concatenate(parts)
    return joined


_FILL = {"drop": 0.0, "drop_lr": 1.0, "drop_sum": 0.0}


def _changes(lr: np.ndarray, since: int) -> np.ndarray:
    """lr[k-1] - lr[k] at every update k [T]; 0 up to `since`."""
    change = -np.diff(lr, prepend=lr[:1])
    change[: since + 1] = 0.0
    return change


def _two_nodes(entries: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Entries [3, K] with neighbours of equal labels [m, K] replaced by two each.

    With mean m, deviation s and skewness g of drop_sum under the weights |drop|, the nodes lie at m + s (g/2 -+ r) with
    r = sqrt(1 + g^2 / 4) and weigh (1 +- g / 2r) / 2. The learning rate follows drop_sum on its line of regression.
    """
    drop, lr, reach = entries
    if not len(drop):
        return entries
    first = np.flatnonzero(np.r_[True, (np.diff(labels) != 0).any(0)])
    sizes = np.diff(np.r_[first, len(drop)])
    weight, whole = np.abs(drop), np.add.reduceat(drop, first)

    def mean(values):
        return np.add.reduceat(weight * values, first) / np.abs(whole)

    middle, middle_lr = mean(reach), mean(lr)
    off, off_lr = reach - np.repeat(middle, sizes), lr - np.repeat(middle_lr, sizes)
    variance, third, joint = mean(off**2), mean(off**3), mean(off * off_lr)
    spread = np.sqrt(variance)
    alone = variance <= 1e-20 * middle**2
    variance = np.where(alone, 1.0, variance)
    skew = np.where(alone, 0.0, third / (variance * np.sqrt(variance)))
    slope = np.where(alone, 0.0, joint / variance)
    root = np.sqrt(1 + skew**2 / 4)
    lowest, highest = np.minimum.reduceat(lr, first), np.maximum.reduceat(lr, first)
    nodes = []
    for side in (-1, 1):
        away = spread * (skew / 2 + side * root)
        rate = np.clip(middle_lr + slope * away, lowest, highest)
        nodes.append(np.stack([whole * (1 - side * skew / (2 * root)) / 2, rate, middle + away]))
    nodes[0][0, sizes == 1] = whole[sizes == 1]
    return np.concatenate([nodes[0], nodes[1][:, sizes > 1]], axis=1)


def _padded(rows: Sequence[np.ndarray], longest: int) -> list[np.ndarray]:
    """Rows [3, k] -> three arrays [n, longest]."""
    full = np.empty((3, len(rows), longest))
    full[:] = np.array(list(_FILL.values()))[:, None, None]
    for i, row in enumerate(rows):
        full[:, i, : row.shape[1]] = row
    return list(full)


def _checked(lr: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lr, steps = np.asarray(lr, float), np.asarray(steps)
    if lr.ndim != 1 or not np.isfinite(lr).all() or (lr < 0).any() or not (lr > 0).any():
        raise TableError("learning rates: found NaN, negative or only zeros; expected one number >= 0 per update")
    if len(steps) and not (0 <= steps.min() and steps.max() < len(lr)):
        raise TableError(f"steps: found {steps.min()} to {steps.max()}, expected 0 to {len(lr) - 1}, the history's own")
    return lr, steps.astype(int)
