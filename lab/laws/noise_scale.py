"""The gradient noise scale of McCandlish et al. 2018 (arXiv 1812.06162), from the two halves of a micro-batch.

With gA, gB the mean gradients over two disjoint halves of h sequences each, G the true gradient and Sigma the
covariance of one sequence's gradient,

    E |gA - gB|^2 = 2 tr(Sigma) / h          E gA . gB = |G|^2          B_simple = tr(Sigma) / |G|^2   (in sequences).

Both averages are unbiased, their ratio is not; hence a ratio of means over probes, never a mean of ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lab.laws.bootstrap import Interval, no_interval, percentile_interval


@dataclass(frozen=True)
class NoiseScale:
    """B_simple; NaN with a `reason` when the probes do not identify |G|^2."""

    sequences: float
    trace: float
    """tr(Sigma), of one sequence's mean gradient."""
    squared_gradient: float
    """|G|^2; an estimate may be negative."""
    interval: Interval
    """Of `sequences`; the upper end is infinite when |G|^2 = 0 is not excluded."""
    probes: int
    reason: str

    def tokens(self, sequence_length: int) -> float:
        """The same batch in tokens."""
        return self.sequences * sequence_length


def estimate(
    squared_difference: np.ndarray,
    inner_product: np.ndarray,
    half_sequences: np.ndarray | float,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> NoiseScale:
    """B_simple from probes |gA - gB|^2 [P] and gA . gB [P], with halves of `half_sequences` sequences (scalar or [P]).

    The interval resamples probes. Probes of one stretch of training share one |G|^2 only roughly, and successive probes
    of one run are nearly independent since each sees fresh data: choose the stretch, then call this once for it.

    Raises ValueError for unequal lengths, no finite probe, or halves that are not positive.
    """
    difference, inner = np.asarray(squared_difference, float), np.asarray(inner_product, float)
    half = np.broadcast_to(np.asarray(half_sequences, float), difference.shape)
    if difference.shape != inner.shape or difference.ndim != 1:
        raise ValueError(f"found {difference.shape} differences and {inner.shape} products; expected one length")
    if not (half > 0).all():
        raise ValueError("a half must hold a positive number of sequences")
    finite = np.isfinite(difference) & np.isfinite(inner)
    if not finite.any():
        raise ValueError("no finite probe of the gradient noise")
    traces, inner = 0.5 * half[finite] * difference[finite], inner[finite]
    trace, squared = float(traces.mean()), float(inner.mean())
    if squared <= 0:
        reason = f"the estimate of |G|^2 over {inner.size} probes is {squared:.3g}, not positive: not identified"
        return NoiseScale(float("nan"), trace, squared, no_interval(reason, level), inner.size, reason)
    if inner.size < 3:
        interval = no_interval(f"{inner.size} probe(s) give no interval", level)
    else:
        picks = np.random.default_rng(seed).integers(inner.size, size=(resamples, inner.size))
        tops, bottoms = traces[picks].mean(1), inner[picks].mean(1)
        ratios = np.where(bottoms > 0, tops / np.where(bottoms > 0, bottoms, 1.0), np.inf)
        interval = percentile_interval(ratios, level, observations=inner.size)
    return NoiseScale(trace / squared, trace, squared, interval, inner.size, "")
