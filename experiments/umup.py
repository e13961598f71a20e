"""u-muP: The Unit-Scaled Maximal Update Parametrization (Blake et al. 2024, arXiv 2407.17465).

Two questions of the paper.

    transfer    Loss against learning rate at widths, standard, muP and u-muP: does the best rate stay, and is u-muP's
                loss at most muP's? The runs of the first two are those of mup-transfer/width.
    search      At the narrowest width, how many runs does it take to tune learning rate and multipliers? Independently:
                the rate first, then each multiplier alone at the best rate, then the best of each together (section 3.3
                of the paper). Jointly: settings drawn at random from the same grid. A search has arrived where its best
                loss lies within 0.5 % of the best loss that either found. A sweep of the independent search counts
                whole; of N draws of which k arrived, 1/p runs are expected, p between Clopper and Pearson's limits.

u-muP's multipliers are the paper's five; muP's are those of Tensor Programs V (embedding, initial scale, attention,
readout). All are traced: a whole search is one pack. Searches have one seed. What they found is trained again under
fresh seeds, so that the luck of the lowest of many runs is not taken for merit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import mup_transfer, transfer
from experiments.mup_transfer import NAME, WIDTH
from lab.errors import ResultsError
from lab.report.findings import Claim, judge
from lab.sweep.axes import Point
from lab.sweep.experiment import Analysis, Experiment, Results, Sweep

PAPER = "Blake et al. 2024, u-muP: The Unit-Scaled Maximal Update Parametrization, arXiv 2407.17465"
NAMES = ("standard", "mup", "umup")
MULTIPLIERS = {
    "mup": ("embedding_multiplier", "init_scale", "attention_multiplier", "readout_multiplier"),
    "umup": (
        "activation_multiplier", "attention_multiplier", "residual_multiplier", "residual_ratio", "readout_multiplier",
    ),
}  # fmt: skip
EVERY = tuple(f"parametrization.{name}" for name in dict.fromkeys(sum(MULTIPLIERS.values(), ())))
VALUES = (0.25, 0.5, 1.0, 2.0, 4.0)
TOLERANCE = 0.005  # of the loss: arrived, near-optimal, as low
FRESH = (1, 2, 3, 4)  # seeds of what is trained again

CLAIMS = {
    "slope": Claim(
        "u-muP: the best learning rate does not depend on the width (slope within 0.1)", PAPER, 0.0,
        "slope of ln lr* on ln width", "near_zero", mup_transfer.SAME, recalled=True,
    ),
    "regret": Claim(
        "u-muP: the narrowest model's best learning rate costs the widest less than 0.5 % of its loss", PAPER, 0.0,
        "excess loss, as a fraction", "near_zero", mup_transfer.CHEAP, recalled=True,
    ),
    "loss": Claim(
        "u-muP's loss at the widest is at most muP's (by 0.5 %), each at its best learning rate", PAPER, 1.0,
        "ln loss, muP less u-muP, plus 0.005", "sign", recalled=True,
    ),
    "rate": Claim(
        "u-muP: the best learning rate alone, all multipliers 1, comes within 0.5 % of the best setting found", PAPER,
        0.0, "ln loss, rate alone less best found", "near_zero", TOLERANCE, recalled=True,
    ),
    "runs": Claim(
        "u-muP: independent search needs fewer runs than joint search", PAPER, 1.0,
        "ln of runs, joint over independent", "sign", recalled=True,
    ),
    "apart": Claim(
        "Independent search leaves muP further above the best setting found than u-muP", PAPER, 1.0,
        "ln loss above the best found, muP less u-muP", "sign", recalled=True,
    ),
}  # fmt: skip

Setting = tuple[float, ...]  # learning rate, then every multiplier of the parametrization


def sweep(widths: Sweep, best: float, steps: tuple[int, int], draws: int, note: str) -> Sweep:
    """The sweep of `mup-transfer/width`, u-muP beside it, and the random draws; the rest follows, see `extend`.

    Args:
      best: the guess of u-muP's best rate, which has no base width; `steps` of two below and above are tried.
      draws: of the joint search, for each parametrization.
    """
    every = sorted({point[WIDTH] for point in widths.points})
    seeds = len({point["run.seed"] for point in widths.points})
    grid = transfer.rates(best, *steps)
    points = transfer.family([{WIDTH: width, NAME: "umup"} for width in every], grid, seeds)
    rates = {"umup": [point[transfer.RATE] for point in grid]}
    narrow = [point for point in widths.points if point[WIDTH] == every[0] and point[NAME] == "mup"]
    rates["mup"] = sorted({point[transfer.RATE] for point in narrow})
    joint = {name: drawn(name, rates[name], draws) for name in MULTIPLIERS}
    points += [point_of(name, setting, every[0]) for name, settings in joint.items() for setting in settings]
    cfg = widths.base.copy_and_resolve_references()
    cfg.execution.pack_runs = max(cfg.execution.pack_runs, len(points))
    extensions = widths.extensions + 3
    return Sweep(cfg, [*widths.points, *points], note, {"joint": joint, "narrowest": every[0]}, extensions)


def smoke() -> Sweep:
    return sweep(mup_transfer.width_smoke(), 0.5, (2, 3), 2, "seconds on a CPU")


def tiny() -> Sweep:
    note = "two CPU cores, six minutes beyond mup-transfer/width"
    return sweep(mup_transfer.width_tiny(), 0.5, (2, 2), 32, note)


def small() -> Sweep:
    return sweep(mup_transfer.width_small(), 0.5, (2, 3), 64, "one accelerator, two hours")


def paper() -> Sweep:
    """The widths of Tensor Programs V in place of the paper's 128 to 4096 on WikiText-103; 339 draws as recalled."""
    return sweep(mup_transfer.width_paper(), 1.0, (3, 4), 339, "a node of accelerators")


def drawn(name: str, rates: Sequence[float], count: int) -> list[Setting]:
    """Settings drawn at random from the grid that the independent search walks."""
    rng = np.random.default_rng(sorted(MULTIPLIERS).index(name))
    mine = len(MULTIPLIERS[name])
    return [tuple(map(float, (rng.choice(rates), *rng.choice(VALUES, mine)))) for _ in range(count)]


def point_of(name: str, setting: Setting, width: int, seed: int = 0) -> Point:
    """The run of a setting."""
    multipliers = {f"parametrization.{key}": value for key, value in zip(MULTIPLIERS[name], setting[1:])}
    fixed = {NAME: name, WIDTH: width, "run.seed": seed, "run.data_seed": seed}
    return {**fixed, transfer.RATE: setting[0], **multipliers}


def transferred(table: Any) -> Any:
    """The runs of the transfer, of all that ended: multipliers of 1, and a seed that wider models have too."""
    runs = transfer.ended(table)
    wide = set(runs.loc[runs[WIDTH] > runs[WIDTH].min(), "run.seed"])
    return runs[(runs[list(EVERY)] == 1.0).all(axis=1) & runs["run.seed"].isin(wide)]


class Search(NamedTuple):
    """Both searches of one parametrization.

    Attributes:
      sweeps: of the independent search, in order: what is swept, and the settings it takes. Sweeps whose settings
        depend on losses that are not there yet are missing.
      joint: the settings drawn.
      losses: of the search's seed by setting, infinite where a run diverged; what has not been trained is missing.
      fresh: the same under each fresh seed.
    """

    name: str
    sweeps: list[tuple[str, list[Setting]]]
    joint: list[Setting]
    losses: dict[Setting, float]
    fresh: dict[int, dict[Setting, float]]

    def least(self, settings: Sequence[Setting]) -> Setting:
        """The setting of the lowest loss."""
        return min((s for s in settings if s in self.losses), key=self.losses.get)

    @property
    def whole(self) -> bool:
        """Whether everything that either search wants has been trained."""
        wanted = [*self.joint, *(s for _, settings in self.sweeps for s in settings)]
        return self.sweeps[-1][0] == "together" and all(s in self.losses for s in wanted)

    @property
    def chosen(self) -> dict[str, Setting]:
        """What is trained again: the best rate alone, the independent search's last word, the best that was found."""
        independent = [s for _, settings in self.sweeps for s in settings]
        return {
            "rate alone": self.least(self.sweeps[0][1]),
            "independent": self.least(independent),
            "best found": self.least([*independent, *self.joint]),
        }


def search(results: Results, name: str) -> Search:
    """The searches of a parametrization, as far as they have gone.

    Raises:
      ResultsError: no run at all.
    """
    runs, mine = transfer.ended(results.table), MULTIPLIERS[name]
    runs = runs[(runs[NAME] == name) & (runs[WIDTH] == results.settings["narrowest"])]
    keys = [transfer.RATE, *(f"parametrization.{key}" for key in mine)]
    by_seed = {
        int(seed): {tuple(map(float, row[:-1])): row[-1] for row in rows[[*keys, "loss"]].itertuples(index=False)}
        for seed, rows in runs.groupby("run.seed")
    }
    losses = by_seed.pop(0, {})
    joint = [tuple(setting) for setting in results.settings["joint"][name]]
    line = sorted(setting for setting in losses if setting[1:] == (1.0,) * len(mine))
    if not line:
        raise ResultsError(f"{name}: no run of the narrowest model has ended")
    found = Search(name, [("learning rate", line)], joint, losses, by_seed)
    best = found.least(line)
    for i, key in enumerate(mine, start=1):
        found.sweeps.append((key, [(*best[:i], value, *best[i + 1 :]) for value in VALUES if value != 1.0]))
    if all(s in losses for _, settings in found.sweeps for s in settings):
        alone = [found.least([best, *settings])[i] for i, (_, settings) in enumerate(found.sweeps[1:], start=1)]
        found.sweeps.append(("together", [(best[0], *alone)]))
    return found


def extend(results: Results) -> list[Point]:
    """Further rates where a best lies on an edge, and of each search the next sweeps, or its best under fresh seeds."""
    edges = transfer.extend(dataclasses.replace(results, table=transferred(results.table)), (NAME, WIDTH))
    width, points = results.settings["narrowest"], []
    for name in MULTIPLIERS:
        if any(point[NAME] == name and point[WIDTH] == width for point in edges):
            continue  # the best rate is not known yet
        found = search(results, name)
        points += [point_of(name, s, width) for _, settings in found.sweeps for s in settings]
        if found.whole:
            points += [point_of(name, s, width, seed) for s in found.chosen.values() for seed in FRESH]
    return [*edges, *points]


def arrived(found: Search) -> float:
    """The loss under which a search has arrived."""
    return found.losses[found.chosen["best found"]] * (1 + TOLERANCE)


def so_far(found: Search) -> list[tuple[int, float, str]]:
    """The independent search: runs after each sweep, the lowest loss by then, and what was swept."""
    steps, least = [], np.inf
    for what, settings in found.sweeps:
        least = min(least, *(found.losses[s] for s in settings))
        steps.append(((steps[-1][0] if steps else 0) + len(settings), least, what))
    return steps


def independent_runs(found: Search) -> float:
    """Runs of the independent search up to the end of the sweep in which it arrived; infinite if it did not."""
    return next((count for count, least, _ in so_far(found) if least <= arrived(found)), np.inf)


def joint_runs(found: Search) -> transfer.Statistic:
    """Runs that the joint search is expected to need: (draws + 1) / (arrived + 1), limits by Clopper and Pearson."""
    from scipy.special import betaincinv

    from lab.laws.bootstrap import Interval

    count = len(found.joint)
    hits = sum(found.losses[s] <= arrived(found) for s in found.joint)
    tail = (1 - transfer.LEVEL) / 2
    least = betaincinv(hits, count - hits + 1, tail) if hits else 0.0
    most = betaincinv(hits + 1, count - hits, 1 - tail) if hits < count else 1.0
    interval = Interval(1 / most, 1 / least if least else np.inf, transfer.LEVEL)
    return transfer.Statistic((count + 1) / (hits + 1), interval)


def joint_so_far(found: Search, orders: int = 400) -> np.ndarray:
    """The lowest loss after each draw of the joint search, in `orders` random orders of its draws, [orders, draws]."""
    losses = np.array([found.losses[s] for s in found.joint])
    rng = np.random.default_rng(transfer.SEED)
    return np.minimum.accumulate(rng.permuted(np.tile(losses, (orders, 1)), axis=1), axis=1)


def ratio_of_runs(found: Search) -> transfer.Statistic:
    """ln of joint over independent runs; open below where the independent search did not arrive at all."""
    from lab.laws.bootstrap import Interval

    joint, mine = joint_runs(found), independent_runs(found)
    if np.isfinite(mine):
        low, high = np.log(joint.interval.low / mine), np.log(joint.interval.high / mine)
        return transfer.Statistic(float(np.log(joint.value / mine)), Interval(low, high, transfer.LEVEL))
    most = sum(len(settings) for _, settings in found.sweeps)
    value = float(np.log(joint.value / most))
    return transfer.Statistic(value, Interval(-np.inf, np.log(joint.interval.high / most), transfer.LEVEL))


def above(found: Search, what: str) -> np.ndarray:
    """ln loss of a chosen setting less that of the best found, under each fresh seed that has both, [seeds]."""
    one, other = found.chosen[what], found.chosen["best found"]
    pairs = [(losses[one], losses[other]) for losses in found.fresh.values() if one in losses and other in losses]
    return np.array([np.log(a / b) for a, b in pairs if np.isfinite(a) and np.isfinite(b)])


def mean_of(*samples: np.ndarray) -> transfer.Statistic:
    """The mean of the first less that of the second, if there is one, with Welch's interval."""
    from scipy.special import stdtrit

    from lab.laws.bootstrap import Interval, no_interval

    if min(map(len, samples)) < 2:
        why = f"found {min(map(len, samples))} fresh seeds that have both settings, expected at least two"
        return transfer.Statistic(np.nan, no_interval(why, transfer.LEVEL))
    value = float(samples[0].mean() - sum(other.mean() for other in samples[1:]))
    parts = np.array([sample.var(ddof=1) / len(sample) for sample in samples])
    if not parts.any():
        if value == 0:  # one setting: what the search chose is the best found
            return transfer.Statistic(0.0, Interval(0.0, 0.0, transfer.LEVEL))
        return transfer.Statistic(value, no_interval("every seed gave the same difference", transfer.LEVEL))
    freedom = parts.sum() ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, samples))
    reach = float(stdtrit(freedom, 0.5 + transfer.LEVEL / 2) * np.sqrt(parts.sum()))
    return transfer.Statistic(value, Interval(value - reach, value + reach, transfer.LEVEL))


def lower(mup: transfer.Family, umup: transfer.Family) -> transfer.Statistic:
    """ln loss at the widest, muP less u-muP, each at its own best rate; the interval from copies of both."""
    from lab.laws.bootstrap import no_interval, percentile_interval

    ends = [family.valleys[-1] for family in (mup, umup)]
    why = "; ".join(f"{end.group[0]}: {end.reason}" for end in ends if end.reason)
    if why:
        return transfer.Statistic(np.nan, no_interval(why, transfer.LEVEL))
    rng = np.random.default_rng(transfer.SEED)
    samples = [
        [transfer.lowest(end.knob, copy)[1] for copy in transfer.copies(end, transfer.residuals(family.valleys), rng)]
        for end, family in zip(ends, (mup, umup))
    ]
    return transfer.Statistic(
        ends[0].least - ends[1].least, percentile_interval(np.subtract(*map(np.array, samples)), transfer.LEVEL)
    )


def analyse(results: Results) -> Analysis:
    """Families by parametrization, both searches, verdicts."""
    import pandas

    runs = transferred(results.table)
    families = {name: transfer.study(name, runs[runs[NAME] == name], WIDTH) for name in NAMES}
    searches = {name: search(results, name) for name in MULTIPLIERS}
    findings = [transfer.verdict(CLAIMS[what], families["umup"], what) for what in ("slope", "regret")]
    value, interval = lower(families["mup"], families["umup"])
    moved = dataclasses.replace(interval, low=interval.low + TOLERANCE, high=interval.high + TOLERANCE)
    findings.append(judge(CLAIMS["loss"], value + TOLERANCE, moved))
    findings += judged(searches)
    analysis = transfer.report("u-muP: learning rate across widths, and the cost of tuning", list(families.values()),
                               findings, results)  # fmt: skip
    whole = [found for found in searches.values() if found.whole]
    rows = [row for found in whole for row in search_rows(found)]
    tables = {"searches": pandas.DataFrame(rows)} if rows else {}

    def draw(stem):
        from experiments import prediction_figure

        subtitle = f"{results.table['data.corpus'].iloc[0]}, {len(results.table)} runs"
        return prediction_figure.searches(list(families.values()), whole, findings, stem, subtitle)

    return dataclasses.replace(analysis, tables={**analysis.tables, **tables}, draw=draw)


def judged(searches: Mapping[str, Search]) -> list[Any]:
    """The findings about the searches."""
    from lab.laws.bootstrap import no_interval

    gone = "; ".join(f"{name}: the searches are not complete" for name, found in searches.items() if not found.whole)
    statistics = dict.fromkeys(("rate", "runs", "apart"), transfer.Statistic(np.nan, no_interval(gone or "unknown")))
    caveats: dict[str, tuple[str, ...]] = {}
    if not gone:
        mup, umup = searches["mup"], searches["umup"]
        statistics = {
            "rate": mean_of(above(umup, "rate alone")),
            "runs": ratio_of_runs(umup),
            "apart": mean_of(above(mup, "independent"), above(umup, "independent")),
        }
        mine, joint = independent_runs(umup), joint_runs(umup).value
        said = f"{mine:g} runs" if np.isfinite(mine) else "an independent search that did not arrive"
        caveats = {"runs": (f"{said} against {joint:.1f} expected of the joint search, one seed",)}
        caveats |= {what: (f"{len(FRESH)} fresh seeds",) for what in ("rate", "apart")}
    return [judge(CLAIMS[key], *statistics[key], blocked=gone, caveats=caveats.get(key, ())) for key in statistics]


def search_rows(found: Search) -> list[dict[str, Any]]:
    """A row per search: what it took and where it ended."""
    joint, rows = joint_runs(found), []
    for kind, settings, needed, low, high in (
        ("independent", [s for _, part in found.sweeps for s in part], independent_runs(found), np.nan, np.nan),
        ("joint", found.joint, joint.value, joint.interval.low, joint.interval.high),
    ):
        best = found.least(settings)
        again = [losses[best] for losses in found.fresh.values() if best in losses]
        rows.append(
            {
                "parametrization": found.name, "search": kind, "runs": len(settings), "needed": needed,
                "needed_low": low, "needed_high": high, "best loss": found.losses[best],
                "fresh seeds": np.mean(again) if again else np.nan, "learning rate": best[0],
                **dict(zip(MULTIPLIERS[found.name], best[1:])),
            }
        )  # fmt: skip
    return rows


EXPERIMENTS = [
    Experiment(
        "umup/width",
        PAPER,
        "Learning rate across widths, standard, muP and u-muP; how many runs independent and joint search need.",
        {make.__name__: make for make in (smoke, tiny, small, paper)},
        analyse,
        extend,
    )
]
