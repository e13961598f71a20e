"""McLeish et al. 2025: L(N, D) of the Gemstones, fitted again to the rows and Huber deltas of the fits that they saved.

Law: L = E + A / N^alpha + B / D^beta, sum of Huber(delta) of log residuals, delta 1e-3 or 1e-4. The authors start
L-BFGS-B with finite-difference gradients from 4,500 points and keep the best end that reports success. Here: exact
derivatives, objective scaled by delta, and a certificate; the saved constants are put into the same objective first.

"hot" rows have a constant learning rate and at most 100B tokens, "lr_ablation" half that rate; "no_embeds" takes
50304 x width from N; "hot_sampled_like_chinchilla" and "slim_chinchilla" are small sets, the latter of Chinchilla's own
points. Rows of one run are checkpoints of one training, hence not independent: intervals come from resampling runs,
beside profiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.parametric import LEVEL, loss_of, objective_at, rows_of, valleys
from experiments.published_figure import png_of, sheet
from lab.laws.bootstrap import Interval
from lab.report.findings import Claim, judge
from lab.sweep.experiment import Analysis, Experiment

SOURCE = "McLeish et al. 2025, arXiv 2502.06857"
VOCABULARY = 50304
FILES = {
    "parameters_hot": "gemstones_hot_le100B",
    "parameters_lr_ablation_hot": "gemstones_lr_ablation_hot",
    "parameters_hot_sampled_like_chinchilla": "gemstones_hot_sampled_like_chinchilla",
    "parameters_slim_chinchilla": "gemstones_slim_chinchilla",
}
NO_EMBEDDING = "_no_embeds"
RESAMPLES = 400


def _claim(text: str, published: float) -> Claim:
    return Claim(text, SOURCE, published, "exponent of C", "equals", 0.05)


CLAIMS = {
    ("parameters_hot", 1e-4): _claim("At a constant learning rate N* ~ C^0.70 (delta 1e-4)", 0.69861),
    ("parameters_lr_ablation_hot", 1e-4): _claim("At half the learning rate N* ~ C^0.67 (delta 1e-4)", 0.67401),
    ("parameters_slim_chinchilla", 1e-4): _claim("A thinned Chinchilla set gives N* ~ C^0.63 (delta 1e-4)", 0.63154),
}


def rows_of_fit(load: Any, name: str) -> tuple[Any, Any]:
    """The rows of a saved fit by its name, and the run of each row (None where the file names none)."""
    table = load(FILES[name.removesuffix(NO_EMBEDDING)])
    n = table["params_active_precise"].to_numpy(float)
    if name.endswith(NO_EMBEDDING):
        n = n - VOCABULARY * table["width"].to_numpy(float)
    rows = rows_of({"N": n, "D": table["tokens"]}, table["final_loss"])
    return rows, table["run_name"].to_numpy() if "run_name" in table else None


def saved_fits(load: Any) -> list[tuple[str, float, float, dict[str, float]]]:
    """(name, delta, objective, constants) of every fit that the authors saved."""
    found = []
    for row in load("gemstones_published_fits").itertuples():
        alpha, beta = (float(part) for part in row.exponents.split())
        a, b = (float(part) for part in row.log_coefficients.split())
        constants = {"E": np.exp(row.log_irreducible), "A": np.exp(a), "B": np.exp(b), "alpha": alpha, "beta": beta}
        found.append((row.name, float(row.huber_delta), float(row.objective), constants))
    return found


def analyse(load: Any, resamples: int = RESAMPLES) -> Analysis:
    import pandas

    from lab.laws.compare import published_against_ours
    from lab.laws.fit import fit
    from lab.laws.law import law
    from lab.laws.objective import Objective

    form, fits, intervals, lines, frames = law("hoffmann"), {}, {}, [], []
    for name, delta, stored, constants in saved_fits(load):
        rows, runs = rows_of_fit(load, name)
        objective = Objective("huber", delta)
        ours = fits[name, delta] = fit(form, rows, objective)
        intervals[name, delta], errors = _intervals(ours, runs, resamples)
        theirs = objective_at(form, rows, objective, constants)
        published = {**constants, "a": constants["beta"] / (constants["alpha"] + constants["beta"])}
        excess = theirs / ours.objective_value - 1
        line = {
            "data": name,
            "delta": delta,
            "rows": len(rows),
            "saved_objective": stored,
            "at_saved_constants": theirs,
        }
        line |= {"ours": ours.objective_value, "excess": excess}
        line |= {
            f"{key}_moves": {**ours.values, **ours.derived}[key] - published[key] for key in ("alpha", "beta", "a")
        }
        lines.append({**line, "second_basin": ours.certificate.second_basin, "converged": ours.certificate.converged})
        reason = (
            f"their search stopped {excess:.1e} of the objective above the optimum"
            if excess > 1e-6
            else "the same optimum"
        )
        labels = {"data": name, "delta": f"{delta:g}"}
        values = {**ours.values, **ours.derived}
        frames.append(published_against_ours(published, values, errors, dict.fromkeys(published, reason), **labels))
    objectives = pandas.DataFrame(lines)
    tables = {
        "published-against-ours": pandas.concat(frames, ignore_index=True),
        "objectives": objectives,
        "intervals": _interval_table(fits, intervals),
    }
    findings = [
        judge(claim, fits[key].derived["a"], intervals[key]["by run" if "by run" in intervals[key] else "profile"])
        for key, claim in CLAIMS.items()
    ]
    draw = lambda stem: _draw(load, fits, intervals, findings, stem)  # noqa: E731
    return Analysis(findings, tables, _notes(objectives), draw)


def _intervals(fit: Any, runs: Any, resamples: int) -> tuple[dict[str, Interval], dict[str, float]]:
    """Intervals of a by method, and standard errors from resampled runs (rows, where no runs are named)."""
    from lab.laws.intervals import bootstrap, draw, profile

    found = bootstrap(fit, draw(len(fit.rows), resamples, seed=0, groups=runs))
    units = len(np.unique(runs)) if runs is not None else len(fit.rows)
    resampled = found.intervals(LEVEL, units)["a"]
    name = "by run" if runs is not None else "by row"
    errors = found.standard_errors() if resampled.known else {}
    return {"profile": profile(fit, ["a"], LEVEL)["a"], name: resampled}, errors


def _interval_table(fits: Any, intervals: Any) -> Any:
    import pandas

    lines = [
        {"data": name, "delta": delta, "a": fits[name, delta].derived["a"], "method": method,
         "low": interval.low, "high": interval.high, "reason": interval.reason}
        for (name, delta), methods in intervals.items()
        for method, interval in methods.items()
    ]  # fmt: skip
    return pandas.DataFrame(lines)


def _notes(objectives: Any) -> list[str]:
    worst = objectives.loc[objectives["excess"].idxmax()]
    above = objectives[objectives["excess"] > 1e-6]
    moves = objectives[["alpha_moves", "beta_moves"]].abs().max(axis=1)
    return [
        f"{len(above)} of {len(objectives)} saved fits lie above the optimum by more than 1e-6, by up to "
        f"{worst['excess']:.2%} ({worst['data']}, delta {worst['delta']:g}: alpha moves by "
        f"{worst['alpha_moves']:+.3f}, beta by {worst['beta_moves']:+.3f}, a by {worst['a_moves']:+.3f}).",
        f"The largest move of an exponent is {moves.max():.3f} ({objectives['data'][moves.idxmax()]}, delta "
        f"{objectives['delta'][moves.idxmax()]:g}).",
        "No fit of ours lies above a saved one."
        if (objectives["excess"] >= -1e-8).all()
        else "A saved fit lies below ours: the search missed an optimum.",
    ]


def _draw(load: Any, fits: Any, intervals: Any, findings: Any, stem: Any) -> Any:
    from lab.report import figure as draw

    saved = {(name, delta): constants for name, delta, _, constants in saved_fits(load)}
    main = ("parameters_hot", 1e-4)

    subtitle = "L = E + A / N^alpha + B / D^beta; sums of Huber(delta) of log residuals"
    with sheet(stem, "Gemstones, fitted again", subtitle, findings) as (left, right):
        rows = fits[main].rows
        n, d = rows.columns["N"], rows.columns["D"]
        budgets = (1e19, 5e19, 2e20, 6e20)
        valleys(left, n, 6 * n * d, rows.target, budgets, loss_of(fits[main].values), loss_of(saved[main]))
        left.set_title("hot, delta 1e-4: loss along budgets C (FLOPs)")
        draw.legend_above(left)
        labels = []
        for at, key in enumerate(sorted(fits, key=lambda key: (key[0], -key[1]))):
            interval = intervals[key].get("by run", intervals[key].get("by row"))
            right.plot([interval.low, interval.high], [-at, -at], "-", color=draw.OURS, linewidth=1.4)
            ours = fits[key].derived["a"]
            right.plot(ours, -at, "o", color=draw.OURS, markersize=5, label="" if at else "ours, runs resampled")
            theirs = saved[key]["beta"] / (saved[key]["alpha"] + saved[key]["beta"])
            right.plot(theirs, -at, "x", color=draw.PUBLISHED, markersize=6, label="" if at else "published")
            labels.append(f"{key[0].removeprefix('parameters_').replace('_', ' ')}, {key[1]:g}")
        right.set_yticks([-at for at in range(len(labels))], labels, fontsize=7)
        right.set(xlabel="a in N* ~ C^a", title="Exponent by data and delta")
        right.set_ylim(0.5 - len(labels), 2)
        right.legend(loc="upper left", ncols=2)
        right.figure.subplots_adjust(wspace=0.55)
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="gemstones/fits",
        paper=f"{SOURCE}, Gemstones: A model suite for multi-faceted scaling laws",
        summary="Twelve saved L(N, D) fits of the Gemstones: objective against optimum, exponents, intervals by run.",
        measurements=analyse,
    )
]
