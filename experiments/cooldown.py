"""Cooldown runs of Haegele et al. 2024 and Schaipp et al. 2025: 235 runs of 33M to 360M parameters, one seed each.

A constant learning rate ends in a cooldown, so that one run serves every length at which it is branched off. Three
checks, each on final losses over the full validation set, N with the embedding counted:

    equal length    a 20 % cooldown against a cosine of the same model, corpus and length, each at the rate that its
                    authors chose for it (cosines have twice the constant rate); and, for one model of 124M, each at
                    the best of the rates tried. Differences are drawn by model, whole.
    L(N, D)         the Hoffmann law fitted to cooldowns only, and to cosines only; the largest model held out
    horizon         the best learning rate per schedule and length: the vertex of a parabola in ln lr through the three
                    rates 0.0005, 0.001, 0.002, one slope of ln lr* on ln length with a level for each schedule

The full validation set lies a constant above the 32 batches of the logged curve (0.036 nats per token on SlimPajama).
Runs whose final loss is further than 0.05 from its own curve by that constant are left out and named in the notes: the
two are not of one model state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lab.report.findings import Claim, judge
from lab.sweep.experiment import Analysis, Experiment

HAEGELE = "Haegele et al. 2024, arXiv 2405.18392"
SCHAIPP = "Schaipp et al. 2025, arXiv 2501.18965"
GROUPS = {"cooldown": ("ann0.2",), "cosine": ("sl", "sl53", "sl93", "openwebtext2")}
CORPUS = "slimpajama"  # of the law; the other corpus has three sizes
RATES = (5e-4, 1e-3, 2e-3)
MATCH = 0.01  # nats per token; our threshold, the paper names none
APART = 0.05
SEED, LEVEL = 0, 0.95

CLAIMS = {
    "match": Claim(
        "A constant learning rate with a 20 % cooldown matches a cosine of equal length (within 0.01 nats per token)",
        HAEGELE, 0.0, "nats per token, cooldown less cosine", "near_zero", MATCH,
    ),
    "horizon": Claim(
        "The best learning rate falls with the length of training", SCHAIPP, -0.5, "exponent of the length", "sign",
        recalled=True,
    ),
    "extend": Claim(
        "A run extended beyond the length it was tuned for does better with its rate lowered for the second stage",
        SCHAIPP, 1.0, "nats per token, same rate less lowered", "sign", recalled=True,
    ),
    "exponent": Claim(
        "Cooldowns give the same compute-optimal exponent as cosines", HAEGELE, 0.0,
        "a from cooldowns less a from cosines", "near_zero", 0.05,
    ),
}  # fmt: skip


def analyse(load: Any, resamples: int = 200) -> Analysis:
    from lab.laws.compare import published_against_ours

    curves = load("lr_schedule_val_curves")
    runs, left_out = consistent(load("lr_schedule_runs"), curves)
    runs["tokens"] = runs[["iterations", "batch", "acc", "world", "seq_len"]].prod(axis=1).astype(float)
    pairs, tuned, best, extended = equal_length(runs), tuned_pairs(runs), best_rates(runs), extensions(runs)
    match, match_interval = by_model(pairs["difference"], pairs["parameters"])
    slope, slope_interval, regret = horizon_slope(best)
    gain, gain_interval = by_model(extended["gain"], extended["parameters"] * 10 + extended["iterations"] / 1e5)
    laws, apart, apart_interval, notes = surfaces(runs, resamples)
    sizes = pairs.groupby("parameters")["difference"].mean()
    per_size = ", ".join(f"{n / 1e6:.0f}M {difference:+.4f}" for n, difference in sizes.items())
    one_seed = "one seed each"
    findings = [
        judge(CLAIMS["match"], match, match_interval, caveats=(one_seed,), notes=(f"by model: {per_size}",)),
        judge(CLAIMS["exponent"], apart, apart_interval),
        judge(CLAIMS["horizon"], slope, slope_interval, caveats=(one_seed, "lengths span a factor of 3.3")),
        judge(CLAIMS["extend"], gain, gain_interval, caveats=(one_seed, f"{len(extended)} pairs")),
    ]
    notes += [
        left_out,
        f"the best rate of the shortest length costs {regret:.4f} nats per token at the longest, mean over schedules",
        "tuned over the rates tried, 124M: "
        + ", ".join(f"{r.cosine} at {r.iterations}: {r.difference:+.4f}" for r in tuned.itertuples()),
    ]
    published = {"cooldown less cosine": 0.0, "exponent of the length": -0.5}
    ours = {"cooldown less cosine": match, "exponent of the length": slope}
    errors = {"cooldown less cosine": match_interval.half_width / 1.96}
    reasons = {
        "cooldown less cosine": "no number is published; cooldowns of the longer runs are better by some thousandths",
        "exponent of the length": "recalled from theory for one convex bound; the parabola has three rates a factor "
        "of two apart, the lengths a factor of 3.3",
    }
    tables = {
        "published-against-ours": published_against_ours(published, ours, errors, reasons, data="lr_schedule_runs"),
        "laws": laws,
        "equal-length": pairs,
        "tuned": tuned,
        "best-rates": best,
        "extended": extended,
    }
    return Analysis(findings, tables, notes, lambda stem: _draw(stem, runs, curves, best, findings))


def consistent(runs: Any, curves: Any) -> tuple[Any, str]:
    """The runs whose final loss is of the state where their curve ends, and a sentence on the others."""
    logged = curves.sort_values("iter").groupby("run_id")["val_loss"].last()
    offset = runs["final_val_loss"] - runs["run_id"].map(logged)
    apart = offset - offset.groupby(runs["dataset"]).transform("median")
    bad = apart.abs() > APART
    named = "; ".join(
        f"{r.name} of {r.n_params / 1e6:.0f}M, final loss {r.final_val_loss:.3f}, {apart[r.Index]:+.3f} off its curve"
        for r in runs[bad].itertuples()
    )
    return runs[~bad].copy(), f"left out, as their final loss is not that of their curve's end: {named or 'none'}"


def equal_length(runs: Any) -> Any:
    """Cooldown and cosine of the same corpus, model and length: a frame with both losses and their difference."""
    import pandas

    keys = ["dataset", "n_params", "iterations"]
    sides = {
        name: runs[runs["group"].isin(groups) & (runs["scheduler"] == {"cooldown": "wsd", "cosine": "cos"}[name])]
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
    for cosine in ("cos-10-124m", "cos-zero-124m"):
        theirs = runs[runs["group"] == cosine].groupby("iterations")["final_val_loss"].min()
        mine = runs[runs["group"] == "ann124-0.2"].groupby("iterations")["final_val_loss"].min()
        for length in theirs.index.intersection(mine.index):
            pair = {"cooldown": mine[length], "loss_cosine": theirs[length]}
            difference = pair["cooldown"] - pair["loss_cosine"]
            rows.append({"cosine": cosine, "iterations": length, **pair, "difference": difference})
    return pandas.DataFrame(rows)


def best_rates(runs: Any) -> Any:
    """Per schedule and length of the 124M model: lr* and what each of the three rates loses against it."""
    import pandas

    rows = []
    grids = runs[runs["group"].str.startswith(("ann124", "cos-"))]
    for (schedule, decay, length), cell in grids.groupby(["group", "decay_type", "iterations"], dropna=False):
        losses = cell.groupby("lr")["final_val_loss"].min().reindex(RATES)
        if losses.isna().any():
            continue
        c, b, a = np.polynomial.polynomial.polyfit(np.log(RATES), losses.to_numpy(), 2)
        vertex = float(np.exp(-b / (2 * a)))
        inside = bool(a > 0 and RATES[0] < vertex < RATES[-1])
        least = c - b * b / (4 * a)
        lost = {f"lost at {rate:g}": float(losses[rate] - least) for rate in RATES}
        name = f"{schedule} {decay}"
        rows.append({"schedule": name, "iterations": length, "best lr": vertex, "inside": inside, **lost})
    return pandas.DataFrame(rows)


def horizon_slope(best: Any) -> tuple[float, Any, float]:
    """Slope of ln lr* on ln length with a level for each schedule, its Student interval, and the regret of transfer."""
    from scipy.stats import t as student

    from lab.laws.bootstrap import Interval

    kept = best[best["inside"] & (best.groupby("schedule")["iterations"].transform("size") > 1)]
    groups = kept["schedule"]
    x, y = np.log(kept["iterations"]), np.log(kept["best lr"])
    x, y = x - x.groupby(groups).transform("mean"), y - y.groupby(groups).transform("mean")
    slope = float((x * y).sum() / (x**2).sum())
    freedom = len(kept) - groups.nunique() - 1
    error = float(np.sqrt(((y - slope * x) ** 2).sum() / freedom / (x**2).sum()))
    reach = float(student.ppf(0.5 + LEVEL / 2, freedom)) * error
    regrets = []
    for _, cell in kept.groupby("schedule"):
        cell = cell.sort_values("iterations")
        curve = np.polynomial.polynomial.polyfit(np.log(RATES), [cell.iloc[-1][f"lost at {r:g}"] for r in RATES], 2)
        regrets.append(np.polynomial.polynomial.polyval(np.log(cell.iloc[0]["best lr"]), curve))
    return slope, Interval(slope - reach, slope + reach, LEVEL), float(np.mean(regrets))


def extensions(runs: Any) -> Any:
    """Runs extended from 50,000 updates: loss with the same rate less loss with the rate lowered."""
    cells = runs[(runs["group"] == "horizon_transfer") & (runs["wsd_fract_decay"] == 0.2)]
    wide = cells.pivot_table(index=["n_params", "iterations"], columns="scheduler", values="final_val_loss").dropna()
    wide["gain"] = wide["wsd"] - wide["wsd_twostage"]
    return wide.reset_index().rename(columns={"n_params": "parameters"})


def by_model(values: Any, labels: Any) -> tuple[float, Any]:
    """Mean of `values` and its interval, groups of equal labels drawn whole."""
    from lab.laws.bootstrap import percentile_interval

    means = values.groupby(labels.to_numpy()).mean().to_numpy()
    drawn = np.random.default_rng(SEED).integers(0, len(means), (4000, len(means)))
    return float(means.mean()), percentile_interval(means[drawn].mean(1), LEVEL, len(means))


def surfaces(runs: Any, resamples: int) -> tuple[Any, float, Any, list[str]]:
    """The Hoffmann law of cooldowns and of cosines: constants; the difference of their a and its interval; notes."""
    import pandas

    from lab.laws.bootstrap import percentile_interval
    from lab.laws.fit import fit
    from lab.laws.intervals import bootstrap, draw, profile
    from lab.laws.law import law
    from lab.laws.solve import Rows

    form, table, notes, a = law("hoffmann"), [], [], {}
    for name, groups in GROUPS.items():
        kind = {"cooldown": "wsd", "cosine": "cos"}[name]
        cell = runs[runs["group"].isin(groups) & (runs["scheduler"] == kind) & (runs["dataset"] == CORPUS)]
        N, D, loss = (cell[key].to_numpy(float) for key in ("n_params", "tokens", "final_val_loss"))
        largest = N == N.max()
        rows = Rows({"N": N, "D": D}, loss, np.ones(len(N)), np.zeros(len(N), bool))
        found, seen = fit(form, rows), fit(form, Rows(rows.columns, loss, (~largest).astype(float), rows.censored))
        error = np.log(seen.predict(rows.columns)[largest] / loss[largest])
        for constant, interval in profile(found, [*form.names, "a"]).items():
            value = found.values.get(constant, found.derived.get(constant))
            ends = {"value_low": interval.low, "value_high": interval.high}
            table.append({"runs": name, "rows": len(cell), "constant": constant, "value": value, **ends})
        notes += [f"law of {name}s: {line}" for line in found.certificate.warnings]
        notes.append(
            f"law of {name}s without the {N.max() / 1e6:.0f}M model predicts its loss within {np.abs(error).max():.2%}"
        )
        a[name] = (found.derived["a"], bootstrap(found, draw(len(rows), resamples, SEED, N)).quantities["a"], N)
    apart = a["cooldown"][1] - a["cosine"][1]
    sizes = len(np.unique(a["cooldown"][2]))
    return (
        pandas.DataFrame(table), a["cooldown"][0] - a["cosine"][0], percentile_interval(apart, LEVEL, sizes), notes,
    )  # fmt: skip


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
        right.set_xticks([], minor=True)
        right.legend(fontsize=6.5, ncols=2)
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="cooldown/curves",
        paper=f"{HAEGELE}; {SCHAIPP}",
        summary="Cooldowns against cosines at equal length, L(N, D) from cooldowns, the best rate across lengths.",
        measurements=analyse,
    )
]
