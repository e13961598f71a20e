"""Resolving Discrepancies in Compute-Optimal Scaling of Language Models (Porian et al. 2024, arXiv 2406.19146).

The paper starts from Kaplan's setting and mends one thing at a time, training on RefinedWeb, until the exponent a of
N* ~ C^a is Chinchilla's. Per step and budget C (twelve, a factor of two apart, 1.25e16 to 2.56e19 FLOPs) it
interpolates ln L over ln N (Akima), takes the lowest point N*, and adds seed noise to the losses 1,000 times. The
median ln N* of the noisy copies is fitted on ln C; a budget weighs 1 / (log standard deviation)^2, that deviation being
at least 0.33 intervals of ln N.

Here that procedure is repeated on the released losses, then each choice in it is changed in turn: how the lowest point
is found (grid, smooth Akima, parabola over all sizes or the nearest ones, a valley with saturating sides), the weights,
the noise model, and the family of estimator (one fit of E + A / N^alpha + B / D^beta to all losses: approach 3).

Which intervals. The published ones count the noise of the losses. The budgets scatter about the law by more than that,
so verdicts use Student intervals from the scatter; both are in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.isoflop_estimators import (
    APPROACH_2,
    APPROACH_3,
    AUTHORS,
    COPIES,
    FLOOR,
    Estimate,
    approach_2,
    approach_3,
    difference,
    noise_models,
)
from experiments.parametric import objective_at, reason_of, rows_of
from experiments.published_figure import png_of, sheet
from lab.sweep.experiment import Analysis, Experiment

SOURCE = "Porian et al. 2024, arXiv 2406.19146"
KEYS = ("hparams", "warmup", "decay", "param_count", "split")
STEPS = {  # label: its rows, the printed exponent
    "Kaplan reproduced": (("base", "long", "kaplan", "kaplan", "train"), 0.835),
    "last layer's FLOPs counted": (("base", "long", "kaplan", "standard", "val"), 0.706),
    "warm-up scaled to the model": (("base", "short", "kaplan", "standard", "val"), 0.602),
    "cosine ends at the budget": (("base", "short", "chinchilla", "standard", "val"), 0.571),
    "optimizer tuned, no decay": (("tuned", "short", "const", "standard", "val"), 0.497),
}
UNWEIGHTED = "the same, unweighted"
ESTIMATORS = (*APPROACH_2, APPROACH_3)
DRAWS = 20  # further draws of the seed noise, to see how far they move a median
START = (1.0, np.exp(5), 0.1)  # E, F, gamma at which the authors' search for a loss law begins
RESOLUTION = 0.05  # half-width that tells neighbouring steps' exponents from Kaplan's and Chinchilla's


def analyse(load: Any, estimators: Sequence[str] = ESTIMATORS) -> Analysis:
    """`estimators`: those that are tried; the authors' rule, weighted and not, is always among them."""
    import pandas as pd

    runs, optima, fits = (load(f"porian_refinedweb_{name}") for name in ("isoflop", "optima", "published_fits"))
    found = {label: estimates(runs, _is(runs, key), estimators) for label, (key, _) in STEPS.items()}
    tried = _estimators(found)
    budgets = pd.concat([_budgets(label, found[label], optima[_is(optima, key)]) for label, (key, _) in STEPS.items()])
    compared = pd.concat(
        [
            _compared(label, found[label], fits[_is(fits, key)], budgets[budgets["step"] == label])
            for label, (key, _) in STEPS.items()
        ]
    )
    findings = verdicts(found)
    tables = {"published-against-ours": compared, "estimators": tried}
    tables |= {"optima": budgets, "loss-law": loss_law(found, fits)}
    notes = _notes(runs, found, budgets, tried, fits)
    return Analysis(findings, tables, notes, lambda stem: figure(found, findings, stem))


def estimates(runs: Any, mine: Any, wanted: Sequence[str] = ESTIMATORS) -> dict[str, Estimate]:
    """The estimators on the runs that are `mine` (bool [K])."""
    from lab.laws.isoflop import budgets_of

    rows = runs[mine]
    budgets = budgets_of(rows["flops"], rows["n"], rows["loss"], rows["tokens"])
    wanted = {AUTHORS, UNWEIGHTED, *wanted}
    found = {name: approach_2(budgets, choice) for name, choice in APPROACH_2.items() if name in wanted}
    if APPROACH_3 in wanted:
        found[APPROACH_3] = approach_3({"N": runs["n"], "D": runs["tokens"]}, runs["loss"], runs["flops"], mine)
    return found


def verdicts(found: dict[str, dict[str, Estimate]]) -> list[Any]:
    """Five exponents by the authors' rule, then that each step lowers the one before it."""
    from lab.report.findings import Claim, judge

    values, falls, before = [], [], None
    for label, (_, printed) in STEPS.items():
        ours = found[label][AUTHORS]
        others = [estimate.exponent for estimate in found[label].values()]
        claim = Claim(f"{label}: N* ~ C^{printed}", SOURCE, printed, "exponent of C", "equals", RESOLUTION)
        note = f"{label}: from {min(others):.3f} to {max(others):.3f} over {len(others)} estimators"
        values.append(judge(claim, ours.exponent, ours.interval(), notes=(note,)))
        if before:
            change = round(printed - STEPS[before][1], 3)
            lower = Claim(f"{label}: the exponent falls", SOURCE, change, "difference of exponents", "sign")
            falls.append(judge(lower, *difference(ours, found[before][AUTHORS])))
        before = label
    return values + falls


def _is(table: Any, key: tuple[str, ...]) -> Any:
    """Which rows belong to a step, bool [K]."""
    return (table[list(KEYS)] == list(key)).all(axis=1).to_numpy()


def _estimators(found: dict[str, dict[str, Estimate]]) -> Any:
    """A row per step and estimator: exponent, standard error, 95 % intervals from scatter and from seed noise alone."""
    import pandas as pd

    rows = []
    for label, results in found.items():
        for name, estimate in results.items():
            scatter = estimate.interval()
            row = {"step": label, "estimator": name, "exponent": estimate.exponent, "standard_error": estimate.error}
            row |= {"low": scatter.low, "high": scatter.high, "shift": estimate.exponent - results[AUTHORS].exponent}
            if estimate.allocation:
                noise = estimate.allocation.noise_interval()
                row |= {"noise_low": noise.low, "noise_high": noise.high, "budgets": estimate.degrees_of_freedom + 2}
            rows.append(row)
    return pd.DataFrame(rows)


def _budgets(label: str, found: dict[str, Estimate], published: Any) -> Any:
    """Optimum of every budget by the authors' rule, beside theirs."""
    import pandas as pd

    from lab.laws.isoflop import GRID

    located = found[AUTHORS].optima
    step = located.floor / FLOOR / GRID
    ours = pd.DataFrame(
        {
            "flops": located.flops,
            "ours": np.exp(located.median),
            "log_std": located.log_std,
            "on_floor": located.log_std < located.floor * 1.02,
            "grid_step": step,
            "points_between_draws": (other_draws(located) / step).round(3),
            "reason": located.reasons,
        }
    )
    theirs = published[["flops", "n_star", "log_n_star_std"]]
    table = ours.merge(theirs.set_axis(["flops", "published", "published_log_std"], axis=1), on="flops", how="outer")
    table.insert(0, "step", label)
    table["log_ratio"] = np.log(table["ours"] / table["published"])
    table["points_apart"] = (table["log_ratio"] / table["grid_step"]).round(3)
    return table


def other_draws(located: Any) -> Any:
    """How far the median ln N* of each budget moves at most over other draws of the seed noise, [B]."""
    from lab.laws.isoflop import optima

    again = [
        optima(located.budgets, located.method, noise_models()[0], COPIES, seed, FLOOR) for seed in range(1, DRAWS + 1)
    ]
    return np.abs([each.median - located.median for each in again]).max(0)


def reason_of_medians(points: Any, between_draws: Any) -> str:
    """Why exponents differ, from points of the grid in ln N [B]: medians apart, and moved by other draws."""
    points = points[np.isfinite(points)]
    off, most = int((np.abs(points) > 0).sum()), np.abs(points).max()
    if off == 0:
        return f"all {len(points)} medians are the authors'; only the draws of the seed noise differ"
    said = f"{off} of {len(points)} medians lie apart from the authors', by up to {most:.1f} points of the grid in ln N"
    moved = np.nanmax(between_draws)
    draws = f"{DRAWS} other draws of the seed noise, which move ours by up to {moved:.1f}"
    return f"{said}: no more than {draws}" if most <= moved else f"{said}: more than {draws}"


def _compared(label: str, found: dict[str, Estimate], published: Any, budgets: Any) -> Any:
    """The published estimates of the exponent beside ours by the same rules."""
    from lab.laws.compare import published_against_ours

    kinds = published.set_index("kind")
    weighted, plain = found[AUTHORS], found[UNWEIGHTED]
    noise = weighted.allocation.noise_interval()
    names = ("a, weighted", "a, unweighted", "a, low end", "a, high end")
    ours = dict(zip(names, (weighted.exponent, plain.exponent, noise.low, noise.high)))
    exponents, ends = kinds["n_exponent"], kinds.loc["bootstrap_weighted_ci95"]
    theirs = (exponents["bs_median_weighted"], exponents["bs_median"], ends["n_exponent_lo"], ends["n_exponent_hi"])
    reason = reason_of_medians(budgets["points_apart"].to_numpy(), budgets["points_between_draws"].to_numpy())
    errors = {"a, weighted": weighted.error, "a, unweighted": plain.error}
    return published_against_ours(dict(zip(names, theirs)), ours, errors, dict.fromkeys(names, reason), step=label)


def _optima(step: tuple[str, dict[str, Estimate]]) -> tuple[Any, Any, Any]:
    """FLOPs, least loss and the step's label of every budget with an optimum."""
    located = step[1][AUTHORS].optima
    ok = located.usable
    return located.flops[ok], located.loss[ok], np.full(ok.sum(), step[0])


def loss_law(found: dict[str, dict[str, Estimate]], fits: Any) -> Any:
    """L* = E + F / C^gamma at the optima between 1e16 and 5e17 FLOPs, unweighted least squares of logs as theirs."""
    import pandas as pd

    from lab.laws.compare import published_against_ours
    from lab.laws.fit import fit
    from lab.laws.law import law

    flops, loss, step = (np.concatenate(values) for values in zip(*map(_optima, found.items())))
    tables = []
    for label, (key, _) in STEPS.items():
        within = (step == label) & (flops > 1e16) & (flops < 5e17)
        ours = fit(law("isoflop-loss"), rows_of({"C": flops}, loss, within))
        basic = fits[_is(fits, key)].set_index("kind").loc["basic"]
        published = {"E": basic["loss_E"], "F": basic["loss_A"], "gamma": basic["loss_alpha"]}
        at_theirs = objective_at(ours.law, ours.rows, ours.objective, published)
        reason = f"on our losses at the optima: {reason_of(at_theirs / ours.objective_value - 1)}"
        tables.append(
            published_against_ours(published, ours.values, ours.errors, dict.fromkeys(published, reason), step=label)
        )
    return pd.concat(tables)


def _notes(runs: Any, found: dict[str, dict[str, Estimate]], budgets: Any, estimators: Any, fits: Any) -> list[str]:
    coded, meant = (model.deviation(runs["loss"].to_numpy(float)) for model in noise_models())
    floor, inside = int(budgets["on_floor"].sum()), int(budgets["log_std"].notna().sum())
    largest = estimators.groupby("estimator", sort=False)["shift"].agg(lambda shift: shift.loc[shift.abs().idxmax()])
    shifts = [f"{name} {shift:+.3f}" for name, shift in largest.drop(AUTHORS).items()]
    mine = estimators[estimators["estimator"] == AUTHORS]
    wider = (mine["high"] - mine["low"]) / (mine["noise_high"] - mine["noise_low"])
    weighted = [fits[_is(fits, key)].set_index("kind").loc["weighted"] for key, _ in STEPS.values()]
    unmoved = sum(np.allclose(list(row[["loss_E", "loss_A", "loss_alpha"]]), START, rtol=1e-5) for row in weighted)
    return [
        f"The exponent's largest shift over the five steps, against the authors' rule: {'; '.join(shifts)}.",
        f"The authors' noise model (their code) compares ln L with thresholds on L (3 and 7 nats). ln L is at most "
        f"{np.log(runs['loss'].max()):.2f}, so the noise is {coded.max():g} nats everywhere; as meant it would be "
        f"{np.median(meant):.3f} nats in the middle and {meant.max():.3f} at the highest loss.",
        f"The floor of the log standard deviation, not noise, decides the weight of {floor} of {inside} budgets: the "
        f"weights say how densely sizes were sampled.",
        f"Intervals from the scatter of the budgets are {wider.min():.1f} to {wider.max():.1f} times as wide as those "
        f"from seed noise, which are the printed ones.",
        f"The published constants of the loss law in the rows `weighted` are in {unmoved} of {len(STEPS)} steps where "
        f"the authors' search began (E {START[0]:g}, F {START[1]:.1f}, gamma {START[2]:g}); they are not compared.",
        "Of the authors' code, read and not measured: it passes that law 1 / std^2 as a standard deviation, which "
        "turns the weights upside down.",
    ]


def figure(found: dict[str, dict[str, Estimate]], findings: list[Any], stem: Path) -> Path:
    """N*(C) of the five steps, and each step's exponent by estimator."""
    from lab.report import figure as draw

    colours = draw.sequence_of_colours(len(STEPS))
    title = "From Kaplan's exponent to Chinchilla's"
    with sheet(stem, title, f"RefinedWeb, losses of {SOURCE}", findings) as (left, right):
        for label, colour in zip(STEPS, colours):
            located, law = found[label][AUTHORS].optima, found[label][AUTHORS].allocation.n
            flops, star, reach = (x[located.usable] for x in (located.flops, located.median, 1.96 * located.log_std))
            low, high = np.exp(star - reach), np.exp(star + reach)
            draw.points(left, flops, np.exp(star), low, high, colour, f"{label}: {law.exponent:.3f}")
            grid = np.geomspace(flops.min(), flops.max(), 50)
            draw.curve(left, grid, law(grid), colour)
            draw.band(left, grid, *law.band(grid), colour)
        left.set(xscale="log", yscale="log", xlabel="Budget C, FLOPs", ylabel="Compute-optimal parameters N*")
        left.set_title("Authors' optima; bars: 95 % of noise, bands: of scatter", size=9)
        draw.legend_above(left)
        names = list(next(iter(found.values())))
        for (label, (_, printed)), colour in zip(STEPS.items(), colours):
            values = [found[label][name].exponent for name in names]
            right.plot(values, range(len(names)), "o-", color=colour, markersize=5, linewidth=0.8)
            right.axvline(printed, color=draw.PUBLISHED, linewidth=0.9, linestyle="--", zorder=1)
        right.set_yticks(range(len(names)), names, fontsize=7)
        right.invert_yaxis()
        right.set(xlabel="Exponent a of N* ~ C^a (dashed: published)", title="The same losses, other estimators")
        right.figure.subplots_adjust(wspace=0.62)
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="discrepancies/refinedweb",
        paper="Porian et al. 2024, Resolving Discrepancies in Compute-Optimal Scaling, arXiv 2406.19146",
        summary="Five corrections take the exponent of the compute-optimal size from Kaplan's to Chinchilla's",
        measurements=analyse,
    )
]
