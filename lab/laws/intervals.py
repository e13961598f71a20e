"""Intervals of constants and derived quantities: by resampling, and by profile.

Resampling draws rows, or groups of rows (runs, cells), with replacement; every resample is solved to its optimum.

The profile of a quantity g is the least objective Q(v) that any constants with g = v reach. Values with

    2 (Q(v) - Q_min) / dispersion <= t^2

belong to the interval, t being Student's quantile with n - p degrees of freedom and the dispersion that of M-estimators
(the sum of (w rho')^2 over that of w rho'', which for least squares is the residual variance). Unlike an interval from
the covariance it follows a bent valley, and it is open on a side where the data set no limit. Where rows do not scatter
alike, the dispersion of a quantity is raised by the square of its sandwich error over that of alike rows (Royall and
Tsou 2003), never lowered: in a small sample the sandwich errs on the narrow side.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import t as student

from lab.laws import fit as fitting
from lab.laws import solve
from lab.laws.bootstrap import Interval, no_interval, percentile_interval
from lab.laws.fit import CONVERGED, SAME_OPTIMUM, Fit, box, problem_of

REACHES = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)  # goals of a profile, in standard errors
FURTHER = (7.0, 10.0, 15.0, 25.0, 50.0, 100.0, 300.0, 1000.0)  # where those do not reach the end of the interval
HELD = "held fixed"
NO_CHANGE = 1e-4  # of the median residual: predictions that move by less at every row do not tell two values apart


@dataclasses.dataclass(frozen=True)
class Resamples:
    """Of R resamples of a fit: coordinates [R, p], quantities by name [R] in natural units, gradients [R] (see
    `Solution`)."""

    fit: Fit
    theta: np.ndarray
    quantities: Mapping[str, np.ndarray]
    gradient: np.ndarray

    @property
    def converged(self) -> float:
        """The share that converged."""
        return float((self.gradient <= CONVERGED).mean())

    def standard_errors(self) -> dict[str, float]:
        return {name: float(np.nanstd(values, ddof=1)) for name, values in self.quantities.items()}

    def intervals(self, level: float, observations: int | None = None) -> dict[str, Interval]:
        """Percentile intervals; with `observations` (rows or groups drawn from) widened as small samples need."""
        constants, held = len(self.fit.theta) - len(self.fit.fixed), follow_from_fixed(self.fit)
        found = {}
        for name, values in {**self.quantities, **self.unlimited}.items():
            found[name] = percentile_interval(values, level, observations, constants)
            if name in held:
                found[name] = no_interval(HELD, level)
        return found

    @functools.cached_property
    def unlimited(self) -> dict[str, np.ndarray]:
        """The free constants [R] by name, as 0 (-inf if not a logarithm) or inf where the resample set them no limit.

        Such a search ends wherever the objective became flat, far out at a value that means nothing. It is known by
        that moving the constant on to the end of its bounds changes no prediction; NaN where neither end does.
        """
        fit, (low, high) = self.fit, _box(self.fit)
        columns = {name: values[fit.counted] for name, values in fit.rows.columns.items()}
        smallest = NO_CHANGE * np.median(np.abs(fit.residuals[fit.counted]))

        def predicted(theta: np.ndarray) -> np.ndarray:
            values = fitting.predict(fit.law, theta, columns)
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.log(values) if fit.objective.space == "log" else values

        def same(i: int, end: float) -> np.ndarray:
            moved = self.theta.copy()
            moved[:, i] = end
            with np.errstate(invalid="ignore"):
                return np.abs(predicted(moved) - here).max(1) <= smallest

        here, found = predicted(self.theta), {}
        for i, parameter in enumerate(fit.law.parameters):
            if parameter.name in fit.fixed:
                continue
            down, up = (same(i, end) if np.isfinite(end) else np.array(False) for end in (low[i], high[i]))
            values = np.where(up, np.inf, self.quantities[parameter.name])
            values = np.where(down, 0.0 if parameter.log else -np.inf, values)
            found[parameter.name] = np.where(down & up, np.nan, values)
        return found


def names_of(fit: Fit) -> list[str]:
    return [*fit.law.names, *(d.name for d in fit.law.derived)]


def logs_of(fit: Fit) -> list[bool]:
    """Which quantities are followed as logarithms."""
    return [*(p.log for p in fit.law.parameters), *(d.log for d in fit.law.derived)]


def follow_from_fixed(fit: Fit) -> set[str]:
    """Constants that the fit held fixed, and the derived quantities that depend on those alone."""
    if not fit.fixed:
        return set()
    problem = problem_of(fit.law, fit.objective.space)
    data = solve.data_of(problem, fit.rows, fit.scale, 1.0, True)
    slopes = solve.local(problem, data, fit.rows.weights, fit.theta)[-1]  # [q, p]
    free = [name not in fit.fixed for name in fit.law.names]
    return {name for name, slope in zip(names_of(fit), slopes) if not slope[free].any()}


def draw(rows: int, resamples: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Row counts [R, n] of drawing rows, or whole groups of rows (labels [n]), with replacement."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    size = int(labels.max()) + 1
    counts = rng.multinomial(size, np.full(size, 1 / size), resamples)
    return counts[:, labels].astype(float)


def bootstrap(fit: Fit, counts: np.ndarray) -> Resamples:
    """Solves every resample to its optimum, from the fit and from the optima of its other basins.

    Args:
      counts: how often each row is drawn, [R, n] (see `draw`); multiplies the rows' own weights.
    """
    problem = problem_of(fit.law, fit.objective.space)
    low, high = _box(fit)
    weights = counts * fit.rows.weights
    best = None
    for start in [fit.theta, *fit.others]:
        theta = np.broadcast_to(start, (len(counts), len(start)))
        found = _solve(fit, problem, theta, low, high, weights)
        if best is None:
            best = found
            continue
        better = found.objective < best.objective
        pick = lambda new, old: np.where(better.reshape(-1, *(1,) * (old.ndim - 1)), new, old)  # noqa: B023, E731
        fields = [pick(getattr(found, f.name), getattr(best, f.name)) for f in dataclasses.fields(best)]
        best = solve.Solution(*fields)
    quantities = {
        name: np.exp(best.quantities[:, i]) if log else best.quantities[:, i]
        for i, (name, log) in enumerate(zip(names_of(fit), logs_of(fit)))
    }
    return Resamples(fit, best.theta, quantities, best.gradient)


def settled(fit: Fit, names: Sequence[str] | None = None, level: float = 0.95) -> tuple[Fit, dict[str, Interval]]:
    """A fit with its profile intervals (see `profile`); where a profile met a lower objective, the fit from there.

    If the profiles of that one meet a lower objective too, its certificate says so.
    """
    found, lowest = _profile(fit, names, level)
    if lowest is not None:
        start = fitting.values_of(fit.law, lowest.theta)
        fit = fitting.fit(fit.law, fit.rows, fit.objective, (start,), fit.fixed)
        found, lowest = _profile(fit, names, level)
    if lowest is not None:
        excess = fit.scaled_value / lowest.objective - 1
        fit = dataclasses.replace(fit, certificate=dataclasses.replace(fit.certificate, lower=excess))
    return fit, found


def profile(fit: Fit, names: Sequence[str] | None = None, level: float = 0.95) -> dict[str, Interval]:
    """Profile-likelihood intervals of constants and derived quantities (all of them where no names are given).

    Where a profile meets a lower objective than the fit's, a warning says so: these are then intervals about another
    optimum than the best.
    """
    found, lowest = _profile(fit, names, level)
    if lowest is not None:
        warnings.warn(
            f"law {fit.law.name}: profiles met {lowest.objective / fit.scaled_value:.6g} of the fit's objective, which "
            "is not the best then; lab.laws.intervals.settled fits again from there",
            stacklevel=2,
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Lowest:
    """The point of the profiles with the least objective (scaled), where that is below the fit's."""

    theta: np.ndarray
    objective: float


def _profile(fit: Fit, names: Sequence[str] | None, level: float) -> tuple[dict[str, Interval], _Lowest | None]:
    known = names_of(fit)
    names = known if names is None else list(names)
    if fit.degrees_of_freedom <= 0:
        constants = len(fit.theta) - len(fit.fixed)
        reason = f"{fit.degrees_of_freedom + constants} rows for {constants} constants leave no scatter"
        return {name: no_interval(reason, level) for name in names}, None
    fixed = follow_from_fixed(fit)
    held = [name for name in names if name in fixed]
    names = [name for name in names if name not in fixed]
    curves, lowest = _curves(fit, names, REACHES)
    bound = float(student.ppf(0.5 + level / 2, fit.degrees_of_freedom))
    short = [name for name in names if not _reached(curves[name], bound)]
    if short:
        more, below = _curves(fit, short, FURTHER)
        lowest = min(filter(None, (lowest, below)), key=lambda each: each.objective, default=None)
        for name, further in more.items():
            curves[name] = np.unique(np.concatenate([curves[name], further]), axis=0)
    logs = dict(zip(known, logs_of(fit)))
    found = {name: no_interval(HELD, level) for name in held}
    for name in names:
        if not np.isfinite(fit.dispersion) or fit.dispersion <= 0:
            found[name] = no_interval("the residuals have no spread to judge by", level)
            continue
        low, high = _ends(curves[name], bound)
        if logs[name]:
            low, high = float(np.exp(low)), float(np.exp(high))
        found[name] = Interval(low, high, level)
    return found, lowest


def profile_curves(fit: Fit, names: Sequence[str], reaches: Sequence[float]) -> dict[str, np.ndarray]:
    """Points [K, 2] of each quantity's profile: its value, and the signed root of 2 (Q - Q_min) / dispersion."""
    return _curves(fit, names, reaches)[0]


def _curves(fit: Fit, names: Sequence[str], reaches: Sequence[float]) -> tuple[dict[str, np.ndarray], _Lowest | None]:
    problem = problem_of(fit.law, fit.objective.space)
    known, (low, high) = names_of(fit), _box(fit)
    data = solve.data_of(problem, fit.rows, fit.scale, 1.0, True)
    *_, centre, slopes = solve.local(problem, data, fit.rows.weights, fit.theta)  # [q], [q, p]
    covariance = np.nan_to_num(fit.covariance, nan=0.0, posinf=0.0, neginf=0.0)
    errors = np.sqrt(np.einsum("qi,ij,qj->q", slopes, covariance, slopes))
    alike = np.sqrt(np.einsum("qi,ij,qj->q", slopes, np.nan_to_num(fit.alike_covariance), slopes))
    wider = np.where((alike > 0) & (errors > alike), errors / np.where(alike > 0, alike, 1.0), 1.0)
    errors = np.where(errors > 0, errors, 0.1)
    goals, select, strength, starts = [], [], [], []
    steps = [side * reach for side in (-1, 1) for reach in reaches]
    for name in names:
        i = known.index(name)
        for step in steps:
            goals.append(centre[i] + step * errors[i])
            select.append(np.eye(len(known))[i])
            strength.append(1e3 * max(fit.dispersion, 1e-12) / errors[i] ** 2)
            starts.append(fit.theta + step * np.clip(covariance @ slopes[i] / errors[i], -20, 20))
    starts = np.clip(np.array(starts), low, high)
    pulls = (np.array(select), np.array(goals), np.array(strength))
    found = _solve(fit, problem, starts, low, high, fit.rows.weights, pulls)
    again = _solve(fit, problem, np.broadcast_to(fit.theta, starts.shape), low, high, fit.rows.weights, pulls)
    curves = {}
    for k, name in enumerate(names):
        i, lanes = known.index(name), slice(k * len(steps), (k + 1) * len(steps))
        points = []
        for solution in (found, again):
            rise = (
                np.sqrt(np.maximum(0, 2 * (solution.objective[lanes] - fit.scaled_value)) / fit.dispersion) / wider[i]
            )
            value = np.where(solution.gradient[lanes] <= CONVERGED, solution.quantities[lanes, i], np.nan)
            points.append(np.stack([value, np.sign(value - centre[i]) * rise], 1))
        points = np.concatenate([*points, [[centre[i], 0.0]]])
        curves[name] = _lower_envelope(points[np.isfinite(points).all(1)], centre[i])
    return curves, _lowest(fit, found, again)


def _lowest(fit: Fit, *solutions: solve.Solution) -> _Lowest | None:
    """A point that is lower than the fit by more than two searches of one basin differ."""
    objective = np.concatenate([solution.objective for solution in solutions])
    least = int(np.argmin(np.where(np.isfinite(objective), objective, np.inf)))
    if fit.scaled_value <= solve.EXACT or not objective[least] < fit.scaled_value * (1 - SAME_OPTIMUM):
        return None
    return _Lowest(np.concatenate([solution.theta for solution in solutions])[least], float(objective[least]))


def _lower_envelope(points: np.ndarray, centre: float) -> np.ndarray:
    """Of points from several starts, those not above a line that better ones draw: sorted, rising from the centre."""
    kept = [np.array([[centre, 0.0]])]
    for side in (-1, 1):
        mine = points[np.sign(points[:, 0] - centre) == side]
        mine = mine[np.argsort(-np.abs(mine[:, 0] - centre), kind="stable")]
        least = np.inf
        for value, root in mine:  # from the far end inwards: a profile rises with distance
            if abs(root) <= least:
                least = abs(root)
                kept.append(np.array([[value, root]]))
    joined = np.concatenate(kept)
    return joined[np.argsort(joined[:, 0])]


def _reached(curve: np.ndarray, bound: float) -> bool:
    return bool(curve[:, 1].min() <= -bound and curve[:, 1].max() >= bound)


def _ends(curve: np.ndarray, bound: float) -> tuple[float, float]:
    """Where the signed root crosses -bound and bound, interpolated; infinite where it does not."""
    value, root = curve[:, 0], curve[:, 1]
    ends = []
    for side in (-1, 1):
        beyond = np.flatnonzero(side * root >= bound)
        if not len(beyond):
            ends.append(side * np.inf)
            continue
        outer = beyond[0] if side > 0 else beyond[-1]
        inner = outer - side
        share = (side * bound - root[inner]) / (root[outer] - root[inner])
        ends.append(float(value[inner] + share * (value[outer] - value[inner])))
    return ends[0], ends[1]


def _box(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Bounds, equal where the fit held a constant fixed."""
    low, high = box(fit.law)
    fixed = np.array([name in fit.fixed for name in fit.law.names])
    return np.where(fixed, fit.theta, low), np.where(fixed, fit.theta, high)


def _solve(fit, problem, theta, low, high, weights, pulls=None):
    """Through the objective's last stages: from a near optimum the early ones of lad would lead away."""
    stages = fit.objective.stages[-3:]
    for stage in stages:
        data = solve.data_of(problem, fit.rows, fit.scale, stage, fit.objective.name == "least-squares")
        found = solve.minimise(problem, data, theta, low, high, weights, pulls)
        theta = found.theta
    return found
