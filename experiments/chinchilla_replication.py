"""Hoffmann et al. 2022, approach 3, fitted again to the 245 losses that Besiroglu et al. 2024 read off its Figure 4.

Law: L = E + A / N^alpha + B / D^beta with D = C / (6 N). The five highest losses (lowest tokens per parameter) are left
out as Besiroglu et al. did. Two estimators, with resamples drawn as theirs were (NumPy's legacy generator, seed 42,
`choice` over the rows kept), each solved to its optimum:

    huber   sum of Huber(1e-3) of log residuals, what Hoffmann et al. describe
    lad     sum of absolute log residuals. A density exp(-Huber_1e-3(r / s)) / s whose scale s is fitted as well is
            this: at its optimum s is 1e-3 times the mean |r|, so that all but residuals below 1e-6 times that lie on
            the straight part of Huber's function

They print the constants of both, and take standard errors and intervals for one from the other's resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.parametric import (
    LEVEL,
    a_of,
    choices_table,
    compute_optimal,
    loss_of,
    objective_at,
    reason_of,
    rounded_alike,
    rows_of,
    valleys,
)
from experiments.published_figure import png_of, sheet
from lab.report.findings import Claim, judge
from lab.sweep.experiment import Analysis, Experiment

HOFFMANN = "Hoffmann et al. 2022, arXiv 2203.15556"
BESIROGLU = "Besiroglu et al. 2024, arXiv 2404.10102"
NAMES = ("A", "B", "E", "alpha", "beta")
OUTLIERS = 5
AS_PUBLISHED, ALL_ROWS = "as published: less the five highest losses", "all 245 rows"
RESAMPLES = 4000
RESAMPLES_LAD = 400  # the authors' first; their printed errors are not of this estimator


def _constants(*values: float) -> dict[str, float]:
    return dict(zip(NAMES, values))


TEX = _constants(float(np.exp(6.0073404)), float(np.exp(6.0179186)), float(np.exp(0.5267228)), 0.33917084, 0.2849083)
PRINTED = _constants(406.4, 410.7, 1.69, 0.34, 0.28)
GRID_SEARCH = _constants(477.8417, 2143.8638, 1.817236, 0.347313, 0.367183)
HEADLINE = _constants(482.00572, 2085.43420, 1.81686, 0.34781, 0.36585)
HEADLINE_ERRORS = _constants(124.52232, 1293.28410, 0.02566, 0.01540, 0.02060)
HEADLINE_INTERVALS = {
    "A": (285.214, 743.626),
    "B": (1042.357, 5810.344),
    "E": (1.769, 1.871),
    "alpha": (0.317, 0.373),
    "beta": (0.331, 0.415),
}
HEADLINE_PRINTED = _constants(482.01, 2085.43, 1.82, 0.35, 0.37)
HOFFMANN_A = (0.454, 0.455)
HOFFMANN_LEVEL = 0.8  # 10th and 90th percentiles


CLAIMS = {
    "hoffmann a": Claim("Approach 3 gives N* ~ C^0.46", HOFFMANN, a_of(TEX), "exponent of C", "equals", 0.05),
    "a": Claim("The same losses give N* ~ C^0.51", BESIROGLU, a_of(HEADLINE), "exponent of C", "equals", 0.05),
    "alpha": Claim("The exponent of N is 0.35", BESIROGLU, HEADLINE["alpha"], "exponent of N", "equals", 0.05),
    "beta": Claim("The exponent of D is 0.37", BESIROGLU, HEADLINE["beta"], "exponent of D", "equals", 0.05),
    "E": Claim("The irreducible loss is 1.82", BESIROGLU, HEADLINE["E"], "nats per token", "equals", 0.08),
}  # fmt: skip


def measurements(load: Any) -> dict[str, np.ndarray]:
    """N, D, C [245], loss [245], and the rows that the authors keep, bool [245]."""
    table = load("chinchilla_svg")
    n, flops, loss = (table[name].to_numpy(float) for name in ("params", "flops", "loss"))
    kept = loss < np.sort(loss)[-OUTLIERS]
    return {"N": n, "D": flops / (6 * n), "C": flops, "loss": loss, "kept": kept}


def authors_draws(kept: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each row is drawn, [R, n], in the authors' order of random numbers."""
    rng = np.random.RandomState(42)
    indices = np.flatnonzero(kept)
    drawn_rows = [rng.choice(indices, len(indices), replace=True) for _ in range(resamples)]
    return np.stack([np.bincount(rows, minlength=len(kept)) for rows in drawn_rows]).astype(float)


def analyse(
    load: Any, resamples: int = RESAMPLES, resamples_lad: int = RESAMPLES_LAD, wanted: Sequence[str] | None = None
) -> Analysis:
    """`wanted`: choices of the analysis beside the published ones and all rows; all where None."""
    from lab.laws.fit import fit
    from lab.laws.intervals import bootstrap
    from lab.laws.law import law
    from lab.laws.objective import Objective

    form, data = law("hoffmann"), measurements(load)
    rows = rows_of({"N": data["N"], "D": data["D"]}, data["loss"], data["kept"])
    objectives = {"huber": Objective("huber", 1e-3), "lad": Objective("lad")}
    fits = {name: fit(form, rows, objective) for name, objective in objectives.items()}
    counts = authors_draws(data["kept"], resamples)
    draws = {"huber": bootstrap(fits["huber"], counts), "lad": bootstrap(fits["lad"], counts[:resamples_lad])}
    tables = {
        "published-against-ours": _comparison(fits, draws),
        "objectives": _objectives(form, rows, fits),
        "intervals": _intervals(draws, int(data["kept"].sum())),
        "choices": _choices(form, data, fits, wanted),
    }
    intervals = draws["huber"].intervals(LEVEL)
    findings = [
        judge(claim, {**fits["huber"].values, **fits["huber"].derived}[name], intervals[name])
        for name, claim in ((key.removeprefix("hoffmann "), claim) for key, claim in CLAIMS.items())
    ]
    return Analysis(findings, tables, _notes(tables, draws), lambda stem: _draw(data, fits, draws, findings, stem))


def _comparison(fits: Any, draws: Any) -> Any:
    import pandas

    from lab.laws.compare import published_against_ours

    ours = {name: {**each.values, **each.derived} for name, each in fits.items()}
    errors = {name: each.standard_errors() for name, each in draws.items()}
    parts = [
        (BESIROGLU + ", grid search", "huber", GRID_SEARCH),
        (BESIROGLU + ", Table 1", "lad", HEADLINE),
        (HOFFMANN, "huber", TEX),
    ]
    frames = []
    for source, name, constants in parts:
        published = {**constants, "a": a_of(constants)}
        reasons = dict.fromkeys(published, _estimator_reason(fits, name, constants))
        labels = {"source": source, "estimator": name}
        frames.append(published_against_ours(published, ours[name], errors[name], reasons, **labels))
    spreads = {name: _spread(errors[name], draws[name].intervals(LEVEL)) for name in draws}
    for name, (published, found) in spreads.items():
        reasons = dict.fromkeys(published, _spread_reason(errors, draws, name))
        labels = {"source": BESIROGLU + ", bootstrap", "estimator": name}
        frames.append(published_against_ours(published, found, {}, reasons, **labels))
    return pandas.concat(frames, ignore_index=True)


def _excess(fits: Any, constants: Any) -> dict[str, float]:
    """By how much of its optimum each objective is higher at given constants."""
    return {
        name: objective_at(each.law, each.rows, each.objective, constants) / each.objective_value - 1
        for name, each in fits.items()
    }


def _estimator_reason(fits: Any, name: str, constants: Any) -> str:
    excess = _excess(fits, constants)
    others = ", ".join(f"{value:.1e} by {other}" for other, value in excess.items() if other != name)
    rounding = _excess(fits, rounded_alike(fits[name].values, constants))[name]
    return f"{reason_of(excess[name], rounding)}; {others}"


def _spread_reason(errors: Any, draws: Any, name: str) -> str:
    """Which estimator's standard errors are the printed ones."""
    apart = {
        each: max(abs(found[key] / printed - 1) for key, printed in HEADLINE_ERRORS.items())
        for each, found in errors.items()
    }
    drawn = f"{len(draws[name].theta)} of the authors' draws, each solved to its optimum"
    closest = min(apart, key=apart.get)
    said = "closest of the estimators" if name == closest else f"{closest} is closer with {apart[closest]:.2%}"
    return f"{drawn}: standard errors differ by up to {apart[name]:.2%}; {said}"


def _spread(errors: Any, intervals: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Published and our standard errors and ends of the 95 % intervals, by quantity."""
    published = {f"standard error of {name}": value for name, value in HEADLINE_ERRORS.items()}
    found = {f"standard error of {name}": errors[name] for name in NAMES}
    for name, (low, high) in HEADLINE_INTERVALS.items():
        published |= {f"low end of {name}": low, f"high end of {name}": high}
        found |= {f"low end of {name}": intervals[name].low, f"high end of {name}": intervals[name].high}
    return published, found


def _objectives(form: Any, rows: Any, fits: Any) -> Any:
    """The two objectives at printed constants, over their optima: what early stopping and rounding cost."""
    import pandas

    rounded = {name: float(f"{value:.2g}") for name, value in fits["huber"].values.items()}
    constants = {
        "Hoffmann, TeX source": TEX,
        "Hoffmann, printed": PRINTED,
        "Besiroglu, grid search": GRID_SEARCH,
        "Besiroglu, Table 1 unrounded": HEADLINE,
        "Besiroglu, Table 1 printed": HEADLINE_PRINTED,
        "ours, huber": fits["huber"].values,
        "ours, huber, two digits": rounded,
        "ours, lad": fits["lad"].values,
    }
    lines = []
    for source, values in constants.items():
        line = {"constants": source}
        for name, each in fits.items():
            line[name] = objective_at(form, rows, each.objective, values)
            line[f"{name} over optimum"] = line[name] / each.objective_value
        lines.append(line)
    return pandas.DataFrame(lines)


def _intervals(draws: Any, runs: int) -> Any:
    """Hoffmann's interval of a beside ours, and the runs that would be needed for one as narrow as theirs."""
    import pandas

    lines = []
    for name, each in draws.items():
        ours = each.intervals(HOFFMANN_LEVEL)["a"]
        wider = (ours.high - ours.low) / (HOFFMANN_A[1] - HOFFMANN_A[0])
        lines.append({"estimator": name, "level": HOFFMANN_LEVEL, "published_low": HOFFMANN_A[0],
                      "published_high": HOFFMANN_A[1], "ours_low": ours.low, "ours_high": ours.high,
                      "times_wider": wider, "runs_needed": runs * wider**2})  # fmt: skip
    return pandas.DataFrame(lines)


def _choices(form: Any, data: Any, fits: Any, wanted: Sequence[str] | None) -> Any:
    from lab.laws.fit import fit
    from lab.laws.objective import Objective

    published, loss, ratio = fits["huber"], data["loss"], data["D"] / data["N"]
    kept = {
        ALL_ROWS: np.ones(len(loss), bool),
        "less the ten highest losses": loss < np.sort(loss)[-10],
        "less the ten lowest tokens per parameter": ratio > np.sort(ratio)[9],
    }
    columns = {"N": data["N"], "D": data["D"]}
    choices = {rule: (rows_of(columns, loss, rows), published.objective) for rule, rows in kept.items()}
    choices |= {f"delta {delta:g}": (published.rows, Objective("huber", delta)) for delta in (1e-4, 1e-2)}
    choices["least squares"] = (published.rows, Objective("least-squares"))
    found = {AS_PUBLISHED: published, "least absolute deviations": fits["lad"]}
    for choice, (rows, objective) in choices.items():
        if wanted is None or choice in (ALL_ROWS, *wanted):
            found[choice] = fit(form, rows, objective)
    return choices_table(found, "a")


def _notes(tables: Any, draws: Any) -> list[str]:
    both = tables["objectives"].set_index("constants")
    objectives = both["huber over optimum"]
    optima = {
        source: ", ".join(f"{both[f'{name} over optimum'][source] - 1:.1e} by {name}" for name in draws)
        for source in ("Besiroglu, grid search", "Besiroglu, Table 1 unrounded")
    }
    spread = tables["published-against-ours"]
    spread = spread[spread["source"] == BESIROGLU + ", bootstrap"].groupby("estimator", sort=False)["reason"].first()
    narrow = tables["intervals"].set_index("estimator").loc["huber"]
    choices = tables["choices"].set_index("choice")["a"]
    return [
        *(f"{source}: its constants lie above the optimum by {by}." for source, by in optima.items()),
        *(f"Printed standard errors against {name}: {reason}." for name, reason in spread.items()),
        f"At Hoffmann's printed constants the objective is {objectives['Hoffmann, printed']:.2f} times the optimum, at "
        f"those of their TeX source {objectives['Hoffmann, TeX source']:.2f} times; at Besiroglu's printed constants "
        f"{objectives['Besiroglu, Table 1 printed']:.2f} times.",
        f"An interval of a as narrow as Hoffmann's would take {narrow['runs_needed']:,.0f} runs like these.",
        f"By the outlier rule a is {choices[AS_PUBLISHED]:.3f} without the five "
        f"highest losses, {choices[ALL_ROWS]:.3f} with them.",
        *(f"{name}: {each.converged:.2%} of the resamples converged." for name, each in draws.items()),
    ]


def _draw(data: Any, fits: Any, draws: Any, findings: Any, stem: Any) -> Any:
    from lab.report import figure as draw

    def per_parameter(values):
        n, d = compute_optimal(values, grid)
        return d / n

    fitted = f"{int(data['kept'].sum())} of {len(data['loss'])} losses"
    subtitle = f"{fitted} read off Figure 4 of Hoffmann et al. 2022; D = C / (6 N)"
    with sheet(stem, "Chinchilla, fitted again", subtitle, findings) as (left, right):
        budgets = (1e19, 6e19, 3e20, 1e21)
        valleys(left, data["N"], data["C"], data["loss"], budgets, loss_of(fits["huber"].values), loss_of(TEX))
        left.set_title("Loss along budgets C (FLOPs)")
        draw.legend_above(left)
        grid = np.geomspace(1e18, 1e26, 80)
        resampled = {name: values[:, None] for name, values in draws["huber"].quantities.items()}
        ends = np.quantile(per_parameter(resampled), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
        draw.band(right, grid, *ends, label=f"{LEVEL:.0%} of the resamples")
        draw.curve(right, grid, per_parameter(fits["huber"].values), label="ours: Huber")
        draw.curve(right, grid, per_parameter(fits["lad"].values), "#009E73", "ours: absolute deviations", "-.", 1.2)
        draw.curve(right, grid, per_parameter(TEX), draw.PUBLISHED, "published: Hoffmann et al., approach 3", ":")
        draw.points(right, [5.76e23], [20], colour=draw.INK, label="Chinchilla as trained", marker="*")
        right.set(xscale="log", yscale="log", xlabel="Compute C, FLOPs", ylabel="Tokens per parameter at the optimum")
        right.set_title("Compute-optimal tokens per parameter")
        draw.legend_above(right)
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="chinchilla/replication",
        paper=f"{BESIROGLU}, Chinchilla Scaling: A replication attempt; {HOFFMANN}",
        summary="L(N, D) of Chinchilla from the points of its Figure 4: two published estimates, intervals, outliers.",
        measurements=analyse,
    )
]
