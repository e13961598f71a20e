"""What the experiments on statistics of tensors and low precision share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lab.errors import ResultsError
from lab.models.precision import POLICIES
from lab.report.findings import Claim, Finding, judge

RATE = "optimizer.learning_rate"
LEVEL = 0.95
NAMES = {"float8_e4m3fn": "E4M3", "float8_e5m2": "E5M2", "float16": "FP16"}


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, Any]:
    """The mean and Student's interval of it; none for fewer than two values, or where one is not finite."""
    from scipy.special import stdtrit

    from lab.laws.bootstrap import Interval, no_interval

    values = np.asarray(values, float)
    finite = np.isfinite(values).sum()
    if len(values) < 2 or finite < len(values):
        mean = float(values.mean()) if len(values) else float("nan")
        return mean, no_interval(f"{finite} finite values of {len(values)}, at least two and all of them needed", level)
    mean = float(values.mean())
    half = float(stdtrit(len(values) - 1, 0.5 + level / 2) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, Interval(mean - half, mean + half, level)


def judged(claim: Claim, values: Sequence[float], caveats: Sequence[str] = (), blocked: str = "") -> Finding:
    """The verdict on the mean of `values`, a number per run or pair of runs."""
    mean, interval = mean_interval(values)
    return judge(claim, mean, interval, blocked=blocked, caveats=tuple(caveats))


def watched(results: Any) -> Any:
    """Rows of the table of runs with statistics that ended, in the order of the plan.

    Raises:
      ResultsError: where there is none.
    """
    table = results.table
    rows = table[table["evaluation.statistics"] & table["status"].isin(["finished", "diverged"])]
    if rows.empty:
        raise ResultsError("no run with statistics has ended, expected at least one: train the rest of the sweep")
    return rows


def limits(name: str) -> tuple[float, float, float]:
    """Least subnormal, least normal, largest number of a format."""
    import jax.numpy as jnp

    info = jnp.finfo(name)
    return tuple(float(x) for x in (info.smallest_subnormal, info.smallest_normal, info.max))


def operands(statistics: Any) -> Any:
    """Of a frame of statistics, what a policy casts: inputs and weights of hidden products, and the gradients of what
    leaves them (the readout's product is not cast)."""
    inside = statistics[statistics["layer"] >= 0]
    taps = inside[inside["kind"].isin(["activation", "gradient"])]
    ends = {"activation": ".in", "gradient": ".out"}
    cast = [taps[(taps["kind"] == kind) & taps["tensor"].str.endswith(end)] for kind, end in ends.items()]
    products = set(cast[0]["tensor"].str.removesuffix(".in"))
    weights = inside[(inside["kind"] == "weight") & inside["tensor"].isin(products)]
    import pandas

    return pandas.concat([weights, *cast], ignore_index=True)


def margin(cast: Any, precision: str = "fp8") -> float:
    """Bits between the RMS of the operands of `operands` and the nearer end of their format's normal range, the least
    over tensors and evaluations; below 0 where one is outside."""
    bits = []
    for kind, rows in cast.groupby("kind"):
        _, least, largest = limits(POLICIES[precision].format(kind))
        bits += [np.log2(rows["rms"] / least).min(), np.log2(largest / rows["rms"]).min()]
    return float(min(bits))


def relative(table: Any, group: Sequence[str], reference: str, precision: str) -> Any:
    """Loss in `precision` over the loss in `reference`, less 1: one row per group, rate and seed.

    A run that diverged has an infinite loss. `best` marks, for each group, the rate of the reference's least mean loss.
    """
    rows = table[table["status"].isin(["finished", "diverged"]) & ~table["evaluation.statistics"]]
    rows = rows.assign(loss=rows["loss"].where(rows["status"] == "finished", np.inf))
    keys = [*group, RATE, "run.seed"]
    wide = rows.pivot(index=keys, columns="model.precision", values="loss").reset_index()
    wide = wide[np.isfinite(wide[reference]) & wide[precision].notna()]
    mean = wide.groupby([*group, RATE])[reference].mean().reset_index()
    best = mean.loc[mean.groupby(list(group))[reference].idxmin()].set_index(list(group))[RATE]
    index = list(wide[list(group)].itertuples(index=False, name=None))
    chosen = best.to_dict() if len(group) > 1 else {(key,): rate for key, rate in best.items()}
    return wide.assign(
        precision=precision,
        relative=wide[precision] / wide[reference] - 1,
        best=[rate == chosen[key] for rate, key in zip(wide[RATE], index)],
    )


def edge_notes(found: Any, group: Sequence[str]) -> list[str]:
    """A sentence for each group whose best rate lies at an end of those that were tried."""
    notes = []
    for key, rows in found.groupby(list(group)):
        tried, best = sorted(set(rows[RATE])), rows.loc[rows["best"], RATE].iloc[0]
        if len(tried) > 1 and best in (tried[0], tried[-1]):
            named = ", ".join(f"{column} {part}" for column, part in zip(group, key))
            way = "below" if best == tried[0] else "above"
            notes.append(f"{named}: the reference's best rate {best:g} is an end of those tried: extend {way} it")
    return notes


def range_bands(axes: Any, name: str) -> None:
    """The range of a format behind values on a logarithmic y axis: normal numbers, and subnormal ones lighter."""
    tiny, least, largest = limits(name)
    axes.axhspan(least, largest, color="#009E73", alpha=0.10, linewidth=0, zorder=0)
    axes.axhspan(tiny, least, color="#E69F00", alpha=0.14, linewidth=0, zorder=0)
    axes.axhline(largest, color="#009E73", linewidth=0.8, zorder=1)
    axes.axhline(tiny, color="#E69F00", linewidth=0.8, zorder=1)
