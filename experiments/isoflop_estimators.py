"""Estimators of the compute-optimal exponent a of N* ~ C^a, for the same IsoFLOP losses side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.parametric import rows_of

AUTHORS = "Akima grid, medians, weighted"
APPROACH_3 = "approach 3: E + A/N^alpha + B/D^beta"
COPIES = 1000
FLOOR = 0.33  # least log standard deviation of an optimum, in intervals of ln N (Porian et al.)


@dataclass(frozen=True)
class Choice:
    """How approach 2 is done. `sizes`: runs kept about each budget's lowest loss; see `lab.laws.isoflop` for others."""

    method: str
    centre: str = "measured"
    weighted: bool = True
    sizes: int | None = None
    noise_as_meant: bool = False


APPROACH_2 = {
    AUTHORS: Choice("akima-grid", "median"),
    "the same, unweighted": Choice("akima-grid", "median", weighted=False),
    "the same, noise as meant": Choice("akima-grid", "median", noise_as_meant=True),
    "Akima, smooth, as measured": Choice("akima"),
    "parabola, all sizes": Choice("parabola"),
    "parabola, 7 nearest sizes": Choice("parabola", sizes=7),
    "parabola, 5 nearest sizes": Choice("parabola", sizes=5),
    "valley with saturating sides": Choice("saturating"),
}


@dataclass(frozen=True)
class Estimate:
    """An exponent with its standard error: from the scatter of budgets about the law, or from leaving them out.

    `optima` and `allocation` (see `lab.laws.isoflop`) belong to approach 2, `fit` (see `lab.laws.fit`) and `left_out`,
    constants [G, p] without each budget, to approach 3.
    """

    exponent: float
    error: float
    degrees_of_freedom: int
    optima: Any = field(default=None, repr=False)
    allocation: Any = field(default=None, repr=False)
    fit: Any = field(default=None, repr=False)
    left_out: Any = field(default=None, repr=False)

    def interval(self, level: float = 0.95) -> Any:
        return student_interval(self.exponent, self.error, self.degrees_of_freedom, level)


def student_interval(value: float, error: float, degrees_of_freedom: int, level: float = 0.95) -> Any:
    """Student's interval of a value with this standard error."""
    from scipy.stats import t as student

    from lab.laws.bootstrap import Interval

    reach = float(student.ppf(0.5 + level / 2, degrees_of_freedom)) * error
    return Interval(value - reach, value + reach, level)


def difference(one: Estimate, other: Estimate, level: float = 0.95) -> tuple[float, Any]:
    """one - other with its interval; the two count as independent (runs that both use make it too wide)."""
    import math

    degrees = min(one.degrees_of_freedom, other.degrees_of_freedom)
    both = Estimate(one.exponent - other.exponent, math.hypot(one.error, other.error), degrees)
    return both.exponent, both.interval(level)


def noise_models() -> tuple[Any, Any]:
    """Seed noise as Porian et al. coded it, and as they meant it: ln L is compared with thresholds on L (3, 7 nats)."""
    from lab.laws.isoflop import Noise

    return Noise(0.002), Noise(0.002, 0.05, 3.0, 7.0)


def approach_2(budgets: list[Any], choice: Choice, noise: Any = None) -> Estimate:
    """Optimum of every budget, then weighted least squares in logs. `noise`: in place of that of Porian et al."""
    from lab.laws.isoflop import allocation, nearest, optima

    kept = budgets if choice.sizes is None else nearest(budgets, choice.sizes)
    located = optima(kept, choice.method, noise or noise_models()[choice.noise_as_meant], COPIES, floor=FLOOR)
    law = allocation(located, choice.weighted, choice.centre)
    return Estimate(law.n.exponent, law.n.exponent_error, law.n.degrees_of_freedom, located, law)


def approach_3(columns: dict[str, Any], loss: Any, budget: Any, kept: Any = None) -> Estimate:
    """a = beta / (alpha + beta) of one parametric law for all losses [K] that are `kept`.

    Its error is the jackknife's: one budget is left out at a time, as losses of a budget are not independent and a law
    that is not quite right errs alike along one.
    """
    from lab.laws.fit import fit
    from lab.laws.intervals import bootstrap
    from lab.laws.law import law

    rows = rows_of(columns, loss, kept)
    found = fit(law("hoffmann"), rows)
    without = leaving_out(np.asarray(budget, float), rows.weights)
    samples = bootstrap(found, without)
    error = jackknife_error(samples.quantities["a"])
    return Estimate(found.derived["a"], error, len(without) - 1, fit=found, left_out=samples.theta)


def leaving_out(budget: Any, weights: Any) -> Any:
    """Weights [G, K] of rows [K], each time with one budget's at zero; budgets rising, those without weight skipped."""
    return np.stack([budget != label for label in np.unique(budget[weights > 0])]).astype(float)


def jackknife_error(values: Any) -> float:
    """Standard error from estimates [G] that each leave out one of G groups."""
    return float(np.sqrt((len(values) - 1) * np.var(values)))
