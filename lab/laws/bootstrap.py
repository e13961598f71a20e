"""Bootstrap over cells and seeds, and percentile intervals that say when they cannot be had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

FAILURES_ALLOWED = 0.1
"""Share of resamples without an answer above which no interval is given."""


@dataclass(frozen=True)
class Interval:
    """[low, high] at `level`. An end may be infinite (open); both are NaN when `reason` says why there is none."""

    low: float
    high: float
    level: float
    reason: str = ""

    @property
    def known(self) -> bool:
        return not self.reason

    @property
    def half_width(self) -> float:
        return 0.5 * (self.high - self.low)

    def contains(self, value: float) -> bool:
        """False when there is no interval."""
        return self.low <= value <= self.high

    def excludes(self, value: float) -> bool:
        """False when there is no interval."""
        return value < self.low or value > self.high


def no_interval(reason: str, level: float = 0.95) -> Interval:
    return Interval(float("nan"), float("nan"), level, reason)


def percentile_interval(
    samples: np.ndarray, level: float = 0.95, observations: int | None = None, parameters: int = 1
) -> Interval:
    """Percentile interval of resampled estimates [R]; NaN: no answer, +-inf: an open end.

    A plain percentile interval is too short in small samples: the bootstrap's variance lacks the factor n / (n - k),
    and its tails are normal, not Student's. With `observations` n and fitted `parameters` k given, the tail
    probability is lowered to Phi(-sqrt(n / (n - k)) t_{n-k}) ("expanded percentile", Hesterberg 2015,
    arXiv 1411.5279, for k = 1). With very few cells the ends are then the extremes of the resamples.

    No interval: n <= k, fewer than 50 answers, more than 10 % of the resamples without one, or all equal.
    """
    samples = np.asarray(samples, float)
    answers = samples[~np.isnan(samples)]
    tail = 0.5 * (1.0 - level)
    if observations is not None:
        degrees = observations - parameters
        if degrees <= 0:
            return no_interval(f"{observations} cells for {parameters} parameters leave no scatter to judge by", level)
        tail = float(ndtr(-np.sqrt(observations / degrees) * stdtrit(degrees, 1.0 - tail)))
    if answers.size < 50:
        return no_interval(f"only {answers.size} of {samples.size} resamples gave an answer (50 needed)", level)
    if answers.size < (1.0 - FAILURES_ALLOWED) * samples.size:
        return no_interval(f"{samples.size - answers.size} of {samples.size} resamples gave no answer", level)
    if answers.min() == answers.max():
        return no_interval("every resample gave the same answer: nothing was there to resample", level)
    low, high = np.quantile(answers, [tail, 1.0 - tail], method="inverted_cdf")
    return Interval(float(low), float(high), level)


def hierarchical_weights(cells: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Weights [R, K] of K rows, mean 1: Bayesian bootstrap (Rubin 1981) over cells, then over rows (seeds) in a cell.

    Args:
      cells: [K] label of the cell each row belongs to. With one row per cell only the cells are reweighted, and the
        noise between seeds enters through the scatter of the cells alone.

    Weights are Dirichlet(1, ..., 1) instead of counts of draws with replacement: of five cells, draws often leave two
    or three, which determine a two-parameter law by accident. Simulated coverage of 90 % expanded intervals of
    ln(b / a), 5 % noise, one seed: 0.82, 0.85, 0.85, 0.87 with 4, 5, 6, 9 cells (draws with replacement: 0.90, 0.97,
    0.97, 0.95, three times as wide at 5 and 6); with several seeds and no noise between cells it is conservative.
    """
    labels, index = np.unique(np.asarray(cells), return_inverse=True)
    weights = rng.exponential(size=(resamples, len(labels)))
    weights = (weights / weights.mean(1, keepdims=True))[:, index]
    within = rng.exponential(size=weights.shape)
    for cell in range(len(labels)):
        rows = index == cell
        within[:, rows] /= within[:, rows].mean(1, keepdims=True)
    return weights * within
