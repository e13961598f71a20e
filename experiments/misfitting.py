"""Li et al. 2025, (Mis)Fitting: what the choices of a scaling-law study do to its constants, on the authors' own runs.

Law: L = E + A / N^alpha + B / D^beta, or with one exponent for both. Their saved constants come from the last
checkpoint of all 261 runs, N with embeddings, a sum of Huber(1e-3) of log residuals. That fit is repeated, then one
choice is changed at a time: learning rate (all, the best of each size and budget, a single one), checkpoints (last,
all), counting of parameters, tokens per parameter, objective. Runs that differ in the learning rate alone share size
and tokens: cells of equal (N, D) are resampled whole.

IsoFLOP: budgets 1e16 x 2^k FLOPs, runs within 10 % of one, the lowest loss of each size, Akima interpolation of ln L
over ln N, the median of 1,000 copies with noise 0.002. Their smoothing of a run's log moves its one point to half the
step, so that losses count at half their compute; here a budget is the compute of its runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.parametric import LEVEL, a_of, choices_table, loss_of, objective_at, reason_of, rows_of, valleys
from experiments.published_figure import png_of, sheet
from lab.report.findings import Claim, judge
from lab.sweep.experiment import Analysis, Experiment

SOURCE = "Li et al. 2025, arXiv 2502.18969"
SAVED = {"E": float(np.exp(0.592076393221421)), "A": float(np.exp(3.9388019787438124)),
         "B": float(np.exp(13.055763753008362)), "alpha": 0.20019580085843525, "beta": 0.6356967859533506}  # fmt: skip
SAVED_SHARED = {"E": float(np.exp(0.9341376764647259)), "A": float(np.exp(10.420172618397713)),
                "B": float(np.exp(12.435421817813246)), "alpha": 0.6033796218161143}  # fmt: skip
OBJECTIVES = {"hoffmann": 0.005021654212110655, "hoffmann-shared": 0.005243705787850444}
ISOFLOP = 0.5841934676058397
BUDGETS = 1e16 * 2.0 ** np.arange(13)
TOLERANCE = 0.1
RESAMPLES = 400
PUBLISHED, BARE = "as published", "N without embeddings"
CLAIMS = {
    "alpha": Claim("The exponent of N is 0.20", SOURCE, SAVED["alpha"], "exponent of N", "equals", 0.1),
    "beta": Claim("The exponent of D is 0.64", SOURCE, SAVED["beta"], "exponent of D", "equals", 0.1),
    "a": Claim("Approach 3 gives N* ~ C^0.76", SOURCE, a_of(SAVED), "exponent of C", "equals", 0.1),
}
SHARED_CLAIM = Claim("With one exponent it is 0.60", SOURCE, SAVED_SHARED["alpha"], "exponent", "equals", 0.1)
ISOFLOP_CLAIM = Claim("IsoFLOP optima give N* ~ C^0.58", SOURCE, ISOFLOP, "exponent of C", "equals", 0.1)


def analyse(load: Any, resamples: int = RESAMPLES, wanted: Sequence[str] | None = None) -> Analysis:
    """`wanted`: choices of the analysis beside the published ones; all where None."""
    from lab.laws.fit import fit
    from lab.laws.intervals import bootstrap, draw
    from lab.laws.law import law

    last, every = load("misfitting_last_checkpoint"), load("misfitting_all_checkpoints")
    rows = rows_of({"N": last["N"], "D": last["D"]}, last["loss"])
    fits = {name: fit(law(name), rows) for name in OBJECTIVES}
    cells = last.groupby(["N", "D"]).ngroup().to_numpy()
    counts = draw(len(rows), resamples, seed=0, groups=cells)
    draws = {name: bootstrap(each, counts) for name, each in fits.items()}
    choices = choices_table(_choices(last, every, fits["hoffmann"], wanted), "a", dependent=["all checkpoints"])
    curves = {"last": isoflop(last), "all": isoflop(_at_budgets(every))}
    exponents = {name: exponent_of(curve) for name, curve in curves.items()}
    ours = {name: {**each.values, **each.derived} for name, each in fits.items()}
    intervals = {name: each.intervals(LEVEL, cells.max() + 1) for name, each in draws.items()}
    findings = [judge(claim, ours["hoffmann"][name], intervals["hoffmann"][name]) for name, claim in CLAIMS.items()]
    findings += [
        judge(SHARED_CLAIM, ours["hoffmann-shared"]["alpha"], intervals["hoffmann-shared"]["alpha"]),
        judge(ISOFLOP_CLAIM, *exponents["last"], notes=(f"all checkpoints give {exponents['all'][0]:.3f}",)),
    ]
    tables = {
        "published-against-ours": _comparison(fits, draws, curves["last"], exponents["last"][0]),
        "choices": choices,
        "isoflop": _joined(curves),
    }
    notes = _notes(choices, curves)
    return Analysis(findings, tables, notes, lambda stem: _draw(last, fits["hoffmann"], choices, findings, stem))


def _choices(last: Any, every: Any, published: Any, wanted: Sequence[str] | None) -> dict[str, Any]:
    """Fits of the law by the choice in which they differ from the published one."""
    from lab.laws.fit import fit
    from lab.laws.objective import Objective

    loss, rate, ratio = last["loss"], last["peak_lr"], last["D"] / last["N"]
    best = np.zeros(len(last), bool)
    best[last.groupby(["N", "D"])["loss"].idxmin()] = True
    kept = {"best learning rate of each (N, D)": best}
    kept |= {f"learning rate {value:g} alone": rate == value for value in (0.001, 0.002, 0.004)}
    kept |= {"at least five tokens per parameter": ratio >= 5}
    kept |= {"less the highest tenth of losses": loss < loss.quantile(0.9)}
    columns = {"N": last["N"], "D": last["D"]}
    choices = {choice: (rows_of(columns, loss, which), None) for choice, which in kept.items()}
    choices[BARE] = (rows_of({"N": last["N_no_emb"], "D": last["D"]}, loss), None)
    for objective in (Objective("huber", 1e-2), Objective("lad"), Objective("least-squares")):
        choices[str(objective)] = (published.rows, objective)
    choices["all checkpoints"] = (rows_of({"N": every["N"], "D": every["D"]}, every["loss"]), None)
    found = {PUBLISHED: published}
    for choice, (rows, objective) in choices.items():
        if wanted is None or choice in wanted:
            found[choice] = fit(published.law, rows, objective)
    return found


def isoflop(runs: Any) -> Any:
    """A frame with a row per budget: runs, sizes, N* (median of noisy copies), its log standard deviation, reason.

    Args:
      runs: columns N, D, loss; of a budget and size the lowest loss counts.
    """
    import pandas

    from lab.laws.isoflop import Noise, budgets_of, optima

    flops = 6.0 * runs["N"].to_numpy(float) * runs["D"].to_numpy(float)
    nominal = BUDGETS[np.abs(np.log(flops[:, None] / BUDGETS)).argmin(1)]
    near = np.abs(np.log(flops / nominal)) <= np.log(1 + TOLERANCE)
    budgets = budgets_of(nominal[near], *(runs[name].to_numpy(float)[near] for name in ("N", "loss", "D")))
    found = optima(budgets, "akima-grid", Noise(0.002))
    known = dict(zip(found.flops, zip(found.median, found.log_std, found.reasons)))
    lines = []
    for budget in budgets:
        median, std, reason = known.get(budget.flops, (np.nan, np.nan, "too few sizes"))
        line = {"budget": budget.flops, "sizes": len(budget.loss), "optimum": np.exp(median), "log_std": std}
        lines.append({**line, "reason": reason})
    return pandas.DataFrame(lines)


def _at_budgets(every: Any) -> Any:
    """Losses of every run where it passes a budget, ln L interpolated over ln C between its checkpoints."""
    import pandas

    parts = []
    for (n, *_), run in every.groupby(["N", "peak_lr", "total_steps", "sweep"]):
        run, tokens = run.sort_values("D"), BUDGETS / (6.0 * n)
        passed = tokens[(tokens >= run["D"].iloc[0]) & (tokens <= run["D"].iloc[-1])]
        loss = np.exp(np.interp(np.log(passed), np.log(run["D"]), np.log(run["loss"])))
        parts.append(pandas.DataFrame({"N": float(n), "D": passed, "loss": loss}))
    return pandas.concat(parts, ignore_index=True)


def exponent_of(curve: Any) -> tuple[float, Any]:
    """The unweighted slope of ln N* over ln C, and its Student interval from the scatter of the budgets."""
    from lab.laws.bootstrap import Interval, no_interval
    from lab.laws.power import fit_power_law

    found = curve.dropna(subset="optimum")
    if len(found) < 3:
        slope = np.polyfit(np.log(found["budget"]), np.log(found["optimum"]), 1)[0]
        return float(slope), no_interval(f"{len(found)} budgets with an optimum leave no scatter to judge by", LEVEL)
    law = fit_power_law(found["budget"].to_numpy(), found["optimum"].to_numpy())
    return law.exponent, Interval(*law.exponent_interval(LEVEL), LEVEL)


def _comparison(fits: Any, draws: Any, curve: Any, exponent: float) -> Any:
    import pandas

    from lab.laws.compare import published_against_ours

    frames = []
    for name, saved in {"hoffmann": SAVED, "hoffmann-shared": SAVED_SHARED}.items():
        each, stored = fits[name], OBJECTIVES[name]
        checked = objective_at(each.law, each.rows, each.objective, saved)
        published = {**saved, "objective": stored, "objective at the saved constants": stored}
        ours = {**each.values, "objective": each.objective_value, "objective at the saved constants": checked}
        reasons = dict.fromkeys(published, reason_of(checked / each.objective_value - 1))
        apart = abs(checked / stored - 1)
        reasons["objective at the saved constants"] = f"our formula on our rows: {apart:.0e} apart"
        frames.append(published_against_ours(published, ours, draws[name].standard_errors(), reasons, law=name))
    frames.append(
        published_against_ours(
            {"a": ISOFLOP}, {"a": exponent}, {}, {"a": _isoflop_reason(curve, exponent)}, law="isoflop"
        )
    )
    return pandas.concat(frames, ignore_index=True)


def _isoflop_reason(curve: Any, exponent: float) -> str:
    """Optima lie on a grid: one that is a point off moves the exponent by more than searches or digits could."""
    used = curve["optimum"].notna().sum()
    if abs(exponent - ISOFLOP) < 1e-9:
        return f"equal to 1e-9: the optima of these {used} budgets are the authors' points of the grid in ln N"
    return f"not explained: {used} of {len(curve)} budgets have an optimum here"


def _joined(curves: Any) -> Any:
    import pandas

    return pandas.concat([curve.assign(checkpoints=name) for name, curve in curves.items()], ignore_index=True)


def _notes(choices: Any, curves: Any) -> list[str]:
    a, floor = (choices.set_index("choice")[name] for name in ("a", "E"))
    rates = a[a.index.str.endswith("alone")]
    used = curves["last"].dropna(subset="optimum")
    notes = [
        f"One choice at a time moves a from {a.min():.2f} ({a.idxmin()}) to {a.max():.2f} ({a.idxmax()}).",
        f"Of {len(curves['last'])} budgets of their grid {len(used)} have their lowest loss between the smallest and "
        f"the largest size ({', '.join(f'{c:.3g}' for c in used['budget'])} FLOPs); an error needs three.",
        "Of the authors' code, read and not measured: it smooths a log of one point to half its step, so that their "
        "intercept is that of half the compute.",
    ]
    if len(rates):
        notes.append(f"At a single learning rate a is {rates.min():.2f} to {rates.max():.2f}.")
    if BARE in floor:
        notes.append(f"E is {floor[PUBLISHED]:.2f} with embeddings and {floor[BARE]:.2g} without.")
    return notes


def _draw(last: Any, fit: Any, choices: Any, findings: Any, stem: Any) -> Any:
    from lab.report import figure as draw

    with sheet(stem, "(Mis)Fitting, fitted again", "Last checkpoints of 261 runs on C4", findings) as (left, right):
        n = last["N"].to_numpy(float)
        flops = 6 * n * last["D"].to_numpy(float)
        valleys(
            left, n, flops, fit.rows.target, (1.6e17, 6.4e17, 2.56e18, 1.024e19), loss_of(fit.values), loss_of(SAVED)
        )
        left.set_title("Loss along budgets C (FLOPs)")
        draw.legend_above(left)
        for at, row in enumerate(choices.itertuples()):
            right.plot([row.a_low, row.a_high], [-at, -at], "-", color=draw.OURS, linewidth=1.4)
            right.plot(
                row.a, -at, "o", color=draw.OURS, markersize=5, label="" if at else "ours, 95 % profile interval"
            )
        right.axvline(CLAIMS["a"].published, color=draw.PUBLISHED, linestyle="--", linewidth=1, label="published")
        right.axvline(ISOFLOP, color=draw.PUBLISHED, linestyle=":", linewidth=1.2, label="published, IsoFLOP")
        right.set_yticks([-at for at in range(len(choices))], choices["choice"], fontsize=7)
        right.set(xlabel="a in N* ~ C^a", title="Approach 3, one choice changed at a time")
        right.set_ylim(0.5 - len(choices), 3.2)
        right.legend(loc="upper left")
        right.figure.subplots_adjust(wspace=0.62)
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="misfitting/choices",
        paper=f"{SOURCE}, (Mis)Fitting: A survey of scaling laws",
        summary="What learning rate, checkpoints, counting, objective and estimator do to the same runs' exponents.",
        measurements=analyse,
    )
]
