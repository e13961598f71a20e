"""McLeish et al. 2025: L(N, D) of the Gemstones, fitted again to the rows and Huber deltas of the fits that they saved.

Law: L = E + A / N^alpha + B / D^beta, sum of Huber(delta) of log residuals, delta 1e-3 or 1e-4. The authors start
L-BFGS-B with finite-difference gradients from 4,500 points and keep the best end that reports success. Here: exact
derivatives, objective scaled by delta, and a certificate; the saved constants are put into the same objective first.

"hot" rows have a constant learning rate and at most 100B tokens, "lr_ablation" half that rate; "no_embeds" takes
50304 x width from N; "hot_sampled_like_chinchilla" and "slim_chinchilla" are small sets, the latter of Chinchilla's own
points. Rows of one run are checkpoints of one training, hence not independent: intervals come from resampling runs,
beside profiles.

Laws in shape: a term each for width, depth and D, or for width, depth, N and D, fitted the same way. N follows from
width and depth but for the ratios that differ between models; the condition number says how well the terms are told
apart. Of the second law the authors saved fits to these rows, of the first only to others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.parametric import LEVEL, a_of, loss_of, objective_at, reason_of, rows_of, valleys
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


SHAPE_NAMES = ("A", "B", "C", "F", "alpha", "beta", "gamma", "zeta")  # coefficients, exponents of width, depth, N, D


def _saved_shape(log_e: float, log_coefficients: Sequence[float], exponents: Sequence[float]) -> dict[str, float]:
    return {"E": float(np.exp(log_e)), **dict(zip(SHAPE_NAMES, [*np.exp(log_coefficients).tolist(), *exponents]))}


WIDTH_DEPTH, WITH_N = "width-depth", "width-depth-parameters"
MAIN_SHAPE = (WITH_N, "parameters_hot", 1e-4)
SHAPES = {  # (law, data, delta): the objective and constants of the authors' repository (commit 1fb97a26b3, folders
    # parameters_delta-3 and -4, approach_3_width_depth_parameters_*), None where they saved no fit to these rows
    (WIDTH_DEPTH, "parameters_hot", 1e-4): None,
    (WIDTH_DEPTH, "parameters_lr_ablation_hot", 1e-4): None,
    MAIN_SHAPE: (
        0.000111878,
        _saved_shape(
            0.39245797,
            (1.4520106404, -0.0781020281, 7.9700333376, 10.0594263846),
            (0.2446914313, 0.3871516764, 0.5000838843, 0.4761055541),
        ),
    ),
    (WITH_N, "parameters_lr_ablation_hot", 1e-3): (
        0.0010089106,
        _saved_shape(
            0.6638094371,
            (1.5997194721, -0.2355685527, 6.6464813725, 11.8187276871),
            (0.3843608161, 0.5124435014, 0.4096142991, 0.5401321511),
        ),
    ),
    (WITH_N, "parameters_lr_ablation_hot", 1e-4): (
        0.0001102575,
        _saved_shape(
            0.4032489291,
            (1.7062208519, 0.0047673312, 10.018526774, 11.3779063054),
            (0.2880813791, 0.3433880468, 0.6395016896, 0.5200825759),
        ),
    ),
}
CLAIMED = {
    ("parameters_hot", 1e-4): "At a constant learning rate",
    ("parameters_lr_ablation_hot", 1e-4): "At half the learning rate",
    ("parameters_slim_chinchilla", 1e-4): "Of a thinned Chinchilla set",
}


def rows_of_fit(load: Any, name: str) -> tuple[Any, Any]:
    """The rows of a saved fit by its name, and the run of each row (None where the file names none)."""
    table = load(FILES[name.removesuffix(NO_EMBEDDING)])
    n = table["params_active_precise"].to_numpy(float)
    if name.endswith(NO_EMBEDDING):
        n = n - VOCABULARY * table["width"].to_numpy(float)
    columns = {"N": n, "D": table["tokens"]} | {key: table[key] for key in ("width", "depth") if key in table}
    return rows_of(columns, table["final_loss"]), table["run_name"].to_numpy() if "run_name" in table else None


def saved_fits(load: Any) -> list[tuple[str, float, float, dict[str, float]]]:
    """(name, delta, objective, constants) of every fit that the authors saved."""
    found = []
    for row in load("gemstones_published_fits").itertuples():
        alpha, beta = (float(part) for part in row.exponents.split())
        a, b = (float(part) for part in row.log_coefficients.split())
        constants = {"E": np.exp(row.log_irreducible), "A": np.exp(a), "B": np.exp(b), "alpha": alpha, "beta": beta}
        found.append((row.name, float(row.huber_delta), float(row.objective), constants))
    return found


def analyse(
    load: Any, resamples: int = RESAMPLES, data: Sequence[str] | None = None, shapes: Sequence[Any] = tuple(SHAPES)
) -> Analysis:
    """`data`: names of the saved fits that are repeated, all where None; `shapes`: keys of `SHAPES`, on those data."""
    import pandas

    from lab.laws.compare import published_against_ours
    from lab.laws.fit import fit
    from lab.laws.law import law
    from lab.laws.objective import Objective

    saved = [each for each in saved_fits(load) if data is None or each[0] in data]
    form, fits, intervals, lines, frames, findings = law("hoffmann"), {}, {}, [], [], []
    for name, delta, stored, constants in saved:
        rows, runs = rows_of_fit(load, name)
        ours, intervals[name, delta], errors = _settled(fit(form, rows, Objective("huber", delta)), runs, resamples)
        fits[name, delta] = ours
        found, published = {**ours.values, **ours.derived}, {**constants, "a": a_of(constants)}
        line, reason = _against_saved(ours, stored, constants)
        line |= {f"{key}_moves": found[key] - published[key] for key in ("alpha", "beta", "a")}
        lines.append({"data": name, "delta": delta, **line})
        labels = {"law": form.name, "data": name, "delta": f"{delta:g}"}
        frames.append(published_against_ours(published, found, errors, dict.fromkeys(published, reason), **labels))
        if (name, delta) in CLAIMED:
            text = f"{CLAIMED[name, delta]} N* ~ C^{published['a']:.2f} (delta {delta:g})"
            claim = Claim(text, SOURCE, published["a"], "exponent of C", "equals", 0.05)
            findings.append(judge(claim, found["a"], next(iter(intervals[name, delta].values()))))
    objectives = pandas.DataFrame(lines)
    shape, shape_frames, shape_findings = _shapes(load, shapes, fits, resamples)
    findings += shape_findings
    tables = {
        "published-against-ours": pandas.concat([*frames, *shape_frames], ignore_index=True),
        "objectives": objectives,
        "intervals": _interval_table(fits, intervals),
        "shape": shape,
    }
    draw = lambda stem: _draw(load, fits, intervals, findings, stem)  # noqa: E731
    return Analysis(findings, tables, _notes(objectives, shape), draw)


def _against_saved(ours: Any, stored: float, constants: Mapping[str, float]) -> tuple[dict[str, Any], str]:
    """A line on objective and certificate, and why the constants differ."""
    theirs = objective_at(ours.law, ours.rows, ours.objective, constants)
    excess = theirs / ours.objective_value - 1
    line = {"rows": len(ours.rows), "saved_objective": stored, "at_saved_constants": theirs}
    line |= {"ours": ours.objective_value, "excess": excess, "second_basin": ours.certificate.second_basin}
    return {**line, "converged": ours.certificate.converged}, reason_of(excess)


def _shapes(load: Any, shapes: Sequence[Any], fits: Any, resamples: int) -> tuple[Any, list[Any], list[Any]]:
    """The laws in shape: a table of constants with intervals, frames of published against ours, findings."""
    import pandas

    from lab.laws.compare import published_against_ours
    from lab.laws.fit import fit
    from lab.laws.intervals import bootstrap, draw
    from lab.laws.law import law
    from lab.laws.objective import Objective

    lines, frames, findings = [], [], []
    for name, data, delta in shapes:
        if (data, delta) not in fits:
            continue
        saved = SHAPES[name, data, delta]
        rows, runs = rows_of_fit(load, data)
        ours = fit(law(name), rows, Objective("huber", delta))
        resampled = bootstrap(ours, draw(len(rows), resamples, seed=0, groups=runs))
        intervals = resampled.intervals(LEVEL, len(np.unique(runs)))
        labels = {"law": name, "data": data, "delta": f"{delta:g}"}
        if saved:
            line, reason = _against_saved(ours, *saved)
            published = saved[1]
        else:
            line, reason = (
                {"rows": len(rows), "ours": ours.objective_value},
                "no fit of this law to these rows was saved",
            )
            published = dict.fromkeys(ours.values, np.nan)
        reasons, errors = dict.fromkeys(published, reason), resampled.standard_errors()
        frames.append(published_against_ours(published, ours.values, errors, reasons, **labels))
        line |= {"of_the_law_in_N": ours.objective_value / fits[data, delta].objective_value}
        line |= {"condition": ours.certificate.condition, "warnings": "; ".join(ours.certificate.warnings)}
        for key, value in ours.values.items():
            interval = intervals[key]
            lines.append(
                {**labels, "quantity": key, "value": value, "low": interval.low, "high": interval.high, **line}
            )
        if saved and (data, delta) in CLAIMED:
            text = f"{CLAIMED[data, delta]}, with width, depth and N, loss falls as D^-{published['zeta']:.2f}"
            claim = Claim(f"{text} (delta {delta:g})", SOURCE, published["zeta"], "exponent of D", "equals", 0.1)
            findings.append(judge(claim, ours.values["zeta"], intervals["zeta"]))
    return pandas.DataFrame(lines), frames, findings


def _settled(fit: Any, runs: Any, resamples: int) -> tuple[Any, dict[str, Interval], dict[str, float]]:
    """The fit (another where its profile met a lower objective), its intervals of a by method, and standard errors.

    Runs are resampled; where none are named the profile comes first, then resampled rows.
    """
    from lab.laws.intervals import bootstrap, draw, settled

    fit, profiles = settled(fit, ["a"], LEVEL)
    found = bootstrap(fit, draw(len(fit.rows), resamples, seed=0, groups=runs))
    units = len(np.unique(runs)) if runs is not None else len(fit.rows)
    resampled = found.intervals(LEVEL, units)["a"]
    errors = found.standard_errors() if resampled.known else {}
    profiled = {"profile": profiles["a"]}
    intervals = {"by run": resampled} | profiled if runs is not None else profiled | {"by row": resampled}
    return fit, intervals, errors


def _interval_table(fits: Any, intervals: Any) -> Any:
    import pandas

    lines = [
        {"data": name, "delta": delta, "a": fits[name, delta].derived["a"], "method": method,
         "low": interval.low, "high": interval.high, "reason": interval.reason}
        for (name, delta), methods in intervals.items()
        for method, interval in methods.items()
    ]  # fmt: skip
    return pandas.DataFrame(lines)


def _notes(objectives: Any, shape: Any) -> list[str]:
    from lab.laws.fit import SAME_OPTIMUM

    worst = objectives.loc[objectives["excess"].idxmax()]
    above = objectives[objectives["excess"] > SAME_OPTIMUM]
    moves = objectives[["alpha_moves", "beta_moves"]].abs().max(axis=1)
    notes = [
        f"{len(above)} of {len(objectives)} saved fits lie above the optimum by more than {SAME_OPTIMUM:g} of it, by "
        f"up to {worst['excess']:.2%} ({worst['data']}, delta {worst['delta']:g}: alpha moves by "
        f"{worst['alpha_moves']:+.3f}, beta by {worst['beta_moves']:+.3f}, a by {worst['a_moves']:+.3f}).",
        f"The largest move of an exponent is {moves.max():.3f} ({objectives['data'][moves.idxmax()]}, delta "
        f"{objectives['delta'][moves.idxmax()]:g}).",
        "No fit of ours lies above a saved one."
        if (objectives["excess"] >= -SAME_OPTIMUM).all()
        else "A saved fit lies below ours: the search missed an optimum.",
    ]
    if len(shape):
        for (name, data, delta), rows in shape.groupby(["law", "data", "delta"], sort=False):
            first = rows.iloc[0]
            said = f"; {first['warnings']}" if first["warnings"] else ""
            notes.append(
                f"{name} on {data}, delta {delta}: {first['of_the_law_in_N']:.3f} of the objective of L(N, D), E "
                f"{first['value']:.3g} [{first['low']:.3g}, {first['high']:.3g}] by run, condition number "
                f"{first['condition']:.1e}{said}."
            )
    return notes


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
            interval = next(iter(intervals[key].values()))
            right.plot([interval.low, interval.high], [-at, -at], "-", color=draw.OURS, linewidth=1.4)
            ours = fits[key].derived["a"]
            right.plot(
                ours, -at, "o", color=draw.OURS, markersize=5, label="" if at else "ours, by run (slim: profile)"
            )
            right.plot(a_of(saved[key]), -at, "x", color=draw.PUBLISHED, markersize=6, label="" if at else "published")
            labels.append(f"{key[0].removeprefix('parameters_').replace('_', ' ')}, {key[1]:g}")
        right.set_yticks([-at for at in range(len(labels))], labels, fontsize=7)
        right.set(xlabel="a in N* ~ C^a", title="Exponent by data and delta, 95 % intervals")
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
