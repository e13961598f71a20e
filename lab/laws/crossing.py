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
        if not self.steps.size or not self.steps[0] <= steps <= self.last_step:
            return float("nan")
        return float(np.interp(_position(steps), _position(self.steps), self.losses))

    def crossings(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First crossings of targets [R], loss linear in ln steps between evaluations: (steps [R], censored [R]).

        Between step 0 and the next evaluation the loss is linear in steps. Without any finite evaluation the bound is
        `last_step` = 0.
        """
        targets = np.asarray(targets, float)
        after = np.searchsorted(-self.losses, -targets)
        censored = after == self.losses.size
        if not self.losses.size:
            return np.zeros(targets.shape), censored
        after = np.minimum(after, self.losses.size - 1)
        before = np.maximum(after - 1, 0)
        drop = self.losses[before] - self.losses[after]
        share = np.where(drop > 0, (self.losses[before] - targets) / np.where(drop > 0, drop, 1.0), 1.0)
        low, high = self.steps[before], self.steps[after]
        positive = np.where(low > 0, low, 1.0)
        steps = np.where(low > 0, positive * (high / positive) ** share, share * high)
        return np.where(censored, self.last_step, steps), censored

    def crossing(self, target: float) -> Crossing:
        """First crossing of one target, see `crossings`."""
        steps, censored = self.crossings(np.array([target]))
        first = bool(self.losses.size) and bool(self.losses[0] <= target)
        return Crossing(float(steps[0]), bool(censored[0]), before_first=first)


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
