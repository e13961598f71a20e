"""Power laws y = c x^p with their covariance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import t as student


class PowerLawError(ValueError):
    """The points cannot determine a power law."""


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x ** exponent; covariance [2, 2] of (ln coefficient, exponent), NaN with two points."""

    log_coefficient: float
    exponent: float
    covariance: np.ndarray
    degrees_of_freedom: int
    gradient_norm: float
    space: str
    """"log" (least squares on ln y) or "linear" (least squares on y)."""

    @property
    def coefficient(self) -> float:
        return float(np.exp(self.log_coefficient))

    @property
    def exponent_error(self) -> float:
        return float(np.sqrt(self.covariance[1, 1]))

    @property
    def log_coefficient_error(self) -> float:
        return float(np.sqrt(self.covariance[0, 0]))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.exp(self.log_coefficient + self.exponent * np.log(x))

    def exponent_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student interval from the scatter about the law; (NaN, NaN) with two points."""
        reach = self._quantile(level) * self.exponent_error
        return self.exponent - reach, self.exponent + reach

    def coefficient_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student interval of the coefficient, symmetric in its logarithm; (NaN, NaN) with two points."""
        reach = self._quantile(level) * self.log_coefficient_error
        return float(np.exp(self.log_coefficient - reach)), float(np.exp(self.log_coefficient + reach))

    def band(self, x: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise interval of the law at x (any shape), from the scatter of the points about it."""
        log_x = np.log(np.asarray(x, float))
        variance = self.covariance[0, 0] + 2 * log_x * self.covariance[0, 1] + log_x**2 * self.covariance[1, 1]
        reach = self._quantile(level) * np.sqrt(np.maximum(variance, 0.0))
        return self(x) * np.exp(-reach), self(x) * np.exp(reach)

    def _quantile(self, level: float) -> float:
        return float(student.ppf(0.5 + level / 2, self.degrees_of_freedom)) if self.degrees_of_freedom > 0 else np.nan


def _checked(x, y, weights):
    x, y = np.asarray(x, float), np.asarray(y, float)
    weights = np.ones_like(x) if weights is None else np.asarray(weights, float)
    if not x.shape == y.shape == weights.shape or x.ndim != 1:
        raise PowerLawError(f"found shapes {x.shape}, {y.shape}, {weights.shape}; expected one length")
    if not (np.isfinite(x) & np.isfinite(y) & np.isfinite(weights) & (x > 0) & (y > 0) & (weights > 0)).all():
        raise PowerLawError("x, y and weights must be finite and positive")
    if np.unique(x).size < 2:
        raise PowerLawError(f"{np.unique(x).size} distinct x; a power law needs at least 2")
    return x, y, weights


def fit_power_law(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> PowerLaw:
    """Ordinary (weighted) least squares of ln y on ln x; x, y, weights [K].

    Weights are relative inverse variances of ln y: the covariance is scaled by the scatter found about the law.
    """
    x, y, weights = _checked(x, y, weights)
    log_x, log_y = np.log(x), np.log(y)
    centre = np.average(log_x, weights=weights)
    mean = np.average(log_y, weights=weights)
    spread = (weights * (log_x - centre) ** 2).sum()
    exponent = (weights * (log_x - centre) * (log_y - mean)).sum() / spread
    residual = log_y - mean - exponent * (log_x - centre)
    degrees = len(x) - 2
    variance = (weights * residual**2).sum() / degrees if degrees > 0 else np.nan
    covariance = variance * np.array(
        [[1 / weights.sum() + centre**2 / spread, -centre / spread], [-centre / spread, 1 / spread]]
    )
    gradient = np.hypot((weights * residual).sum(), (weights * residual * log_x).sum())
    return PowerLaw(float(mean - exponent * centre), float(exponent), covariance, degrees, float(gradient), "log")


def fit_power_law_linear(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> PowerLaw:
    """(Weighted) least squares of y itself, started from the fit in logs: the largest y count most.

    Searched as (ln y at the geometric mean of x, exponent) with the exact Jacobian, y scaled to order one;
    `gradient_norm` is that of the scaled objective.
    """
    x, y, weights = _checked(x, y, weights)
    start = fit_power_law(x, y, weights)
    centre, scale = np.log(x).mean(), np.exp(np.log(y).mean())
    log_x, root = np.log(x) - centre, np.sqrt(weights)

    def residual(theta):
        return root * (np.exp(theta[0] + theta[1] * log_x) - y / scale)

    def jacobian(theta):
        slope = root * np.exp(theta[0] + theta[1] * log_x)
        return np.stack([slope, slope * log_x], 1)

    first = [start.log_coefficient + start.exponent * centre - np.log(scale), start.exponent]
    found = least_squares(residual, first, jac=jacobian, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15)
    degrees = len(x) - 2
    inverse = np.linalg.inv(found.jac.T @ found.jac)
    variance = 2 * found.cost / degrees if degrees > 0 else np.nan
    shift = np.array([[1.0, -centre], [0.0, 1.0]])
    log_coefficient = found.x[0] + np.log(scale) - found.x[1] * centre
    return PowerLaw(
        float(log_coefficient),
        float(found.x[1]),
        variance * shift @ inverse @ shift.T,
        degrees,
        float(np.linalg.norm(jacobian(found.x).T @ residual(found.x))),
        "linear",
    )
