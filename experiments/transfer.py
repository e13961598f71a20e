"""Does the best value of a hyperparameter stay where it is as a size of the model or of the training grows?

What the transfer experiments share: the tiny setting (so that they share runs), sweeps over a grid of learning rates,
and three statistics of the losses L of a table of runs:

    optima   per size, lr* of the least-squares parabola of ln L in ln lr about the lowest seed mean (two steps of the
             grid to either side, see `lab.laws.regret`). A lowest mean at an end of the grid is no optimum.
    drift    the slope of ln lr* on ln size, by ordinary least squares over sizes that have an optimum.
    regret   ln L at the largest size, at the smallest size's lr*, less ln L at the largest size's own lr*.

Intervals come from copies of the losses. A copy of a size has its parabola plus residuals drawn with replacement from
those of all sizes (enlarged by sqrt(n / (n - k)), n residuals of k constants), which hold what a parabola cannot
follow and the seeds' noise between neighbouring rates; and a multiple of each seed's deviation from the mean, normal
and as large as the error of a mean of so few, over the root of a chi-squared share with the degrees of freedom of all
sizes' seeds (a Student's t), which adds what a seed tilts smoothly. The noise of seeds is then in both, so intervals
are wide rather than short. Every statistic is computed again from every copy; the level is 95 %.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lab.config import default_config, override
from lab.errors import ResultsError
from lab.laws.bootstrap import Interval, no_interval, percentile_interval
from lab.report.findings import Claim, Finding, judge
from lab.sweep.axes import Point, axis, product
from lab.sweep.experiment import Analysis, Results, edge_points

RATE = "optimizer.learning_rate"
LEVEL, COPIES, SEED = 0.95, 400, 0
CONFIG = ("model.", "parametrization.", "optimizer.", "schedule.", "loss.", "run.")  # what a point of a sweep may set


def base(**changes: Any) -> ConfigDict:
    """The tiny setting of every transfer experiment: two layers, 192 updates of 512 tokens, rate falling to zero.

    Heads stay four unless their width is fixed (see `headed`); nothing is clipped, which would hide a rate too high;
    runs are evaluated at their end alone.
    """
    fixed = {
        "model.depth": 2,
        "model.sequence_length": 64,
        "parametrization.base_width": 32,
        "parametrization.base_depth": 2,
        "optimizer.beta2": 0.95,
        "optimizer.clip_norm": 0.0,
        "schedule.name": "linear",
        "schedule.warmup_tokens": 8192,
        "run.horizon_tokens": 98304,
        "run.batch_tokens": 512,
        "evaluation.points": 1,
        "evaluation.first_tokens": 2**40,
        "evaluation.sequences": 256,
        "execution.microbatch_tokens": 512,
        "execution.noise_probe_ticks": 0,
    }
    return override(default_config(), {**fixed, **changes})


def smoke_base(**changes: Any) -> ConfigDict:
    """Seconds, on a synthetic corpus, so that nothing has to be prepared: checks the path, decides nothing."""
    fixed = {
        "model.sequence_length": 16,
        "model.depth": 1,
        "parametrization.base_width": 8,
        "parametrization.base_depth": 1,
        "schedule.warmup_tokens": 256,
        "data.corpus": "synthetic",
        "run.horizon_tokens": 2048,
        "run.batch_tokens": 128,
        "evaluation.sequences": 16,
        "execution.microbatch_tokens": 128,
    }
    return base(**{**fixed, **changes})


def headed(cfg: ConfigDict, head_width: int = 16) -> ConfigDict:
    """`cfg` with heads that stay `head_width` wide and grow in number with the width (`family` sees to it).

    Why: muP multiplies scores by 1 / head width, as if queries and keys agreed on all features. In a narrow base they
    agree by chance about as much. With four heads that grow from 8 features to 32 (widths 32 and 128, one seed) muP's
    best rate rose from 0.031 to 0.054 and the wide model's loss was 2.339, or 2.285 with scores put back to
    1 / sqrt(head width); with heads of 16 the best rates were 0.024 and 0.025, the loss 2.310.
    """
    heads = cfg.parametrization.base_width // head_width
    return override(cfg, {"model.head_width": head_width, "model.heads": heads, "model.kv_heads": heads})


def heads(cfg: ConfigDict) -> int:
    """Heads of a config's width where their width is fixed, else the config's own."""
    return cfg.model.width // cfg.model.head_width if cfg.model.head_width else cfg.model.heads


def rates(centre: float, below: int, above: int, ratio: float = 2.0) -> list[Point]:
    """Learning rates from `below` steps under `centre` to `above` steps over it."""
    return axis(RATE, [float(f"{centre * ratio**step:.4g}") for step in range(-below, above + 1)])


def seeds(count: int) -> list[Point]:
    """Pairs of initial weights and data order, the same at every size."""
    return [{"run.seed": seed, "run.data_seed": seed} for seed in range(count)]


def family(sizes: Sequence[Point], grid: Sequence[Point], count: int) -> list[Point]:
    """Every size at every rate of one grid and under every seed; heads follow the width, see `headed`."""
    whole = [{"model.heads": heads, "model.kv_heads": heads, **size} for size in sizes]
    return product(whole, seeds(count), list(grid))


class Statistic(NamedTuple):
    """A number and its interval; NaN, with the reason in the interval, where it cannot be had."""

    value: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class Valley:
    """Losses of one group against the knob.

    Attributes:
      group: values of the columns that name it.
      knob: values tried, rising, [n]; log_loss: ln of the mean over seeds, [n], infinite where a seed diverged.
      by_seed: log losses less their mean, [seeds, n]; 0 where a seed was not trained or diverged.
      edge: "low" or "high" where the lowest mean lies at that end of what was tried, else "".
      at, least: ln of the best knob and of the loss there; NaN without an optimum, for the `reason`.
      fitted: the parabola at the knobs that it was fitted to, [n]; NaN at others.
    """

    group: tuple
    knob: np.ndarray
    log_loss: np.ndarray
    by_seed: np.ndarray
    edge: str
    at: float
    least: float
    fitted: np.ndarray
    reason: str


def lowest(knob: np.ndarray, log_loss: np.ndarray) -> tuple[float, float, str, str]:
    """(ln best knob, ln loss there, edge, reason) of mean losses [n]; NaN where there is no optimum."""
    from lab.laws.regret import regret as height

    finite = np.flatnonzero(np.isfinite(log_loss))
    if not len(finite):
        return np.nan, np.nan, "low", f"every run diverged: try values below {knob[0]:.3g}"
    best = finite[np.argmin(log_loss[finite])]
    if best == 0:
        return np.nan, np.nan, "low", f"the lowest loss is at the lowest value tried, {knob[0]:.3g}: extend below"
    if best == len(knob) - 1:
        return np.nan, np.nan, "high", f"the lowest loss is at the highest value tried, {knob[-1]:.3g}: extend above"
    if best == finite[-1]:
        here, there = f"{knob[best]:.3g}", f"{knob[best + 1]:.3g}"
        return np.nan, np.nan, "", f"the lowest loss is at {here}, and runs at {there} diverged: try values between"
    found = height({"knob": knob}, np.exp(log_loss), {"knob": knob[best]})
    if found.method != "surface":
        return np.nan, np.nan, "", found.reason
    return float(np.log(found.best["knob"])), float(np.log(found.loss)), "", ""


def excess(knob: np.ndarray, log_loss: np.ndarray, at: float) -> float:
    """ln loss at `at` (ln knob) less that at the best: of the parabola near it, else between neighbours on the grid."""
    from lab.laws.regret import regret as height

    _, least, _, reason = lowest(knob, log_loss)
    if reason or not np.log(knob[0]) <= at <= np.log(knob[-1]):
        return np.nan
    found = height({"knob": knob}, np.exp(log_loss), {"knob": np.exp(at)})
    if found.method == "surface":
        return found.excess
    near = np.searchsorted(np.log(knob), at)
    low, high = np.log(knob[near - 1]), np.log(knob[near])
    share = (at - low) / (high - low)
    return float((1 - share) * log_loss[near - 1] + share * log_loss[near] - least)


def ended(table: Any) -> Any:
    """Runs that ended; the loss of one that diverged is infinite."""
    rows = table[table["status"].isin(["finished", "diverged"])]
    return rows.assign(loss=rows["loss"].where(rows["status"] == "finished", np.inf))


def valleys(table: Any, by: Sequence[str], knob: str = RATE) -> list[Valley]:
    """The losses of every group of runs with equal `by` columns, in the order of these."""
    return [valley(group, rows, knob) for group, rows in ended(table).groupby(list(by))]


def valley(group: tuple, rows: Any, knob: str) -> Valley:
    """One group's. Raises ResultsError where runs of one seed and value differ in something that `by` does not name."""
    if rows.duplicated([knob, "run.seed"]).any():
        raise ResultsError(f"{group}: found several runs of one {knob} and seed, expected groups that tell them apart")
    wide = rows.pivot(index="run.seed", columns=knob, values="loss").sort_index(axis=1)
    tried, losses = wide.columns.to_numpy(float), np.log(wide.to_numpy(float))
    mean = np.nanmean(losses, axis=0)  # a seed that an interrupted sweep lacks is left out, a diverged one is infinite
    with np.errstate(invalid="ignore"):
        deviations = losses - mean
    at, least, edge, reason = lowest(tried, mean)
    fitted = np.full(len(tried), np.nan) if reason else parabola(tried, mean, least)
    deviations = np.where(np.isfinite(deviations), deviations, 0.0)
    return Valley(group, tried, mean, deviations, edge, at, least, fitted, reason)


def parabola(knob: np.ndarray, log_loss: np.ndarray, least: float) -> np.ndarray:
    """The parabola of `lowest` at the knobs that it was fitted to, [n]; NaN at others."""
    from lab.laws.regret import regret as height

    found = [height({"knob": knob}, np.exp(log_loss), {"knob": value}) for value in knob]
    return np.array([least + f.excess if f.method == "surface" else np.nan for f in found])


class Noise(NamedTuple):
    """Enlarged residuals of all parabolas, [n], and the degrees of freedom of all sizes' seeds about their means."""

    residuals: np.ndarray
    freedom: int


def residuals(found: Sequence[Valley]) -> Noise:
    """What `copies` draws from; a single residual of zero where parabolas have no degrees of freedom."""
    fits = [v for v in found if not v.reason]
    left = np.concatenate([np.zeros(0)] + [(v.log_loss - v.fitted)[np.isfinite(v.fitted)] for v in fits])
    freedom = len(left) - 3 * len(fits)
    pool = left * np.sqrt(len(left) / freedom) if freedom > 0 else np.zeros(1)
    return Noise(pool, sum(len(v.by_seed) - 1 for v in fits))


def copies(found: Valley, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Log losses with noise, [COPIES, n], as the module's text says."""
    seeds = len(found.by_seed)
    tilts = np.zeros((COPIES, len(found.knob)))
    if seeds > 1:
        share = rng.chisquare(noise.freedom, (COPIES, 1)) / noise.freedom
        tilts = rng.normal(size=(COPIES, seeds)) @ found.by_seed / np.sqrt(seeds * (seeds - 1) * share)
    drawn = rng.choice(noise.residuals, (COPIES, len(found.knob)))
    return np.where(np.isfinite(found.fitted), found.fitted + drawn, found.log_loss) + tilts


def optima(table: Any, by: Sequence[str], knob: str = RATE) -> Any:
    """The best value of the knob of every group, a frame with a row per group.

    Columns: those of `by`; `best` (of the knob) and its interval `low`, `high`; `loss` at the best, nats per token;
    `edge` ("", "low", "high": which way to extend the grid) and `reason`, why there is no optimum (`best` is NaN) or no
    interval; how many values were `tried`; `samples`, ln best of every copy (NaN: none), for the statistics below.
    """
    import pandas

    found = valleys(table, by, knob)
    pool, rng, rows = residuals(found), np.random.default_rng(SEED), []
    for one in found:
        samples = np.full(COPIES, np.nan)
        if not one.reason:
            samples = np.array([lowest(one.knob, copy)[0] for copy in copies(one, pool, rng)])
        interval = percentile_interval(samples, LEVEL) if not one.reason else no_interval(one.reason, LEVEL)
        rows.append(
            {
                **dict(zip(by, one.group)),
                "best": np.exp(one.at),
                "low": np.exp(interval.low),
                "high": np.exp(interval.high),
                "loss": np.exp(one.least),
                "edge": one.edge,
                "reason": one.reason or interval.reason,
                "tried": len(one.knob),
                "samples": samples,
            }
        )
    return pandas.DataFrame(rows)


def drift(optima: Any, size: str = "model.width") -> Statistic:
    """Slope of ln best on ln size over the rows that have an optimum, and its 95 % interval.

    `optima` has one row per size: filter it first. Unknown with fewer than two optima.
    """
    rows = optima[np.isfinite(optima["best"])]
    if rows[size].nunique() < 2:
        why = "; ".join(f"{size} {row[size]:g}: {row['reason']}" for _, row in optima.iterrows() if row["reason"])
        return Statistic(np.nan, no_interval(f"fewer than two sizes have an optimum: {why}", LEVEL))
    x = np.log(rows[size].to_numpy(float))
    pull = (x - x.mean()) / np.square(x - x.mean()).sum()
    samples = pull @ np.stack(rows["samples"].to_list())
    return Statistic(float(pull @ np.log(rows["best"])), percentile_interval(samples, LEVEL))


def regret(table: Any, optima: Any, size: str = "model.width", knob: str = RATE) -> Statistic:
    """Excess ln loss (0.001: a tenth of a percent) at the largest size when it trains at the smallest size's best.

    `table` and `optima` are of one family: one group of runs per size. Unknown where the smallest or the largest size
    has no optimum, or the smallest's lies outside of what the largest tried.
    """
    first, last = (optima.loc[optima[size] == end].iloc[0] for end in (optima[size].min(), optima[size].max()))
    for row in (first, last):
        if not np.isfinite(row["best"]):
            return Statistic(np.nan, no_interval(f"{size} {row[size]:g}: {row['reason']}", LEVEL))
    found = valleys(table, [size], knob)
    largest, at = found[-1], np.log(first["best"])
    value = excess(largest.knob, largest.log_loss, at)
    if not np.isfinite(value):
        tried = f"{largest.knob[0]:.3g} to {largest.knob[-1]:.3g}"
        return Statistic(np.nan, no_interval(f"the best of the smallest size lies outside of {tried}", LEVEL))
    noisy = copies(largest, residuals(found), np.random.default_rng(SEED + 1))
    samples = [excess(largest.knob, copy, to) for copy, to in zip(noisy, first["samples"])]
    interval = percentile_interval(np.array(samples), LEVEL)
    # Noise only adds to a height above the lowest point: copies may all lie over an estimate that is next to nothing.
    return Statistic(value, dataclasses.replace(interval, low=min(interval.low, value)) if interval.known else interval)


@dataclasses.dataclass(frozen=True)
class Family:
    """Runs that differ in one size, in the knob and in seeds, and what they say: see the module's text.

    `optima` and `valleys` have one row and one entry per size, rising; `slope` is that of `drift`.
    """

    name: str
    size: str
    optima: Any
    valleys: Sequence[Valley]
    slope: Statistic
    regret: Statistic


def study(name: str, rows: Any, size: str, knob: str = RATE) -> Family:
    """Everything about the runs of one family. Raises ResultsError where none of them has ended."""
    if ended(rows).empty:
        raise ResultsError(f"{name}: no run has ended")
    found = optima(rows, [size], knob)
    return Family(name, size, found, valleys(rows, [size], knob), drift(found, size), regret(rows, found, size, knob))


def verdict(
    claim: Claim, found: Family, what: str = "slope", shift: float = 0.0, caveats: tuple[str, ...] = ()
) -> Finding:
    """The verdict on a claim about a family's "slope" or "regret", of which `shift` is taken off first.

    A slope through fewer than three optima is not judged; sizes without one are named, beside the other caveats.
    """
    number, interval = getattr(found, what)
    lost = [f"{found.size} {row[found.size]:g}: {row['reason']}" for _, row in missing(found.optima)]
    few = len(found.optima) - len(lost) < 3 and what == "slope"
    blocked = "; ".join(["fewer than three sizes have an optimum", *lost]) if few else ""
    moved = dataclasses.replace(interval, low=interval.low - shift, high=interval.high - shift)
    if shift:
        caveats += (f"the {what} itself is {number:.3g}",)
    if what == "slope" and not few:
        caveats += tuple(f"without {text}" for text in lost)
    return judge(claim, number - shift, moved, blocked, caveats)


def missing(optima: Any) -> list[tuple[Any, Any]]:
    """Rows that have no optimum, with their index."""
    return list(optima[~np.isfinite(optima["best"])].iterrows())


def report(title: str, found: Sequence[Family], findings: Sequence[Finding], results: Results) -> Analysis:
    """The analysis of families: both statistics and every optimum as tables, edges as notes, the figure."""
    import pandas

    lines = [{"family": f.name, "size": f.size, **_columns("slope", f), **_columns("regret", f)} for f in found]
    each = [f.optima.drop(columns="samples").rename(columns={f.size: "at"}).assign(family=f.name) for f in found]
    notes = [
        f"no optimum for {family.name} at {family.size} {row[family.size]:g}: {row['reason']}"
        for family in found
        for _, row in missing(family.optima)
    ]
    subtitle = f"{results.table['data.corpus'].iloc[0]}, {len(results.table)} runs"

    def draw(stem: Path) -> Path:
        from experiments.transfer_figure import figure

        return figure(stem, title, subtitle, found, findings)

    tables = {"statistics": pandas.DataFrame(lines), "optima": pandas.concat(each, ignore_index=True)}
    return Analysis(list(findings), tables, notes, draw)


def _columns(what: str, family: Family) -> dict[str, float]:
    value, interval = getattr(family, what)
    return {what: value, f"{what} low": interval.low, f"{what} high": interval.high}


def extend(results: Results, by: Sequence[str], knob: str = RATE) -> list[Point]:
    """One more value of the knob, under every seed, for each group whose best lies on the edge of what was tried."""
    rows = ended(results.table)
    return list(_further(rows, valleys(rows, by, knob), by, knob, results.settings.get("limits", (1e-6, 10.0))))


def _further(
    rows: Any, found: Sequence[Valley], by: Sequence[str], knob: str, limits: tuple[float, float]
) -> Iterator[Point]:
    tried = {v.group: v.knob.tolist() for v in found if v.edge}
    best = {v.group: v.knob[0 if v.edge == "low" else -1] for v in found if v.edge}
    keys = [key for key in rows.columns if key.startswith(CONFIG) and key != knob]
    for group, value in edge_points(best, tried, limits).items():
        mine = functools.reduce(lambda kept, pair: kept[kept[pair[0]] == pair[1]], zip(by, group), rows)
        for point in mine.drop_duplicates("run.seed")[keys].to_dict("records"):
            yield {**{key: plain(value) for key, value in point.items()}, knob: value}


def plain(value: Any) -> Any:
    """A table's number as a Python number."""
    return value.item() if hasattr(value, "item") else value


def of(table: Any, where: Mapping[str, Any]) -> Any:
    """The rows whose columns have these values."""
    return functools.reduce(lambda kept, pair: kept[kept[pair[0]] == pair[1]], where.items(), table)
