"""Approach 2: the compute-optimal model size, budget by budget, and its power law in compute.

Runs of one budget C differ in size N; their losses have a valley in ln N. Its lowest point N*(C) is found

    akima        on the Akima interpolation of ln L over ln N (Porian et al. 2024, arXiv 2406.19146): no assumption on
                 the valley's shape, at the price of the noise of the few points around it
    akima-grid   the same as those authors coded it, at the lowest of 25 points per interval
    parabola     on the least-squares parabola of L over ln N (Hoffmann et al. 2022, arXiv 2203.15556, approach 2): the
                 valley counts as symmetric. Where its sides differ (alpha != beta) the optimum is shifted; by the same
                 factor at every budget when all are sampled alike, so that the intercept is wrong but the exponent
                 is right; by a drifting one when they are not (see tests/laws/test_isoflop.py)
    saturating   on L = E_C + A_C N^-alpha + B_C N^beta, the shape of a law E + A / N^alpha + B / D^beta along a budget:
                 one alpha and one beta for all budgets, three constants of its own for each

The noise of N* comes from copies of the losses with noise added: median and standard deviation of ln N* per budget.
Then ln N* = ln G + a ln C by least squares with weights 1 / (log standard deviation)^2; likewise D*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from lab.laws.bootstrap import Interval, percentile_interval
from lab.laws.errors import LawError
from lab.laws.power import PowerLaw, fit_power_law

FEWEST_SIZES = 4  # distinct sizes that a budget needs
GRID = 25  # points per interval on which an interpolated valley is searched


@dataclass(frozen=True)
class Budget:
    """Runs of one budget: one loss for each size, sizes rising. log_n, loss (nats per token), log_d are [K]."""

    flops: float
    log_n: np.ndarray
    loss: np.ndarray
    log_d: np.ndarray

    def tokens_at(self, log_n: np.ndarray) -> np.ndarray:
        """ln D of a run of this budget at sizes between those measured."""
        return np.interp(log_n, self.log_n, self.log_d)


@dataclass(frozen=True)
class Noise:
    """Standard deviation of a loss between seeds, in nats: `low` up to loss `at_low`, `high` from `at_high`, between
    them a power law of the loss. Without `high` it is `low` everywhere."""

    low: float = 0.002
    high: float | None = None
    at_low: float = 3.0
    at_high: float = 7.0

    def deviation(self, loss: np.ndarray) -> np.ndarray:
        if self.high is None:
            return np.full_like(loss, self.low)
        ends = np.log([self.at_low, self.at_high])
        return np.exp(np.interp(np.log(loss), ends, np.log([self.low, self.high])))


SEEDS = Noise()  # between seeds on RefinedWeb (Porian et al. 2024)


@dataclass(frozen=True)
class Optima:
    """The lowest point of each budget's valley.

    Attributes:
      flops, log_n, log_d, loss: [B]; NaN where a budget has no optimum between its smallest and largest size.
      samples: ln N* of every noisy copy, [B, R]; NaN where the copy has none.
      log_std: of ln N*, [B]: that of the copies, at least `floor`, over the share of copies that had an optimum.
      floor: least standard deviation, a fraction of the spacing of ln N, [B].
      reasons: why a budget has no optimum, "" where it has one.
    """

    method: str
    flops: np.ndarray
    log_n: np.ndarray
    log_d: np.ndarray
    loss: np.ndarray
    samples: np.ndarray = field(repr=False)
    log_std: np.ndarray = field(repr=False)
    floor: np.ndarray = field(repr=False)
    reasons: tuple[str, ...] = ()
    budgets: tuple[Budget, ...] = field(default=(), repr=False)

    @property
    def usable(self) -> np.ndarray:
        return np.array([not reason for reason in self.reasons])

    @property
    def median(self) -> np.ndarray:
        """Median of ln N* over the copies, [B]; NaN where there is no optimum."""
        return np.array([np.nanmedian(row) if ok else np.nan for row, ok in zip(self.samples, self.usable)])


@dataclass(frozen=True)
class Allocation:
    """N* = G C^a and D* = G' C^b.

    Attributes:
      n, d: the two laws; their intervals come from the scatter of the budgets about them.
      exponents: a of every noisy copy [R]: what noise alone does.
    """

    n: PowerLaw
    d: PowerLaw
    exponents: np.ndarray = field(repr=False)

    def noise_interval(self, level: float = 0.95) -> Interval:
        """Interval of a from the noise of the losses alone; blind to an estimator's bias."""
        return percentile_interval(self.exponents, level)


def budgets_of(flops: np.ndarray, n: np.ndarray, loss: np.ndarray, tokens: np.ndarray | None = None) -> list[Budget]:
    """Groups runs [K] by budget (equal to 6 digits); of runs of one size the lowest loss counts. D = C / (6 N) where no
    tokens are given.

    Raises:
      LawError: values that are not above zero, or columns of unequal length.
    """
    flops, n, loss = (np.asarray(values, float) for values in (flops, n, loss))
    tokens = flops / (6 * n) if tokens is None else np.asarray(tokens, float)
    for name, values in {"flops": flops, "n": n, "loss": loss, "tokens": tokens}.items():
        if values.shape != flops.shape or not (values > 0).all() or not np.isfinite(values).all():
            raise LawError(f"column {name}: found missing values or values of 0 or less; give {len(flops)} numbers > 0")
    found = []
    for label in np.unique(np.round(np.log(flops), 6)):
        rows = np.flatnonzero(np.round(np.log(flops), 6) == label)
        rows = rows[np.lexsort((loss[rows], n[rows]))]
        first = rows[np.unique(n[rows], return_index=True)[1]]
        found.append(Budget(float(flops[rows[0]]), np.log(n[first]), loss[first], np.log(tokens[first])))
    return found


def nearest(budgets: Sequence[Budget], sizes: int) -> list[Budget]:
    """Each budget cut to the `sizes` runs whose ln N is nearest to that of its lowest loss."""
    kept = []
    for budget in budgets:
        order = np.argsort(np.abs(budget.log_n - budget.log_n[np.argmin(budget.loss)]), kind="stable")
        rows = np.sort(order[:sizes])
        kept.append(Budget(budget.flops, budget.log_n[rows], budget.loss[rows], budget.log_d[rows]))
    return kept


def optima(
    budgets: Sequence[Budget],
    method: str = "akima",
    noise: Noise = SEEDS,
    copies: int = 1000,
    seed: int = 0,
    floor: float = 0.33,
) -> Optima:
    """The optimum of every budget, with its noise; budgets with fewer than four sizes are left out.

    Args:
      method: "akima", "akima-grid", "parabola" or "saturating" (see the module's text).
      floor: least log standard deviation, in spacings of ln N.

    Raises:
      LawError: an unknown method, or no budget with enough sizes.
    """
    if method not in METHODS:
        raise LawError(f"found method {method!r}, expected one of {', '.join(METHODS)}")
    enough = [budget for budget in budgets if len(budget.loss) >= FEWEST_SIZES]
    if not enough:
        sizes = max((len(budget.loss) for budget in budgets), default=0)
        raise LawError(f"found at most {sizes} sizes at a budget, expected {FEWEST_SIZES} or more")
    rng = np.random.default_rng(seed)
    losses = []
    for budget in enough:  # copy 0 is what was measured
        draws = rng.standard_normal((copies, len(budget.loss))) * noise.deviation(budget.loss)
        losses.append(np.concatenate([budget.loss[None], budget.loss + draws]))
    log_n, loss = METHODS[method](enough, losses)  # [B, 1 + R]
    samples, shares = log_n[:, 1:], np.isfinite(log_n[:, 1:]).mean(1)
    reasons, log_std, floors = [], [], []
    for k, budget in enumerate(enough):
        points = (len(budget.loss) - 1) * GRID
        floors.append(floor * np.ptp(budget.log_n) * GRID / (points - 1))
        reason = "" if np.isfinite(log_n[k, 0]) else "no lowest point between its smallest and largest size"
        if not reason and shares[k] < 0.5:
            reason = f"only {shares[k]:.0%} of the noisy copies have a lowest point inside"
        reasons.append(reason)
        log_std.append(np.nan if reason else max(np.nanstd(samples[k]), floors[-1]) / shares[k])
    measured = np.where([not reason for reason in reasons], log_n[:, 0], np.nan)
    return Optima(
        method=method,
        flops=np.array([budget.flops for budget in enough]),
        log_n=measured,
        log_d=np.array([budget.tokens_at(at) for budget, at in zip(enough, measured)]),
        loss=np.where(np.isfinite(measured), loss[:, 0], np.nan),
        samples=samples,
        log_std=np.array(log_std),
        floor=np.array(floors),
        reasons=tuple(reasons),
        budgets=tuple(enough),
    )


def allocation(found: Optima, weighted: bool = True, centre: str = "measured") -> Allocation:
    """The power laws of N* and D* in C.

    Args:
      weighted: by 1 / (log standard deviation)^2, else all budgets alike.
      centre: "measured", or "median" of the noisy copies (Porian et al.).

    Raises:
      LawError: fewer than three budgets with an optimum.
    """
    usable = found.usable
    if usable.sum() < 3:
        lost = "; ".join(f"{c:.3g}: {reason}" for c, reason in zip(found.flops, found.reasons) if reason)
        raise LawError(f"found {usable.sum()} budgets with an optimum, expected 3 or more; {lost or 'add budgets'}")
    log_n = {"measured": found.log_n, "median": found.median}[centre]
    log_d = np.array([budget.tokens_at(at) for budget, at in zip(found.budgets, log_n)])
    flops, weights = found.flops[usable], found.log_std[usable] ** -2 if weighted else np.ones(usable.sum())
    x = np.log(flops) - np.average(np.log(flops), weights=weights)
    pull = weights * x / (weights * x**2).sum()
    return Allocation(
        n=fit_power_law(flops, np.exp(log_n[usable]), weights),
        d=fit_power_law(flops, np.exp(log_d[usable]), weights),
        exponents=pull @ _filled(found.samples[usable]),
    )


def _filled(samples: np.ndarray) -> np.ndarray:
    """Copies without an optimum take the budget's median: what they lack is in its weight already."""
    return np.where(np.isfinite(samples), samples, np.nanmedian(samples, axis=1, keepdims=True))


def _each(one: Callable) -> Callable:
    """A method for all budgets from one for a single budget: (budget, loss [R, K]) -> ln N*, L* [R]."""

    def all_of(budgets: Sequence[Budget], losses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        pairs = [one(budget, loss) for budget, loss in zip(budgets, losses)]
        return np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])

    return all_of


def _akima(budget: Budget, loss: np.ndarray, refine: bool = True) -> tuple[np.ndarray, np.ndarray]:
    points = (len(budget.log_n) - 1) * GRID
    grid = np.linspace(budget.log_n[0], budget.log_n[-1], points)
    curves = Akima1DInterpolator(budget.log_n, np.log(loss).T)(grid)  # [G, R]
    lowest = curves.argmin(0)
    inside = (lowest > 0) & (lowest < points - 1)
    at = np.clip(lowest, 1, points - 2)
    below, here, above = (np.take_along_axis(curves, (at + k)[None], 0)[0] for k in (-1, 0, 1))
    bend = below - 2 * here + above
    shift = np.where(bend > 0, 0.5 * (below - above) / np.where(bend > 0, bend, 1.0), 0.0) if refine else 0.0
    log_n = grid[at] + shift * (grid[1] - grid[0])
    return np.where(inside, log_n, np.nan), np.exp(here - 0.25 * (below - above) * shift)


def _parabola(budget: Budget, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre = budget.log_n.mean()
    bend, slope, level = np.polyfit(budget.log_n - centre, loss.T, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -0.5 * slope / bend
    log_n = centre + vertex
    inside = (bend > 0) & (log_n > budget.log_n[0]) & (log_n < budget.log_n[-1])
    return np.where(inside, log_n, np.nan), level + 0.5 * slope * vertex


EXPONENTS = np.log([0.02, 4.0])  # bounds of alpha and beta along a budget


def _saturating(budgets: Sequence[Budget], losses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Variable projection: the constants of the budgets are solved for at each (alpha, beta), which are searched by
    damped Gauss-Newton, all copies at once. Residuals are relative, so that early, high losses do not decide."""
    most, copies = max(len(budget.log_n) for budget in budgets), len(losses[0])
    u, y = np.zeros((len(budgets), most)), np.zeros((copies, len(budgets), most))
    w, centres = np.zeros_like(u), np.array([budget.log_n.mean() for budget in budgets])
    for k, (budget, loss) in enumerate(zip(budgets, losses)):
        sizes = len(budget.log_n)
        u[k, :sizes], y[:, k, :sizes] = budget.log_n - centres[k], loss
        w[k, :sizes] = 1 / budget.loss

    def project(theta):
        """Residuals [R, B * K] and constants [R, B, 3] at ln alpha, ln beta [R, 2]."""
        alpha, beta = np.exp(theta[:, 0, None, None]), np.exp(theta[:, 1, None, None])
        X = np.stack([np.ones((len(theta), *u.shape)), np.exp(-alpha * u), np.exp(beta * u)], -1) * w[..., None]
        size = np.sqrt((X**2).sum(-2, keepdims=True))
        X /= size
        target = (y[: len(theta)] * w)[..., None]
        normal = X.swapaxes(-1, -2) @ X + 1e-13 * np.eye(3)
        constants = np.linalg.solve(normal, X.swapaxes(-1, -2) @ target)
        return (X @ constants - target).reshape(len(theta), -1), (constants / size.swapaxes(-1, -2))[..., 0]

    def cost(theta):
        return (project(theta)[0] ** 2).sum(1)

    starts = np.log([[alpha, beta] for alpha in (0.1, 0.3, 0.6, 1.0) for beta in (0.1, 0.3, 0.6, 1.0)])
    best = min(starts, key=lambda start: cost(start[None])[0])
    theta = _gauss_newton(project, np.tile(best, (copies, 1)))
    constants = project(theta)[1]
    alpha, beta = np.exp(theta).T[:, :, None]
    E, A, B = np.moveaxis(constants, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.log(alpha * A / (beta * B)) / (alpha + beta)  # [R, B]
    low, high = np.array([(budget.log_n[0], budget.log_n[-1]) for budget in budgets]).T - centres
    at = np.where((A > 0) & (B > 0) & (at > low) & (at < high), at, np.nan)
    return (at + centres).T, (E + A * np.exp(-alpha * at) + B * np.exp(beta * at)).T


def _gauss_newton(project: Callable, theta: np.ndarray, iterations: int = 60, step: float = 1e-6) -> np.ndarray:
    """Minimises the squared residuals of every row of theta [R, 2]; derivatives by forward differences."""
    damping = np.full(len(theta), 1e-3)
    residual = project(theta)[0]
    least = (residual**2).sum(1)
    for _ in range(iterations):
        slopes = [(project(theta + step * unit)[0] - residual) / step for unit in np.eye(2)]
        J = np.stack(slopes, -1)
        normal = J.swapaxes(1, 2) @ J
        damped = normal + (damping * np.trace(normal, axis1=1, axis2=2) + 1e-300)[:, None, None] * np.eye(2)
        move = np.linalg.solve(damped, J.swapaxes(1, 2) @ residual[..., None])[..., 0]
        trial = np.clip(theta - move, *EXPONENTS)
        new = project(trial)[0]
        now = (new**2).sum(1)
        better = now < least
        settled = ~better | (least - now < 1e-12 * least)
        theta, residual = np.where(better[:, None], trial, theta), np.where(better[:, None], new, residual)
        least, damping = np.where(better, now, least), np.where(better, damping / 10, np.minimum(damping * 10, 1e8))
        if settled.all() and (better | (damping > 1e2)).all():
            break
    return theta


METHODS = {
    "akima": _each(_akima),
    "akima-grid": _each(lambda budget, loss: _akima(budget, loss, refine=False)),
    "parabola": _each(_parabola),
    "saturating": _saturating,
}
