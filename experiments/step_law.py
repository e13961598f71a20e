"""Predictable Scale: Part I, Optimal Hyperparameter Scaling Law (Li et al. 2025, "Step Law", arXiv 2503.04715).

Dense grids of peak learning rate (factors of the root of two) and batch size at 17 pairs (N, D): 1,911 released runs.
In each cell the runs whose smoothed loss is within 0.25 % of the best are kept; ln lr is regressed on ln N and ln D,
ln B on ln D (ordinary least squares), and the kept rows are resampled. Published: lr = 1.79 N^-0.713 D^0.307 and
B = 0.58 D^0.571 tokens, the mean of 1,000 resamples of the authors' full run table, which is not released; excess loss
of the law 0.094 %.

The kept runs of a cell share its grid and its best run, so they are no independent rows; intervals here resample whole
cells, and rows for comparison. The threshold is varied. A second estimator takes one optimum a cell, the lowest
point of a quadratic of ln L in (ln lr, ln B) about the best run, where that is a bowl with the point inside.

What a law costs is its regret: ln L at the lr and B that it names, less the least ln L of the cell, both on that
quadratic (`lab.laws.regret`). It is also given for laws fitted without the cell, and for no law: one lr and one B.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.published_figure import png_of, sheet
from lab.sweep.experiment import Analysis, Experiment

SOURCE = "Li et al. 2025, arXiv 2503.04715"
SEQUENCE = 2048  # tokens
THRESHOLD = 0.0025
THRESHOLDS = (0.001, 0.0015, 0.0025, 0.005, 0.0075, 0.01)
SURFACE = 0.02  # excess loss of the runs that a cell's surface is fitted to
RESAMPLES = 4000
SURFACES, CELLS_ALIKE = "surfaces, one optimum a cell", "within 0.25 %, every cell counts alike"
NAMES = ("lr: ln constant", "lr: N", "lr: D", "B: ln constant", "B: D")
PRINTED = {"lr: N": -0.713, "lr: D": 0.307, "B: D": 0.571}
RESOLUTION = 0.1  # half-width of an exponent that tells 0.31 from 0.20
REGRET_PRINTED, REGRET_RESOLUTION = 0.094, 0.03  # per cent of loss


def analyse(load: Any) -> Analysis:
    import pandas as pd

    runs, authors = prepared(load("steplaw_dense")), load("steplaw_bootstrap_published")
    rows = kept(runs, THRESHOLD)
    ours = constants(rows, np.ones((1, len(rows))))[0]
    by_row, by_cell = (resampled(rows, cells) for cells in (None, rows["cell"].to_numpy()))
    published = authors[["lr_intercept", "lr_coefN", "lr_coefD", "bs_intercept", "bs_coefD"]]
    sensitivity = _sensitivity(runs)
    regrets = _regrets(runs, ours, published.mean().to_numpy())
    findings = verdicts(ours, by_cell, regrets)
    tables = {
        "published-against-ours": _compared(published, ours, by_row, by_cell, sensitivity),
        "sensitivity": sensitivity,
        "regret": regrets,
        "kept": rows[["N", "D", "lr", "B", "smooth loss", "excess"]],
    }
    spreads = pd.DataFrame({"rows": np.nanstd(by_row, 0, ddof=1), "cells": np.nanstd(by_cell, 0, ddof=1)}, index=NAMES)
    notes = _notes(spreads, published, sensitivity, regrets)
    return Analysis(findings, tables, notes, lambda stem: figure(runs, rows, ours, published, regrets, findings, stem))


def prepared(runs: Any) -> Any:
    """With B in tokens, the cell (N, D) as a label, and the excess of a run's loss over the best of its cell."""
    cells = runs.groupby(["N", "D"])
    excess = runs["smooth loss"] / cells["smooth loss"].transform("min") - 1
    return runs.assign(B=runs["bs"] * SEQUENCE, cell=cells.ngroup(), excess=excess)


def kept(runs: Any, threshold: float) -> Any:
    return runs[runs["excess"] < threshold].reset_index(drop=True)


def constants(rows: Any, counts: Any) -> Any:
    """Least squares for each row of counts [R, n]: ln constant, exponents of N and D of lr, then of B; [R, 5].

    NaN where the rows do not determine them.
    """
    log = {name: np.log(rows[name].to_numpy(float)) for name in ("N", "D", "lr", "B")}
    ones = np.ones(len(rows))
    found = []
    for X, y in ((np.stack([ones, log["N"], log["D"]], 1), log["lr"]), (np.stack([ones, log["D"]], 1), log["B"])):
        centre = X.mean(0) * (X.std(0) > 0)  # centred, or the normal equations lose digits
        Z = X - centre
        normal = np.einsum("rn,ni,nj->rij", counts, Z, Z)
        answer = np.full((len(counts), Z.shape[1]), np.nan)  # a resample may hold too few N or D
        known = np.linalg.matrix_rank(normal, hermitian=True) == Z.shape[1]
        right = np.einsum("rn,ni,n->ri", counts[known], Z, y)[..., None]
        answer[known] = np.linalg.solve(normal[known], right)[..., 0]
        answer[:, 0] -= answer @ centre
        found.append(answer)
    return np.concatenate(found, 1)


def resampled(rows: Any, groups: Any = None) -> Any:
    """Constants of resamples of rows, or of whole cells [R, 5]."""
    from lab.laws.intervals import draw

    return constants(rows, draw(len(rows), RESAMPLES, 0, groups))


def recommend(law: Sequence[float]) -> Any:
    """What constants (in the order of NAMES) name for a cell (N, D): lr, and B in tokens."""

    def setting(cell: Any) -> dict[str, float]:
        n, d = np.log(cell["N"]), np.log(cell["D"])
        return {"lr": float(np.exp(law[0] + law[1] * n + law[2] * d)), "B": float(np.exp(law[3] + law[4] * d))}

    return setting


def cost(runs: Any, setting: Any) -> Any:
    """Regret of a recommendation in every cell, see `lab.laws.regret.regrets`."""
    from lab.laws.regret import regrets

    return regrets(runs, ("N", "D"), ("lr", "B"), "smooth loss", setting)


def surface_optima(runs: Any) -> Any:
    """Lowest point (lr, B) of each cell's quadratic about its best run, where that is a bowl with it inside."""
    best = runs.loc[runs.groupby("cell")["excess"].idxmin()].set_index(["N", "D"])
    found = cost(runs, lambda cell: dict(best.loc[(cell["N"], cell["D"]), ["lr", "B"]]))
    found = found[found["method"] == "surface"][["N", "D", "lr best", "B best"]]
    return found.set_axis(["N", "D", "lr", "B"], axis=1)


def _regrets(runs: Any, ours: Any, published: Any) -> Any:
    """Regret in per cent of loss by cell: published law, ours, ours fitted without the cell, surfaces', and no law."""
    optima, rows = surface_optima(runs), kept(runs, THRESHOLD)
    laws = {"published": published, "ours": ours, "surfaces": constants(optima, np.ones((1, len(optima))))[0]}
    laws["no_law"] = [np.log(rows["lr"]).median(), 0, 0, np.log(rows["B"]).median(), 0]
    found = {name: cost(runs, recommend(law)) for name, law in laws.items()}
    table = found["published"][["N", "D"]].copy()
    for name, costs in found.items():
        table[name] = 100 * costs["excess"]
    table["held_out"] = np.nan
    for k, (n, d) in enumerate(zip(table["N"], table["D"])):
        mine, others = (runs["N"] == n) & (runs["D"] == d), (rows["N"] != n) | (rows["D"] != d)
        without = constants(rows[others], np.ones((1, int(others.sum()))))[0]
        table.loc[k, "held_out"] = 100 * cost(runs[mine], recommend(without))["excess"].iloc[0]
    table["method"] = found["published"]["method"]
    return table


def _sensitivity(runs: Any) -> Any:
    """Exponents under other thresholds, from surfaces, and without one size or one amount of data at a time."""
    import pandas as pd

    choices = {f"within {100 * t:g} % of the best": kept(runs, t) for t in THRESHOLDS}
    choices[SURFACES] = surface_optima(runs)
    stated = kept(runs, THRESHOLD)
    choices["each cell's best run"] = runs.loc[runs.groupby("cell")["excess"].idxmin()]
    choices[CELLS_ALIKE] = stated
    for name in ("N", "D"):
        for value in sorted(stated[name].unique()):
            choices[f"without {name} = {value:.3g}"] = stated[stated[name] != value]
    found = []
    for name, rows in choices.items():
        counts = np.ones(len(rows))
        if name == CELLS_ALIKE:
            counts = 1 / rows.groupby("cell")["cell"].transform("size").to_numpy()
        values = constants(rows, counts[None])[0]
        found.append({"choice": name, "rows": len(rows), **dict(zip(NAMES, values))})
    return pd.DataFrame(found)


def verdicts(ours: Any, by_cell: Any, regrets: Any) -> list[Any]:
    """A finding per printed exponent, on the sign of that of D for lr, and on what the published law costs."""
    from lab.laws.bootstrap import percentile_interval
    from lab.report.findings import Claim, judge

    cells, at = len(regrets), dict(zip(NAMES, range(len(NAMES))))
    intervals = {
        name: percentile_interval(by_cell[:, at[name]], 0.95, cells, 3 if "lr" in name else 2) for name in NAMES
    }
    findings = []
    for name, printed in PRINTED.items():
        symbol, variable = name.split(": ")
        claim = Claim(
            f"{symbol} ~ {variable}^{printed}", SOURCE, printed, f"exponent of {variable}", "equals", RESOLUTION
        )
        findings.append(judge(claim, ours[at[name]], intervals[name]))
    grows = Claim("The best learning rate grows with D at fixed N", SOURCE, PRINTED["lr: D"], "exponent of D", "sign")
    findings.append(judge(grows, ours[at["lr: D"]], intervals["lr: D"]))
    costs = regrets["published"].to_numpy()
    means = np.random.default_rng(0).choice(costs, (RESAMPLES, len(costs))).mean(1)
    text = f"The published law costs {REGRET_PRINTED} % of loss"
    cost = Claim(text, SOURCE, REGRET_PRINTED, "% of loss", "equals", REGRET_RESOLUTION)
    fitted, unseen = regrets["ours"].mean(), regrets["held_out"].mean()
    note = f"the law fitted to these runs costs {fitted:.3f} %, fitted without the cell {unseen:.3f} %"
    findings.append(judge(cost, costs.mean(), percentile_interval(means, 0.95, len(costs)), notes=(note,)))
    return findings


def _compared(published: Any, ours: Any, by_row: Any, by_cell: Any, sensitivity: Any) -> Any:
    from lab.laws.compare import published_against_ours

    theirs = dict(zip(NAMES, published.mean()))
    spread = {f"{name}, deviation of row resamples": value for name, value in zip(NAMES, published.std())}
    thresholds = sensitivity[sensitivity["choice"].str.endswith("of the best")]
    others = sensitivity.set_index("choice")
    reasons = {}
    for name in NAMES:
        low, high = thresholds[name].min(), thresholds[name].max()
        reasons[name] = (
            f"theirs is from the full run table, which is not released; on the released runs thresholds of "
            f"{100 * THRESHOLDS[0]:g} to {100 * THRESHOLDS[-1]:g} % give {low:.3f} to {high:.3f}, one optimum a cell "
            f"{others.loc[SURFACES, name]:.3f}, cells counted alike {others.loc[CELLS_ALIKE, name]:.3f}"
        )
    values = dict(zip(NAMES, ours)) | dict(zip(spread, np.nanstd(by_row, 0, ddof=1)))
    reasons |= dict.fromkeys(spread, "ours: the released rows; the full run table keeps more of them")
    return published_against_ours(theirs | spread, values, dict(zip(NAMES, np.nanstd(by_cell, 0, ddof=1))), reasons)


def _notes(spreads: Any, published: Any, sensitivity: Any, regrets: Any) -> list[str]:
    by_name = dict(zip(NAMES, published.std()))
    parts = [
        f"{name} {row.rows:.3f} by rows, {row.cells:.3f} by cells (published {by_name[name]:.3f})"
        for name, row in spreads.iterrows()
        if name in PRINTED
    ]
    means = ", ".join(f"{name.replace('_', ' ')} {regrets[name].mean():.3f}" for name in regrets.columns[2:-1])
    read = int((regrets["method"] == "surface").sum())
    surface = sensitivity.set_index("choice").loc[SURFACES]
    return [
        f"Standard deviations of exponents: {'; '.join(parts)}. The kept rows of a cell are not independent.",
        f"Mean regret in per cent of loss: {means}.",
        f"Surfaces have an optimum inside in {surface['rows']:.0f} of {len(regrets)} cells.",
        f"The published law's regret is read off a surface in {read} cells, off the nearest run in the others.",
    ]


def figure(runs: Any, rows: Any, ours: Any, published: Any, regrets: Any, findings: list[Any], stem: Path) -> Path:
    """Kept runs with both laws for lr and for B, and each cell's regret."""
    from lab.report import figure as draw

    theirs = published.mean().to_numpy()
    with sheet(stem, "Optimal learning rate and batch size in N and D", f"Released runs of {SOURCE}", findings, 3) as (
        rate,
        batch,
        cost,
    ):
        sizes = sorted(rows["N"].unique())
        grid = np.geomspace(rows["D"].min(), rows["D"].max(), 50)
        for n, colour in zip(sizes, draw.sequence_of_colours(len(sizes))):
            mine = rows[rows["N"] == n]
            rate.plot(mine["D"], mine["lr"], "o", color=colour, markersize=3, alpha=0.7, label=f"{n / 1e6:.0f}M")
            batch.plot(mine["D"], mine["B"], "o", color=colour, markersize=3, alpha=0.7)
            for law, dashes in ((ours, "-"), (theirs, "--")):
                values = np.exp(law[0] + law[1] * np.log(n) + law[2] * np.log(grid))
                draw.curve(rate, grid, values, colour, dashes=dashes, width=1.1)
        for law, colour, dashes, label in ((ours, draw.OURS, "-", "ours"), (theirs, draw.PUBLISHED, "--", "published")):
            draw.curve(batch, grid, np.exp(law[3] + law[4] * np.log(grid)), colour, f"{label}: D^{law[4]:.3f}", dashes)
        rate.set(
            xscale="log", yscale="log", xlabel="Tokens D", ylabel="Peak learning rate", title="lr (dashed: published)"
        )
        batch.set(xscale="log", yscale="log", xlabel="Tokens D", ylabel="Batch size, tokens", title="Batch size")
        rate.legend(title="N", ncols=2)
        batch.legend()
        order = np.arange(len(regrets))
        marks = {"no_law": ("x", draw.FAINT), "held_out": ("s", "#56B4E9"), "ours": ("o", draw.OURS)}
        for name, (mark, colour) in (marks | {"published": ("D", draw.PUBLISHED)}).items():
            label = f"{name.replace('_', ' ')}: {regrets[name].mean():.3f} %"
            cost.plot(regrets[name], order, mark, color=colour, markersize=4, label=label)
        labels = [f"{n / 1e6:.0f}M, {d / 1e9:.0f}B" for n, d in zip(regrets["N"], regrets["D"])]
        cost.set_yticks(order, labels, fontsize=6)
        cost.set(xlabel="Regret, % of loss", title="What the laws cost")
        cost.legend(loc="center right")
        cost.figure.subplots_adjust(wspace=0.42)
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="step-law/dense",
        paper="Li et al. 2025, Predictable Scale: Part I, Optimal Hyperparameter Scaling Law, arXiv 2503.04715",
        summary="Optimal learning rate in N and D and batch size in D, with intervals over cells and regret in loss",
        measurements=analyse,
    )
]
