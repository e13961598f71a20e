"""Muennighoff et al. 2023: how much repeated tokens and excess parameters are worth, and how well that is known.

Law: L = E + A / N'^alpha + B / D'^alpha with effective tokens D' = U (1 + R_D* (1 - exp(-(D / U - 1) / R_D*))) of U
unique ones, and effective parameters likewise, of which those beyond the compute-optimal size for U tokens are repeats.
The authors take E, A, B and alpha from other runs and fit R_D* and R_N* alone to 182 runs on C4, a sum of Huber(1e-3)
of log residuals from 16 starts. Here: the objective at their constants first; the same two constants from many starts
and from theirs; their profiles; then what changes when the base is fitted too, when all 296 runs are taken, or when the
objective or the rows differ. Runs of one (N, D, U) are seeds of one cell and are resampled together: verdicts are by
those intervals, profiles beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.parametric import LEVEL, choices_table, objective_at, reason_of, rows_of
from experiments.published_figure import png_of, sheet
from lab.laws.bootstrap import Interval, percentile_interval
from lab.report.findings import Claim, judge
from lab.sweep.experiment import Analysis, Experiment

SOURCE = "Muennighoff et al. 2023, arXiv 2305.16264"
BASE = {
    "E": float(np.exp(0.6254804)),
    "A": float(np.exp(6.255414)),
    "B": float(np.exp(7.3049974)),
    "alpha": 0.3526596,
}
REPEATS = {"R_D*": 15.387756, "R_N*": 5.309743}
OBJECTIVE = 0.0158259366
EPOCHS = 4
UNBOUNDED = 1e5  # repeats; so far beyond those in the data that the law no longer changes
RESAMPLES = 400
FREE = "E, A, B, alpha fitted too"
SHOWN = ((2.81e9, 55e9), (4.2465e9, 84e9), (8.67e9, 178e9))  # N and D of the runs that differ in U alone


def worth(limit: Any, epochs: float = EPOCHS) -> Any:
    """Effective over seen tokens after some epochs, D' / D, of a constant R_D*; infinite: a repeat is a new token."""
    limit = np.minimum(limit, 1e9)
    return (1 - limit * np.expm1(-(epochs - 1) / limit)) / epochs


CLAIMS = {  # decided by intervals that reach a third of the constant to either side
    "R_D*": Claim(
        "Repeats are worth less by 1/e after 15.4 of them",
        SOURCE, REPEATS["R_D*"], "repeats", "equals", REPEATS["R_D*"] / 3,
    ),
    "R_N*": Claim(
        "Excess parameters likewise after 5.3", SOURCE, REPEATS["R_N*"], "repeats", "equals", REPEATS["R_N*"] / 3
    ),
    "worth": Claim(
        f"By that R_D* a token seen in {EPOCHS} epochs is worth {worth(REPEATS['R_D*']):.2f} of a new one",
        SOURCE, float(worth(REPEATS["R_D*"])), "effective over seen tokens", "equals", 0.05,
    ),
}  # fmt: skip


def analyse(load: Any, resamples: int = RESAMPLES, wanted: Sequence[str] | None = None) -> Analysis:
    """`wanted`: choices of the analysis beside the published one; all where None."""
    from lab.laws.fit import fit
    from lab.laws.intervals import bootstrap, draw, settled
    from lab.laws.law import law

    form, table = law("data-constrained"), load("data_constrained_c4")
    rows, cells = _rows(table), _cells(table)
    checked = objective_at(form, rows, form.objective, BASE | REPEATS)
    ours, profiles = settled(fit(form, rows, fixed=BASE), list(REPEATS), LEVEL)
    near = _descended(ours, BASE | REPEATS)
    profiles["worth"] = Interval(*(float(worth(end)) for end in (profiles["R_D*"].low, profiles["R_D*"].high)), LEVEL)
    draws = bootstrap(ours, draw(len(rows), resamples, seed=0, groups=cells))
    resampled = intervals_of(draws.quantities["R_D*"], draws.quantities["R_N*"], int(cells.max()) + 1)
    others = _choices(load, ours, wanted)
    choices = choices_table(others, "R_D*")
    tables = {
        "published-against-ours": _comparison(ours, near, draws, checked),
        "optima": _optima(ours, near),
        "intervals": _intervals({"cells resampled": resampled, "profile": profiles}),
        "choices": choices,
    }
    findings = verdicts(ours.values, resampled, profiles)
    notes = _notes(ours, near, checked, choices)
    return Analysis(findings, tables, notes, lambda stem: _draw(table, ours, others.get(FREE), draws, findings, stem))


def intervals_of(repeats: np.ndarray, excess: np.ndarray, cells: int) -> dict[str, Interval]:
    """Intervals of the claimed quantities from resampled R_D* and R_N* [R] of so many cells; open where unlimited."""
    repeats, excess = (np.where(values > UNBOUNDED, np.inf, values) for values in (repeats, excess))
    samples = {"R_D*": repeats, "R_N*": excess, "worth": worth(repeats)}
    return {name: percentile_interval(values, LEVEL, cells, len(REPEATS)) for name, values in samples.items()}


def verdicts(
    values: Mapping[str, float], resampled: Mapping[str, Interval], profiles: Mapping[str, Interval]
) -> list[Any]:
    """By the intervals from resampled cells; the profiles' are noted."""
    ours, findings = {**values, "worth": worth(values["R_D*"])}, []
    for name, claim in CLAIMS.items():
        low, high = profiles[name].low, profiles[name].high
        note = f"{name}: the profile's {LEVEL:.0%} interval is [{low:.3g}, {high:.3g}]"
        findings.append(judge(claim, ours[name], resampled[name], notes=(note,)))
    return findings


def _rows(table: Any) -> Any:
    return rows_of({"N": table["params"], "D": table["tokens"], "U": table["unique_tokens"]}, table["val_loss"])


def _cells(table: Any) -> np.ndarray:
    return table.groupby(["params", "tokens", "unique_tokens"]).ngroup().to_numpy()


def _descended(fit: Any, values: dict[str, float]) -> dict[str, float]:
    """R_D*, R_N* and the objective where a search from given constants ends, the base being held."""
    from lab.laws import solve
    from lab.laws.fit import box, problem_of

    form, start = fit.law, np.array(fit.law.search(values))
    held = np.array([name in fit.fixed for name in form.names])
    low, high = (np.where(held, start, end) for end in box(form))
    problem = problem_of(form, fit.objective.space)
    data = solve.data_of(problem, fit.rows, fit.scale, 1.0, False)
    found = solve.minimise(problem, data, start[None], low, high, fit.rows.weights)
    ends = dict(zip(form.names, np.exp(found.theta[0])))
    return {**{name: float(ends[name]) for name in REPEATS}, "objective": float(found.objective[0] * fit.scale**2)}


def _choices(load: Any, ours: Any, wanted: Sequence[str] | None) -> dict[str, Any]:
    """Fits by the choice in which they differ from the published one."""
    from lab.laws.fit import fit
    from lab.laws.objective import Objective

    rows, every = ours.rows, _rows(load("data_constrained_c4_all_runs"))
    n, d, u = (rows.columns[name] for name in ("N", "D", "U"))
    kept = {"repeated runs alone, base fixed": d > u, "at least 1e9 parameters, base fixed": n >= 1e9}
    choices = {FREE: (rows, None, None)}
    choices |= {
        name: (dataclasses.replace(rows, weights=which.astype(float)), None, BASE) for name, which in kept.items()
    }
    for objective in (Objective("huber", 1e-2), Objective("lad"), Objective("least-squares")):
        choices[f"{objective}, base fixed"] = (rows, objective, BASE)
    choices["all 296 runs, base fixed"] = (every, None, BASE)
    choices["all 296 runs, base fitted too"] = (every, None, None)
    found = {"as published: E, A, B, alpha fixed": ours}
    for name, (data, objective, fixed) in choices.items():
        if wanted is None or name in wanted:
            found[name] = fit(ours.law, data, objective, [] if fixed else [BASE | REPEATS], fixed)
    return found


def _comparison(ours: Any, near: dict[str, float], draws: Any, checked: float) -> Any:
    from lab.laws.compare import published_against_ours

    published = {**REPEATS, "objective at the published constants": OBJECTIVE, "objective": OBJECTIVE}
    values = {**ours.values, "objective at the published constants": checked, "objective": ours.objective_value}
    reason = reason_of(checked / ours.objective_value - 1)
    reason += f"; a search from theirs ends {near['objective'] / ours.objective_value - 1:.1e} above ours"
    reasons, errors = dict.fromkeys(published, reason), draws.standard_errors()
    reasons["objective at the published constants"] = (
        f"the same formula and rows: {abs(checked / OBJECTIVE - 1):.0e} apart"
    )
    for name in REPEATS:
        share = float((draws.quantities[name] > UNBOUNDED).mean())
        if share > 0:
            errors[name] = np.nan
            reasons[name] += f"; no standard error, as {share:.0%} of the resamples set it no limit"
    return published_against_ours(published, values, errors, reasons, data="data_constrained_c4")


def _optima(ours: Any, near: dict[str, float]) -> Any:
    """Where the searches ended, best first; the last line began at the published constants."""
    import pandas

    lines = []
    for theta in (ours.theta, *ours.others):
        values = dict(zip(ours.law.names, (float(np.exp(at)) for at in theta)))
        objective = objective_at(ours.law, ours.rows, ours.objective, values)
        lines.append({"start": "grid", **{name: values[name] for name in REPEATS}, "objective": objective})
    table = pandas.DataFrame([*lines, {"start": "published", **near}])
    return table.assign(excess=table["objective"] / ours.objective_value - 1)


def _intervals(methods: dict[str, dict[str, Interval]]) -> Any:
    import pandas

    lines = [{"quantity": name, "method": method, "level": LEVEL, "low": interval.low, "high": interval.high}
             for method, found in methods.items() for name, interval in found.items()]  # fmt: skip
    return pandas.DataFrame(lines)


def _notes(ours: Any, near: dict[str, float], checked: float, choices: Any) -> list[str]:
    low, high = choices["R_D*"].min(), choices["R_D*"].max()
    unbounded = int(choices["warnings"].str.contains("end of its bounds").sum())
    columns, target = ours.rows.columns, ours.rows.target
    new = (columns["D"] <= columns["U"]) & (columns["N"] >= 1e9)
    low_by = 1 - np.median(ours.predict(columns)[new] / target[new])
    notes = [
        f"At the published constants the objective is {checked:.10f} (published {OBJECTIVE}).",
        f"A search that begins there ends at R_D* {near['R_D*']:.2f}, R_N* {near['R_N*']:.2f}; the best "
        f"of {ours.certificate.starts} starts at {ours.values['R_D*']:.2f}, {ours.values['R_N*']:.2f}, "
        f"{1 - ours.objective_value / near['objective']:.2%} lower.",
        f"At one epoch, where nothing is repeated, the fixed base predicts {low_by:.1%} less loss than was measured "
        f"(median of {new.sum()} runs of 1e9 parameters or more).",
        f"Over the {len(choices)} choices of the table R_D* runs from {low:.3g} to {high:.3g}; in {unbounded} of them "
        "a constant ends at its bounds.",
    ]
    for free in choices[choices["choice"] == FREE].itertuples():
        notes.append(
            f"Fitting the base as well lowers the objective by {1 - free.objective / ours.objective_value:.0%} (alpha "
            f"{free.alpha:.3f}, E {free.E:.3f}): the constants that were fixed come from losses of another source."
        )
    return notes


def _draw(table: Any, ours: Any, free: Any, draws: Any, findings: Any, stem: Any) -> Any:
    from lab.laws.fit import predict
    from lab.laws.intervals import FURTHER, REACHES, profile_curves
    from lab.report import figure as draw

    with sheet(stem, "The worth of repeated tokens", "182 runs on C4", findings) as (left, right):
        curves = profile_curves(ours, list(REPEATS), REACHES + FURTHER[:3])
        for name, colour in zip(REPEATS, (draw.OURS, "#009E73")):
            value, root = curves[name].T
            excess = 100 * 0.5 * root**2 * ours.dispersion / ours.scaled_value
            draw.curve(left, np.exp(value), excess, colour, f"{name}: best {ours.values[name]:.3g}")
            dashes = "--" if name == "R_D*" else ":"
            label = f"{name}: published {REPEATS[name]:.3g}"
            left.axvline(REPEATS[name], color=draw.PUBLISHED, linestyle=dashes, linewidth=1, label=label)
        left.set(xscale="log", xlim=(1, 1e3), ylim=(0, 6), xlabel="Constant, repeats")
        left.set(ylabel="Objective above its optimum, %", title="Profiles")
        _legend(left)
        for (n, d), colour in zip(SHOWN, draw.sequence_of_colours(len(SHOWN))):
            mine = table[(table["params"] == n) & (table["tokens"] == d)]
            epochs = np.geomspace(1, (d / mine["unique_tokens"]).max() * 1.1, 80)
            columns = {"N": np.full(80, n), "D": np.full(80, d), "U": d / epochs}
            ends = np.quantile(predict(ours.law, draws.theta, columns), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
            published = predict(ours.law, np.array(ours.law.search(BASE | REPEATS)), columns)
            draw.band(right, epochs, *ends, colour)
            draw.curve(
                right, epochs, ours.predict(columns), colour, f"{draw.compact(n)} parameters, {draw.compact(d)} tokens"
            )
            first = n == SHOWN[0][0]
            draw.curve(right, epochs, published, draw.PUBLISHED, "published" if first else None, ":", 1.1)
            if free:
                label = "base fitted too" if first else None
                draw.curve(right, epochs, free.predict(columns), draw.INK, label, "-.", 0.9)
            right.plot(d / mine["unique_tokens"], mine["val_loss"], "o", color=colour, markersize=4)
        right.set(xscale="log", xlabel="Epochs D / U", ylabel="Loss, nats per token", title="Loss against epochs")
        _legend(right)
    return png_of(stem)


def _legend(axes: Any) -> None:
    """In a third more height, above the data of a linear axis."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + (high - low) / 3)
    axes.legend(loc="upper left", ncols=2, fontsize=7, frameon=True, framealpha=1, edgecolor="white")


EXPERIMENTS = [
    Experiment(
        id="data-constrained/constants",
        paper=f"{SOURCE}, Scaling Data-Constrained Language Models",
        summary="R_D* and R_N*: the published optimum against the best one, profiles, what fixing the base costs.",
        measurements=analyse,
    )
]
