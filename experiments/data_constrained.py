"""Muennighoff et al. 2023: how much repeated tokens and excess parameters are worth, and how well that is known.

Law: L = E + A / N'^alpha + B / D'^alpha with effective tokens D' = U (1 + R_D* (1 - exp(-(D / U - 1) / R_D*))) of U
unique ones, and effective parameters likewise, of which those beyond the compute-optimal size for U tokens are repeats.
The authors take E, A, B and alpha from other runs and fit R_D* and R_N* alone to 182 runs on C4, a sum of Huber(1e-3)
of log residuals from 16 starts. Here: the objective at their constants first; the same two constants from many starts
and from theirs; their profiles; then what changes when the base is fitted too, when all 296 runs are taken, or when the
objective or the rows differ. Runs of one (N, D, U) are seeds of one cell and are resampled together.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from experiments.parametric import LEVEL, choices_table, objective_at, rows_of
from experiments.published_figure import png_of, sheet
from lab.laws.bootstrap import Interval
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
RESAMPLES = 400
FREE = "E, A, B, alpha fitted too"
SHOWN = ((2.81e9, 55e9), (4.2465e9, 84e9), (8.67e9, 178e9))  # N and D of the runs that differ in U alone


def worth(limit: Any, epochs: float = EPOCHS) -> Any:
    """Effective over seen tokens after some epochs: D' / D."""
    return (1 - limit * np.expm1(-(epochs - 1) / limit)) / epochs


CLAIMS = {
    "R_D*": Claim(
        "Repeats are worth less by 1/e after 15.4 of them", SOURCE, REPEATS["R_D*"], "repeats", "equals", 5.0
    ),
    "R_N*": Claim("Excess parameters likewise after 5.3", SOURCE, REPEATS["R_N*"], "repeats", "equals", 2.0),
}
CLAIM_WORTH = Claim(
    f"After {EPOCHS} epochs a token seen is worth 0.93 of a new one",
    SOURCE,
    round(worth(REPEATS["R_D*"]), 4),
    "effective over seen tokens",
    "equals",
    0.05,
)


def analyse(load: Any, resamples: int = RESAMPLES) -> Analysis:
    from lab.laws.fit import fit
    from lab.laws.intervals import bootstrap, draw, profile
    from lab.laws.law import law

    form, table = law("data-constrained"), load("data_constrained_c4")
    rows = _rows(table)
    checked = objective_at(form, rows, form.objective, BASE | REPEATS)
    ours = fit(form, rows, fixed=BASE)
    near = fit(_starting_at(form, REPEATS), rows, fixed=BASE)
    profiles = profile(ours, list(REPEATS), LEVEL)
    draws = bootstrap(ours, draw(len(rows), resamples, seed=0, groups=_cells(table)))
    others = _choices(load, ours)
    choices = choices_table(others, "R_D*")
    tables = {
        "published-against-ours": _comparison(ours, near, draws, checked),
        "optima": _optima(ours, near),
        "intervals": _intervals(profiles, draws),
        "choices": choices,
    }
    findings = [judge(claim, ours.values[name], profiles[name]) for name, claim in CLAIMS.items()]
    ends = (float(worth(min(end, 1e9))) for end in (profiles["R_D*"].low, profiles["R_D*"].high))
    findings.append(judge(CLAIM_WORTH, worth(ours.values["R_D*"]), Interval(*ends, LEVEL)))
    notes = _notes(ours, near, checked, choices)
    return Analysis(findings, tables, notes, lambda stem: _draw(table, ours, others[FREE], draws, findings, stem))


def _rows(table: Any, kept: Any = None) -> Any:
    columns = {"N": table["params"], "D": table["tokens"], "U": table["unique_tokens"]}
    return rows_of(columns, table["val_loss"], kept)


def _cells(table: Any) -> np.ndarray:
    return table.groupby(["params", "tokens", "unique_tokens"]).ngroup().to_numpy()


def _starting_at(form: Any, values: dict[str, float]) -> Any:
    """The law whose only start of these parameters is given: where a search from the published constants ends."""
    parameters = [
        dataclasses.replace(each, starts=(values[each.name],)) if each.name in values else each
        for each in form.parameters
    ]
    return dataclasses.replace(form, parameters=tuple(parameters))


def _choices(load: Any, ours: Any) -> dict[str, Any]:
    """Fits by the choice in which they differ from the published one."""
    from lab.laws.fit import fit
    from lab.laws.objective import Objective

    form, table, every = ours.law, load("data_constrained_c4"), load("data_constrained_c4_all_runs")
    repeated = (table["tokens"] > table["unique_tokens"]).to_numpy()
    large = (table["params"] >= 1e9).to_numpy()
    found = {"as published: E, A, B, alpha fixed": ours}
    found[FREE] = fit(form, ours.rows, starts=[BASE | REPEATS])
    found["repeated runs alone, base fixed"] = fit(form, _rows(table, repeated), fixed=BASE)
    found["at least 1e9 parameters, base fixed"] = fit(form, _rows(table, large), fixed=BASE)
    for objective in (Objective("huber", 1e-2), Objective("lad"), Objective("least-squares")):
        found[f"{objective}, base fixed"] = fit(form, ours.rows, objective, fixed=BASE)
    found["all 296 runs, base fixed"] = fit(form, _rows(every), fixed=BASE)
    found["all 296 runs, base fitted too"] = fit(form, _rows(every), starts=[BASE | REPEATS])
    return found


def _comparison(ours: Any, near: Any, draws: Any, checked: float) -> Any:
    from lab.laws.compare import published_against_ours

    deeper = 1 - ours.objective_value / near.objective_value
    reason = "the same optimum"
    if deeper > 1e-6:
        reason = f"theirs is a local optimum; ours is {deeper:.2%} lower in a valley that is nearly flat"
    published = {**REPEATS, "objective at the published constants": OBJECTIVE, "objective": OBJECTIVE}
    values = {**ours.values, "objective at the published constants": checked, "objective": ours.objective_value}
    reasons = dict.fromkeys(published, reason) | {"objective at the published constants": "the same formula and rows"}
    return published_against_ours(published, values, draws.standard_errors(), reasons, data="data_constrained_c4")


def _optima(ours: Any, near: Any) -> Any:
    """Where the searches ended, best first; the last line began at the published constants."""
    import pandas

    lines = []
    for start, theta in [("grid", ours.theta), *(("grid", each) for each in ours.others), ("published", near.theta)]:
        values = dict(zip(ours.law.names, (float(np.exp(at)) for at in theta)))
        objective = objective_at(ours.law, ours.rows, ours.objective, values)
        line = {"start": start, **{name: values[name] for name in REPEATS}, "objective": objective}
        lines.append({**line, "excess": objective / ours.objective_value - 1})
    return pandas.DataFrame(lines).drop_duplicates(subset=["start", "objective"], ignore_index=True)


def _intervals(profiles: Any, draws: Any) -> Any:
    import pandas

    both = {"profile": profiles, "cells resampled": draws.intervals(LEVEL)}
    lines = [{"constant": name, "method": method, "low": found[name].low, "high": found[name].high}
             for method, found in both.items() for name in REPEATS]  # fmt: skip
    return pandas.DataFrame(lines)


def _notes(ours: Any, near: Any, checked: float, choices: Any) -> list[str]:
    low, high = choices["R_D*"].min(), choices["R_D*"].max()
    free = choices.set_index("choice").loc[FREE]
    columns, target = ours.rows.columns, ours.rows.target
    new = (columns["D"] <= columns["U"]) & (columns["N"] >= 1e9)
    low_by = 1 - np.median(ours.predict(columns)[new] / target[new])
    return [
        f"At the published constants the objective is {checked:.10f} (published {OBJECTIVE}).",
        f"A search that begins there ends at R_D* {near.values['R_D*']:.2f}, R_N* {near.values['R_N*']:.2f}; the best "
        f"of {ours.certificate.starts} starts at {ours.values['R_D*']:.2f}, {ours.values['R_N*']:.2f}, "
        f"{1 - ours.objective_value / near.objective_value:.2%} lower.",
        f"Fitting the base as well lowers the objective by {1 - free['objective'] / ours.objective_value:.0%} "
        f"(R_D* {free['R_D*']:.1f}): the constants that were fixed come from losses of another source.",
        f"At one epoch, where nothing is repeated, the fixed base predicts {low_by:.1%} less loss than was measured "
        f"(median of {new.sum()} runs of 1e9 parameters or more).",
        f"Over the choices of the table R_D* runs from {low:.3g} to {high:.3g}.",
    ]


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
            label = "published" if name == "R_D*" else None
            left.axvline(
                REPEATS[name], color=draw.PUBLISHED, linestyle="--" if label else ":", linewidth=1, label=label
            )
        left.set(xscale="log", xlim=(1, 1e3), ylim=(0, 6), xlabel="Constant, repeats")
        left.set(ylabel="Objective above its optimum, %", title="Profiles")
        left.legend(loc="upper right")
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
            draw.curve(right, epochs, free.predict(columns), draw.INK, "base fitted too" if first else None, "-.", 0.9)
            right.plot(d / mine["unique_tokens"], mine["val_loss"], "o", color=colour, markersize=4)
        right.set(xscale="log", xlabel="Epochs D / U", ylabel="Loss, nats per token", title="Loss against epochs")
        right.legend(loc="upper left")
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="data-constrained/constants",
        paper=f"{SOURCE}, Scaling Data-Constrained Language Models",
        summary="R_D* and R_N*: the published optimum against the best one, profiles, what fixing the base costs.",
        measurements=analyse,
    )
]
