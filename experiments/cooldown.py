"""Cooldown runs of Haegele et al. 2024 and Schaipp et al. 2025: 235 runs of 33M to 360M parameters, one seed each.

A constant learning rate ends in a cooldown, so that one run serves every length at which it is branched off. Checks on
final losses over the full validation set, N with the embedding counted:

    equal length    a 20 % cooldown against a cosine of the same model, corpus and length, each at the rate that its
                    authors chose for it (cosines have twice the constant rate); and, for one model of 124M, each at
                    the best of the rates tried
    L(N, D)         the Hoffmann law fitted to cooldowns only, and to cosines only; the largest model held out
    horizon         the best learning rate per schedule and length (parabola of ln loss in ln lr through the rates
                    0.0005, 0.001, 0.002); the slope of ln lr* on ln length in each schedule; and the regret at the
                    longest length of a rate tuned at the shortest, carried over by our exponent, by theirs, or as it is

Differences are averaged by model, slopes by schedule; intervals are Student's over these means.

The full validation set lies a constant above the 32 batches of the logged curve (0.036 nats per token on SlimPajama).
Two final losses lie more than 0.05 off their own curve by that constant, which suggests that they are of another state
of the model. That rule was made after the losses had been seen, so the verdicts are of all runs as released; the table
`left-in-or-out` has them without those runs as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab.report.findings import Claim, judge
from lab.sweep.experiment import Analysis, Experiment

HAEGELE = "Haegele et al. 2024, arXiv 2405.18392"
SCHAIPP = "Schaipp et al. 2025, arXiv 2501.18965"
SCHEDULERS = {"cooldown": "wsd", "cosine": "cos"}
GROUPS = {"cooldown": ("ann0.2",), "cosine": ("sl", "sl53", "sl93", "openwebtext2")}
COSINES = {"cos-10-124m": "cosine to a tenth", "cos-zero-124m": "cosine to zero"}  # their decay_type is not read
CORPUS = "slimpajama"  # of the law; the other corpus has three sizes
RATES = (5e-4, 1e-3, 2e-3)
MATCH = 0.01  # nats per token; our threshold, the paper names none
SAME_EXPONENT = 0.05  # ours as well
ACROSS_MODELS = 3  # constants of the Hoffmann law that only the comparison of models determines
BOUND_EXPONENT = -0.5  # of the convex bound
APART = 0.05
SEED, LEVEL = 0, 0.95


class Mean(NamedTuple):
    """A mean over groups, its interval and its standard error."""

    mean: float
    interval: Any
    error: float


CLAIMS = {
    "match": Claim(
        "A constant learning rate with a 20 % cooldown matches a cosine of equal length (within 0.01 nats per token)",
        HAEGELE, 0.0, "nats per token, cooldown less cosine", "near_zero", MATCH,
    ),
    "exponent": Claim(
        "Cooldowns give the same compute-optimal exponent as cosines", HAEGELE, 0.0,
        "a from cooldowns less a from cosines", "near_zero", SAME_EXPONENT,
    ),
    "horizon": Claim(
        "The best learning rate falls with the length of training", SCHAIPP, BOUND_EXPONENT, "exponent of the length",
        "sign", recalled=True,
    ),
    "extend": Claim(
        "A run extended beyond the length it was tuned for does better with its rate lowered for the second stage",
        SCHAIPP, 1.0, "nats per token, same rate less lowered", "sign", recalled=True,
    ),
}  # fmt: skip


def analyse(load: Any, resamples: int = 400) -> Analysis:
    import pandas

    from lab.laws.compare import published_against_ours

    curves, runs = load("lr_schedule_val_curves"), load("lr_schedule_runs")
    runs["tokens"] = runs[["iterations", "batch", "acc", "world", "seq_len"]].prod(axis=1).astype(float)
    off, named = off_their_curves(runs, curves)
    sides = {"all runs": compared(runs, resamples), "without runs off their curve": compared(runs[~off], resamples)}
    (chosen, findings), (_, others) = ((side, judged(side)) for side in sides.values())
    choices = pandas.DataFrame(
        {"runs": name, "quantity": finding.claim.unit, "value": finding.ours, "value_low": finding.interval.low,
         "value_high": finding.interval.high, "verdict": finding.verdict}
        for name, both in zip(sides, (findings, others)) for finding in both
    )  # fmt: skip
    best, slopes = chosen["best"], chosen["slopes"]
    costs = transferred(best, slopes)
    mean_costs = costs.groupby("exponent", sort=False)["regret %"].mean()
    said = ", ".join(f"{name} {value:.3f}" for name, value in mean_costs.items())
    none = "no number is published"
    reasons = {claim.unit: none for claim in CLAIMS.values()}
    reasons[CLAIMS["horizon"].unit] = (
        f"theirs is of a convex bound, recalled; slopes of the {len(slopes)} schedules run from "
        f"{slopes['slope'].min():.2f} to {slopes['slope'].max():.2f}, and carrying the best rate of the shortest "
        f"length to the longest costs, in % of loss: {said}"
    )
    published = {claim.unit: BOUND_EXPONENT if name == "horizon" else np.nan for name, claim in CLAIMS.items()}
    ours = {CLAIMS[name].unit: chosen[name].mean for name in CLAIMS}
    errors = {CLAIMS[name].unit: chosen[name].error for name in CLAIMS}
    notes = [
        *chosen["notes"],
        *(
            f"without the runs off their curve: {other.claim.unit} {other.ours:.3g} "
            f"[{other.interval.low:.3g}, {other.interval.high:.3g}], {other.verdict} instead of {finding.verdict}"
            for finding, other in zip(findings, others)
            if finding.verdict != other.verdict
        ),
        f"final losses that are not those of their curve's end: {named or 'none'}",
        f"mean regret at the longest length of the shortest one's best rate, % of loss, by its exponent: {said}",
        f"{(~best['inside']).sum()} of {len(best)} best rates lie outside those tried and are left out of the slopes",
        "tuned over the rates tried, 124M: "
        + ", ".join(f"{r.cosine} at {r.iterations}: {r.difference:+.4f}" for r in chosen["tuned"].itertuples()),
    ]
    tables = {
        "published-against-ours": published_against_ours(published, ours, errors, reasons, data="lr_schedule_runs"),
        "left-in-or-out": choices,
        "laws": pandas.concat([side["laws"].assign(of=name) for name, side in sides.items()], ignore_index=True),
        "equal-length": chosen["pairs"],
        "tuned": chosen["tuned"],
        "best-rates": best,
        "regret": costs,
        "extended": chosen["extended"],
    }
    return Analysis(findings, tables, notes, lambda stem: _draw(stem, runs, curves, best, findings))


def compared(runs: Any, resamples: int) -> dict[str, Any]:
    """Every check on these runs: a `Mean` for each claim, and the frames behind them."""
    pairs, extended, best = equal_length(runs), extensions(runs), best_rates(runs)
    slopes = schedule_slopes(best)
    laws, apart, notes = surfaces(runs, resamples)
    return {
        "match": group_mean(pairs["difference"], pairs["parameters"]),
        "exponent": apart,
        "horizon": group_mean(slopes["slope"], slopes["schedule"]),
        "extend": group_mean(extended["gain"], extended["parameters"]),
        "pairs": pairs, "extended": extended, "best": best, "slopes": slopes, "tuned": tuned_pairs(runs),
        "laws": laws, "notes": notes,
    }  # fmt: skip


def judged(found: dict[str, Any]) -> list[Any]:
    """A finding for each claim."""
    sizes = found["pairs"].groupby("parameters")["difference"].mean()
    per_size = "by model: " + ", ".join(f"{n / 1e6:.0f}M {difference:+.4f}" for n, difference in sizes.items())
    lengths = found["best"]["iterations"]
    span = f"lengths span a factor of {lengths.max() / lengths.min():.1f}"
    models = found["extended"]["parameters"].nunique()
    unnumbered = "the paper states no number; the threshold is ours"
    caveats = {
        "match": (f"{len(sizes)} models, one seed each", unnumbered),
        "exponent": (unnumbered,),
        "horizon": ("one model and seed, and cooldowns share their constant part", span),
        "extend": (f"{len(found['extended'])} pairs of {models} models",),
    }
    notes = {"match": (per_size,)}
    return [
        judge(claim, found[name].mean, found[name].interval, caveats=caveats[name], notes=notes.get(name, ()))
        for name, claim in CLAIMS.items()
    ]


def off_their_curves(runs: Any, curves: Any) -> tuple[Any, str]:
    """Which runs' final loss is more than APART from their curve's end (bool [n]), and their names."""
    logged = curves.sort_values("iter").groupby("run_id")["val_loss"].last()
    offset = runs["final_val_loss"] - runs["run_id"].map(logged)
    apart = offset - offset.groupby(runs["dataset"]).transform("median")
    off = apart.abs() > APART
    named = (
        f"{r.name} of {r.n_params / 1e6:.0f}M, final loss {r.final_val_loss:.3f}, {apart[r.Index]:+.3f} off its curve"
        for r in runs[off].itertuples()
    )
    return off, "; ".join(named)


def equal_length(runs: Any) -> Any:
    """Cooldown and cosine of the same corpus, model and length: a frame with both losses and their difference."""
    import pandas

    keys = ["dataset", "n_params", "iterations"]
    sides = {
        name: runs[runs["group"].isin(groups) & (runs["scheduler"] == SCHEDULERS[name])]
        for name, groups in GROUPS.items()
    }
    both = pandas.merge(*(side[[*keys, "lr", "final_val_loss"]] for side in sides.values()), on=keys,
                        suffixes=("_cooldown", "_cosine"))  # fmt: skip
    both["difference"] = both["final_val_loss_cooldown"] - both["final_val_loss_cosine"]
    return both.rename(columns={"n_params": "parameters"}).sort_values(["parameters", "iterations"])


def tuned_pairs(runs: Any) -> Any:
    """124M: the best loss over the rates tried, 20 % cooldown against cosines to a tenth and to zero."""
    import pandas

    rows = []
    for group, cosine in COSINES.items():
        theirs = runs[runs["group"] == group].groupby("iterations")["final_val_loss"].min()
        mine = runs[runs["group"] == "ann124-0.2"].groupby("iterations")["final_val_loss"].min()
        for length in theirs.index.intersection(mine.index):
            pair = {"cooldown": mine[length], "loss_cosine": theirs[length]}
            difference = pair["cooldown"] - pair["loss_cosine"]
            rows.append({"cosine": cosine, "iterations": length, **pair, "difference": difference})
    return pandas.DataFrame(rows)


def best_rates(runs: Any) -> Any:
    """Per schedule and length of the 124M model with all three rates: lr*, whether it lies inside, and the losses."""
    import pandas

    from lab.laws.regret import regret

    grids = runs[runs["group"].str.startswith("ann124-") | runs["group"].isin(COSINES)]
    cooled = grids["group"].str.removeprefix("ann124-").map({f"{k / 10}": f"{k}0 % cooldown" for k in range(10)})
    names = (cooled + ", " + grids["decay_type"]).fillna(grids["group"].map(COSINES))
    rows = []
    for (schedule, length), cell in grids.groupby([names, "iterations"]):
        losses = cell.groupby("lr")["final_val_loss"].min().reindex(RATES)
        if losses.isna().any():
            continue
        found = regret({"lr": RATES}, losses, {"lr": losses.idxmin()})
        row = {"schedule": schedule, "iterations": length, "best lr": found.best["lr"]}
        rows.append({**row, "inside": found.method == "surface", **{f"loss at {lr:g}": losses[lr] for lr in RATES}})
    return pandas.DataFrame(rows)


def schedule_slopes(best: Any) -> Any:
    """Slope of ln lr* on ln length of every schedule with at least two lengths."""
    import pandas

    rows = []
    for schedule, cell in best[best["inside"]].groupby("schedule"):
        if len(cell) > 1:
            slope = np.polyfit(np.log(cell["iterations"]), np.log(cell["best lr"]), 1)[0]
            rows.append({"schedule": schedule, "lengths": len(cell), "slope": float(slope)})
    return pandas.DataFrame(rows)


def transferred(best: Any, slopes: Any) -> Any:
    """Regret, % of loss, at a schedule's longest length of the shortest one's lr* carried over by an exponent.

    Ours is the mean of the other schedules' slopes, so that no schedule is judged by its own.
    """
    import pandas

    from lab.laws.regret import regret

    rows = []
    kept = best[best["inside"] & best["schedule"].isin(slopes["schedule"])].sort_values("iterations")
    for schedule, cell in kept.groupby("schedule"):
        short, long = cell.iloc[0], cell.iloc[-1]
        losses = long[[f"loss at {lr:g}" for lr in RATES]].to_numpy(float)
        ours = slopes.loc[slopes["schedule"] != schedule, "slope"].mean()
        for name, exponent in (("none", 0.0), ("ours", ours), ("theirs", BOUND_EXPONENT)):
            lr = short["best lr"] * (long["iterations"] / short["iterations"]) ** exponent
            found = regret({"lr": RATES}, losses, {"lr": lr})
            row = {"schedule": schedule, "from": short["iterations"], "to": long["iterations"], "exponent": name}
            rows.append({**row, "lr": lr, "regret %": 100 * found.excess, "method": found.method})
    return pandas.DataFrame(rows)


def extensions(runs: Any) -> Any:
    """Runs extended from 50,000 updates: loss with the same rate less loss with the rate lowered."""
    cells = runs[(runs["group"] == "horizon_transfer") & (runs["wsd_fract_decay"] == 0.2)]
    wide = cells.pivot_table(index=["n_params", "iterations"], columns="scheduler", values="final_val_loss").dropna()
    wide["gain"] = wide["wsd"] - wide["wsd_twostage"]
    return wide.reset_index().rename(columns={"n_params": "parameters"})


def group_mean(values: Any, labels: Any) -> Mean:
    """The mean over groups of equal labels of each group's mean, with Student's interval over these."""
    from scipy.stats import t as student

    from lab.laws.bootstrap import Interval, no_interval

    means = values.groupby(labels.to_numpy()).mean().to_numpy()
    if len(means) < 2:
        return Mean(float(means.mean()), no_interval("a single group", LEVEL), np.nan)
    centre, error = float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))
    reach = float(student.ppf(0.5 + LEVEL / 2, len(means) - 1)) * error
    return Mean(centre, Interval(centre - reach, centre + reach, LEVEL), error)


def surfaces(runs: Any, resamples: int) -> tuple[Any, Mean, list[str]]:
    """The Hoffmann law of cooldowns and of cosines: constants; the difference of their a, models drawn whole; notes."""
    import pandas

    from lab.laws.bootstrap import percentile_interval
    from lab.laws.errors import TableError
    from lab.laws.fit import fit
    from lab.laws.intervals import bootstrap, draw, settled
    from lab.laws.law import law
    from lab.laws.solve import Rows

    form, table, notes, a, sizes = law("hoffmann"), [], [], {}, {}
    for name, groups in GROUPS.items():
        cell = runs[runs["group"].isin(groups) & (runs["scheduler"] == SCHEDULERS[name]) & (runs["dataset"] == CORPUS)]
        N, D, loss = (cell[key].to_numpy(float) for key in ("n_params", "tokens", "final_val_loss"))
        largest = N == N.max()
        rows = Rows({"N": N, "D": D}, loss, np.ones(len(N)), np.zeros(len(N), bool))
        seen = fit(form, Rows(rows.columns, loss, (~largest).astype(float), rows.censored))
        error = np.log(seen.predict(rows.columns)[largest] / loss[largest])
        found, intervals = settled(fit(form, rows), [*form.names, "a"])
        for constant, interval in intervals.items():
            value = found.values.get(constant, found.derived.get(constant))
            ends = {"value_low": interval.low, "value_high": interval.high}
            table.append({"runs": name, "rows": len(cell), "constant": constant, "value": value, **ends})
        notes += [f"law of {name}s: {line}" for line in found.certificate.warnings]
        notes.append(
            f"law of {name}s without the {N.max() / 1e6:.0f}M model predicts its loss within {np.abs(error).max():.2%}"
        )
        sizes[name] = np.unique(N)
        a[name] = found.derived["a"], bootstrap(found, draw(len(rows), resamples, SEED, N)).quantities["a"]
    if not np.array_equal(*sizes.values()):
        raise TableError(f"found models {sizes}, expected the same for both schedules, which are drawn together")
    apart = a["cooldown"][1] - a["cosine"][1]
    interval = percentile_interval(apart, LEVEL, len(sizes["cosine"]), ACROSS_MODELS)
    difference = Mean(a["cooldown"][0] - a["cosine"][0], interval, float(np.nanstd(apart, ddof=1)))
    return pandas.DataFrame(table), difference, notes


def _draw(stem: Path, runs: Any, curves: Any, best: Any, findings: Any) -> Path:
    from experiments.published_figure import png_of, sheet
    from lab.report import figure as draw

    with sheet(stem, "Cooldowns instead of cosines", f"{HAEGELE}; {SCHAIPP}", findings) as (left, right):
        for group, decay, colour, label in (
            ("stable-124m", None, draw.FAINT, "constant"),
            ("ann124-0.2", "linear", draw.OURS, "20 % cooldown"),
            ("cos-10-124m", None, draw.PUBLISHED, "cosine to a tenth"),
        ):
            cell = runs[(runs["group"] == group) & (runs["lr"] == 1e-3)]
            cell = cell if decay is None else cell[cell["decay_type"] == decay]
            for i, run in enumerate(cell["run_id"]):
                line = curves[curves["run_id"] == run].sort_values("iter")
                line = line[line["iter"] > 5000]
                draw.curve(left, line["iter"], line["val_loss"], colour, label if i == 0 else None, width=1.0)
        left.set(xlabel="Updates of 102,400 tokens", ylabel="Validation loss (32 batches), nats per token")
        left.set_title("124M parameters, peak rate 0.001")
        left.legend(loc="upper right")
        kept = best[best["inside"]]
        names = sorted(kept["schedule"].unique())
        for name, colour in zip(names, draw.sequence_of_colours(len(names))):
            cell = kept[kept["schedule"] == name]
            right.plot(cell["iterations"], cell["best lr"], "o-", color=colour, markersize=4, linewidth=1, label=name)
        right.set(xscale="log", yscale="log", xlabel="Updates", ylabel="Best peak learning rate (parabola's vertex)")
        right.set_title("Best learning rate by length")
        right.set_xticks([15_000, 25_000, 35_000, 50_000], ["15k", "25k", "35k", "50k"], minor=False)
        right.set_yticks([5e-4, 1e-3, 1.5e-3, 2e-3], ["0.0005", "0.001", "0.0015", "0.002"], minor=False)
        right.set_xticks([], minor=True)
        right.set_yticks([], minor=True)
        right.set_ylim(RATES[0], RATES[-1] * 1.04)
        right.legend(fontsize=6.5, ncols=2, loc="lower left")
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="cooldown/curves",
        paper=f"{HAEGELE}; {SCHAIPP}",
        summary="Cooldowns against cosines at equal length, L(N, D) from cooldowns, the best rate across lengths.",
        measurements=analyse,
    )
]
