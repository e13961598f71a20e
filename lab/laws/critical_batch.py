"""The overhead law of large batches and the critical batch size.

Zhang et al. 2024 (arXiv 2410.21676) fit, at one model size and token horizon, the number of updates that a batch of B
needs to reach a target loss:

    ln S(B) = ln(a + b / B)        a: updates in the limit of large batches; b: examples in the limit of small ones

by least squares on ln S with equal weights over all batch sizes (this objective returns their released a and b to
every printed digit). With reference batch B_ref, "linear scaling" is S(B_ref) B_ref / B, and the critical batch is
where the law exceeds it by the overhead o:

    B* = (1 + o) B_ref + o b / a           and, for B_ref -> 0, the small-batch limit      B*_0 = o b / a.

The reference is part of the definition: it adds a floor (1 + o) B_ref that flattens the growth of B*. Both are given.
B may be in sequences or tokens; b, B_ref and B* are then in the same unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOG_SPAN = np.log(1000.0)
"""b / a may leave the measured batch sizes by this factor at most; a fit at that bound is not identified."""

GRADIENT_TOLERANCE = 1e-9
"""Norm of the gradient of the objective (order one, in logs) under which a fit counts as converged."""

_MAX_ITERATIONS = 200
_GRID = 33


class OverheadFitError(ValueError):
    """The cells cannot determine the overhead law."""


@dataclass(frozen=True)
class OverheadFit:
    """Fitted ln S = ln(a + b / B), parameters in log form (ln a, ln(b / a)) as they were searched."""

    log_a: float
    log_ratio: float
    covariance: np.ndarray
    """[2, 2] of (ln a, ln(b / a)); NaN with no degree of freedom left."""
    objective: float
    gradient_norm: float
    residual_deviation: float
    """Standard deviation of ln S about the law, NaN with no degree of freedom left."""
    measured: int
    censored: int
    at_bound: str
    """"" | "low" (b / a at its lower bound: no gain from a larger batch) | "high" (linear scaling throughout)."""

    @property
    def a(self) -> float:
        return float(np.exp(self.log_a))

    @property
    def b(self) -> float:
        return float(np.exp(self.log_a + self.log_ratio))

    @property
    def converged(self) -> bool:
        return self.gradient_norm <= GRADIENT_TOLERANCE

    @property
    def identified(self) -> bool:
        return self.converged and not self.at_bound

    def steps(self, batch: np.ndarray) -> np.ndarray:
        """Updates to target at `batch` (any shape)."""
        return np.exp(self.log_a + np.logaddexp(0.0, self.log_ratio - np.log(batch)))

    def critical_batch(self, overhead: float, reference: float = 0.0) -> float:
        """B* at `overhead` over linear scaling from `reference` (0: the limit of small batches)."""
        return float(critical_batch(self.log_ratio, overhead, reference))

    def critical_batch_error(self, overhead: float) -> float:
        """Standard error of B* by the delta method; the same for every reference, which is known exactly."""
        return float(overhead * np.exp(self.log_ratio) * np.sqrt(self.covariance[1, 1]))


def critical_batch(log_ratio: np.ndarray, overhead: float, reference: float = 0.0) -> np.ndarray:
    """(1 + o) B_ref + o b / a from ln(b / a), any shape. ValueError unless overhead > 0 and reference >= 0."""
    if not overhead > 0 or not reference >= 0:
        raise ValueError(f"found overhead {overhead} and reference {reference}; overhead must be > 0, reference >= 0")
    floor = (1.0 + overhead) * reference if reference > 0 else 0.0
    return floor + overhead * np.exp(log_ratio)


def data_overhead(batch: np.ndarray, log_ratio: float, reference: float = 0.0) -> np.ndarray:
    """Examples to target at `batch` over those at `reference`, minus one: (B - B_ref) / (B_ref + b / a)."""
    return (np.asarray(batch, float) - reference) / (reference + np.exp(log_ratio))


def fit_overhead(
    batch: np.ndarray, steps: np.ndarray, censored: np.ndarray | None = None, weights: np.ndarray | None = None
) -> OverheadFit:
    """Least squares of ln S = ln(a + b / B) over cells, with right-censored cells.

    Args:
      batch: [K] batch sizes > 0, one cell each; equal sizes (seeds) may repeat.
      steps: [K] updates to target > 0; for a censored cell, the largest number of updates tried.
      censored: [K] bool, target not reached within `steps`.
      weights: [K] >= 0.

    A censored cell costs 0.5 w min(0, ln S(B) - ln bound)^2: nothing where the law lies above what was tried, and the
    usual square where it promises the target earlier. Unlike a Tobit likelihood it needs no noise level, which a
    handful of cells cannot give; it pulls less towards large S, so B* errs on the large side when much is censored.

    Raises:
      OverheadFitError: fewer than two distinct batch sizes reached the target, or numbers that are not positive.
    """
    batch, steps = np.asarray(batch, float), np.asarray(steps, float)
    censored = np.zeros(batch.shape, bool) if censored is None else np.asarray(censored, bool)
    weights = np.ones(batch.shape) if weights is None else np.asarray(weights, float)
    if not (batch.shape == steps.shape == censored.shape == weights.shape and batch.ndim == 1):
        shapes = f"{batch.shape}, {steps.shape}, {censored.shape}, {weights.shape}"
        raise OverheadFitError(f"found shapes {shapes}; expected one length")
    if not (np.isfinite(batch) & np.isfinite(steps) & (batch > 0) & (steps > 0) & (weights >= 0)).all():
        raise OverheadFitError("batch sizes and steps must be finite and positive, weights not negative")
    distinct = np.unique(batch[~censored & (weights > 0)]).size
    if distinct < 2:
        raise OverheadFitError(f"{distinct} distinct batch size(s) reached the target; two parameters need at least 2")
    theta, gradient, bound = fit_overheads(batch, np.log(steps)[None], censored[None], weights[None])
    residual, share, active = _residuals(theta, np.log(batch), np.log(steps)[None], censored[None], weights[None])
    degrees = int(active[0].sum()) - 2
    objective = float(0.5 * (active * weights * residual**2).sum())
    covariance = np.full((2, 2), np.nan)
    if degrees > 0:
        jacobian = np.sqrt(weights * active[0])[:, None] * np.stack([np.ones_like(batch), share[0]], 1)
        normal = jacobian.T @ jacobian
        if np.linalg.cond(normal) < 1e14:
            covariance = 2.0 * objective / degrees * np.linalg.inv(normal)
    return OverheadFit(
        log_a=float(theta[0, 0]),
        log_ratio=float(theta[0, 1]),
        covariance=covariance,
        objective=objective,
        gradient_norm=float(gradient[0]),
        residual_deviation=float(np.sqrt(2.0 * objective / degrees)) if degrees > 0 else np.nan,
        measured=int((~censored).sum()),
        censored=int(censored.sum()),
        at_bound={-1: "low", 0: "", 1: "high"}[int(bound[0])],
    )


def fit_overheads(
    batch: np.ndarray, log_steps: np.ndarray, censored: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Many fits of one set of batch sizes at once (the bootstrap's inner loop).

    Args:
      batch: [K]; log_steps, censored, weights: [R, K]. A weight of 0 leaves the cell out.

    Returns:
      theta [R, 2] = (ln a, ln(b / a)), norm of the projected gradient [R], bound [R] in {-1, 0, 1}. Rows with fewer
      than two distinct measured batch sizes come back as NaN.

    A grid over ln(b / a) with ln a profiled out puts the start in the global basin; then damped Newton with
    the exact gradient and Hessian.
    """
    batch = np.asarray(batch, float)
    log_batch = np.log(batch)
    log_steps, censored, weights = np.broadcast_arrays(log_steps, censored, weights)
    measured = ~censored & (weights > 0)
    low = np.where(measured, log_batch, np.inf).min(1)
    high = np.where(measured, log_batch, -np.inf).max(1)
    possible = high > low
    theta = np.full((len(log_steps), 2), np.nan)
    gradient_norm = np.full(len(log_steps), np.nan)
    bound = np.zeros(len(log_steps), int)
    if possible.any():
        bounds = (log_batch.min() - LOG_SPAN, log_batch.max() + LOG_SPAN)
        data = (log_batch, log_steps[possible], censored[possible], weights[possible])
        found, norm = _newton(_scan(data, bounds), data, bounds)
        theta[possible], gradient_norm[possible] = found, norm
        bound[possible] = (found[:, 1] >= bounds[1]).astype(int) - (found[:, 1] <= bounds[0]).astype(int)
    return theta, gradient_norm, bound


def _residuals(theta, log_batch, log_steps, censored, weights):
    """Residual, share q of b / B in S, and which cells count, each [R, K]."""
    gap = theta[:, 1:] - log_batch
    residual = theta[:, :1] + np.logaddexp(0.0, gap) - log_steps
    share = 0.5 * (1.0 + np.tanh(0.5 * gap))
    return residual, share, (weights > 0) & (~censored | (residual < 0))


def _objective(theta, data):
    residual, _, active = _residuals(theta, *data)
    return 0.5 * (active * data[3] * residual**2).sum(1)


def _scan(data, bounds):
    """Best point [R, 2] of a grid in ln(b / a), ln a from the measured cells alone."""
    log_batch, log_steps, censored, weights = data
    counted = weights * ~censored
    best, best_value = None, None
    for log_ratio in np.linspace(*bounds, _GRID):
        shape = np.logaddexp(0.0, log_ratio - log_batch)
        log_a = (counted * (log_steps - shape)).sum(1) / counted.sum(1)
        theta = np.stack([log_a, np.full_like(log_a, log_ratio)], 1)
        value = _objective(theta, data)
        if best is None:
            best, best_value = theta, value
        else:
            better = value < best_value
            best, best_value = np.where(better[:, None], theta, best), np.where(better, value, best_value)
    return best


def _newton(theta, data, bounds):
    """Damped Newton in the box, all rows at once: (theta [R, 2], projected gradient norm [R])."""
    weights = data[3]
    value = _objective(theta, data)
    damping = np.full(len(theta), 1e-3)
    for _ in range(_MAX_ITERATIONS):
        residual, share, active = _residuals(theta, *data)
        pull = active * weights * residual
        gradient = np.stack([pull.sum(1), (pull * share).sum(1)], 1)
        held = ((theta[:, 1] <= bounds[0]) & (gradient[:, 1] > 0)) | ((theta[:, 1] >= bounds[1]) & (gradient[:, 1] < 0))
        gradient[held, 1] = 0.0
        norm = np.hypot(gradient[:, 0], gradient[:, 1])
        if (norm <= 1e-13).all() or (damping > 1e12).all():
            break
        count = active * weights
        h00 = count.sum(1) * (1.0 + damping)
        h01 = np.where(held, 0.0, (count * share).sum(1))
        gauss = (count * share**2).sum(1)
        curved = gauss + (pull * share * (1.0 - share)).sum(1)
        h11 = np.where(curved * h00 > h01**2, curved, gauss) * (1.0 + damping) + 1e-300
        determinant = np.maximum(h00 * h11 - h01**2, 1e-300)
        first = h11 * gradient[:, 0] - h01 * gradient[:, 1]
        second = h00 * gradient[:, 1] - h01 * gradient[:, 0]
        trial = theta - np.clip(np.stack([first, second], 1) / determinant[:, None], -3.0, 3.0)
        trial[:, 1] = np.clip(trial[:, 1], *bounds)
        trial_value = _objective(trial, data)
        accept = trial_value <= value * (1.0 + 1e-12) + 1e-30  # else rounding refuses the last steps
        theta, value = np.where(accept[:, None], trial, theta), np.where(accept, trial_value, value)
        damping = np.where(accept, damping * 0.1, np.maximum(damping, 1e-12) * 10.0)
    return theta, norm
