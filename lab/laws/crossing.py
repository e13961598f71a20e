"""Steps to a target loss, read off one run's evaluations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression


@dataclass(frozen=True)
class Crossing:
    """When a run reached its target."""

    steps: float
    """Updates to target; if censored, the largest number of updates seen with a finite loss."""
    censored: bool
    before_first: bool = False
    """The first evaluation already met the target: `steps` is its step, an upper bound."""


@dataclass(frozen=True)
class Curve:
    """One run's evaluations made monotone: steps [E] increase, losses [E] never do; and the last finite step."""

    steps: np.ndarray
    losses: np.ndarray
    last_step: float

    def loss_at(self, steps: float) -> float:
        """Loss at `steps` between evaluations (linear in ln steps); NaN outside what was evaluated."""
        if not self.steps.size or steps < self.steps[0] or steps > self.last_step:
            return float("nan")
        return float(np.interp(_position(steps), _position(self.steps), self.losses))

    def crossing(self, target: float) -> Crossing:
        """First crossing of `target`, loss linear in ln steps between evaluations."""
        reached = self.losses <= target
        if not reached.any():
            return Crossing(self.last_step, censored=True)
        after = int(np.argmax(reached))
        if after == 0:
            return Crossing(float(self.steps[0]), censored=False, before_first=True)
        before = after - 1
        share = (self.losses[before] - target) / (self.losses[before] - self.losses[after])
        low, high = self.steps[before], self.steps[after]
        if low == 0:
            return Crossing(float(share * high), censored=False)
        return Crossing(float(low * (high / low) ** share), censored=False)


def monotone_curve(steps: np.ndarray, losses: np.ndarray) -> Curve:
    """Monotone treatment of a noisy curve.

    Evaluations after the first loss that is not finite are dropped (the run diverged). Up to the lowest evaluation the
    losses are replaced by their least-squares non-increasing fit (pool adjacent violators): an early lucky dip is
    averaged with the rise that follows it, where the plain first crossing would take it, which favours noisy (small)
    batches. A curve that falls throughout is unchanged. After the lowest evaluation the curve is held there: later
    overfitting or instability does not undo a crossing.

    Raises ValueError for unequal lengths or steps that do not increase.
    """
    steps, losses = np.asarray(steps, float), np.asarray(losses, float)
    if steps.shape != losses.shape or steps.ndim != 1:
        raise ValueError(f"found {steps.shape} steps and {losses.shape} losses; expected one length")
    if (np.diff(steps) <= 0).any() or (steps < 0).any():
        raise ValueError("the steps of the evaluations must increase from 0 or above")
    bad = ~np.isfinite(losses)
    if bad.any():
        steps, losses = steps[: int(np.argmax(bad))], losses[: int(np.argmax(bad))]
    if not steps.size:
        return Curve(steps, losses, 0.0)
    lowest = int(np.argmin(losses)) + 1
    falling = isotonic_regression(losses[:lowest], increasing=False).x
    return Curve(steps[:lowest], falling, float(steps[-1]))


def steps_to_target(steps: np.ndarray, losses: np.ndarray, target: float) -> Crossing:
    """First crossing of `target` by the evaluations (steps [E], losses [E] in nats per token), see `monotone_curve`."""
    return monotone_curve(steps, losses).crossing(target)


def _position(steps: np.ndarray) -> np.ndarray:
    """ln steps, with step 0 put at ln 0.5 (an evaluation of the initial weights)."""
    return np.log(np.maximum(steps, 0.5))
