"""Luo et al. 2025, the multi-power law fitted to three loss curves and tried on six others, at 25M and 100M parameters.

Training curves: cosine_24000, constant_24000, wsdcon_9; the six test curves have other schedules or three times the
length. Objective: sum of Huber(1e-3) of log residuals over every logged point. Three sets of constants are compared:

    published       the authors' repository, full precision
    early stopped   their procedure run again: L-BFGS on a law without history from 135 starts, then AdamW for at most
                    200 updates from C = 1, beta = gamma = 0.5 (`early_stopped`). B begins in the hundreds and moves by
                    0.05 and a weight decay of 0.0005 an update: it ends a few hundredths below its start
    full            the minimum, exact gradients, many starts

Intervals: loss curves are autocorrelated and branches of one run share their beginnings, so that rows are no sample.
The nine curves are drawn whole, with replacement, 128 times, and the law is fitted to every 16th point of those drawn.
For seven constants nine curves leave so little freedom that the ends of an interval are the extremes of the resamples.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from experiments.loss_curves import (
    METRICS,
    PAPER,
    SIZES,
    TEST,
    TRAIN,
    curves,
    held_out,
    labels_of,
    plain_ticks,
    rows_of,
)
from experiments.parametric import objective_at
from lab.report.findings import Claim, judge
from lab.sweep.experiment import Analysis, Experiment

LOG = logging.getLogger(__name__)
EVERY, RESAMPLES, SEED = 16, 128, 0
NAMES = ("L0", "A", "alpha", "B", "C", "beta", "gamma")
LOGGED = {"25M": 0.00027863, "100M": 0.00027506}
PRINTED = {
    "25M": dict(zip(METRICS, (0.9988, 0.00376, 0.00465, 0.00110, 0.00409))),
    "100M": dict(zip(METRICS, (0.9983, 0.00435, 0.00592, 0.00142, 0.00583))),
}
UPDATES, PATIENCE, LEAST_GRADIENT, WEIGHT_DECAY = 200, 20, 1e-5, 0.01  # of the authors' AdamW
RATES = {"L0": 5e-2, "A": 5e-2, "B": 5e-2, "C": 5e-2, "alpha": 5e-3, "beta": 5e-3, "gamma": 5e-3}


def published(size: str) -> dict[str, float]:
    """The authors' constants at full precision."""
    from lab.laws.law import law

    return dict(next(p.values for p in law("multi-power").published if f" {size} " in p.source))


def without_history(rows: Any, lr: np.ndarray) -> dict[str, float]:
    """The authors' start: L0 + A S1^-alpha - B (3e-4 - lr), the best of 135 searches by L-BFGS."""
    import itertools

    from scipy.optimize import minimize
    from scipy.special import huber
    from scipy.stats import linregress

    area, loss = rows.columns["S1"], rows.target

    def objective(theta):
        L0, A, alpha, B = theta
        with np.errstate(invalid="ignore", divide="ignore"):
            off = np.log(loss) - np.log(L0 + A * area**-alpha - B * (3e-4 - lr))
        return huber(1e-3, off).sum()

    least = loss.min()
    line = linregress(np.log(area), np.log(loss - least + 0.01))
    A, alpha = np.exp(line.intercept), -line.slope
    spans = ((least, 0.2, 5), (A, 0.1, 3), (alpha, 0.1, 3), (550.0, 450.0, 3))
    starts = itertools.product(*(np.linspace(at - by, at + by, n) for at, by, n in spans))
    options = {"maxiter": 100_000, "ftol": 1e-9, "gtol": 1e-6, "eps": 1e-8}
    bounds = [(0, np.inf)] * 4
    found = [minimize(objective, start, method="L-BFGS-B", bounds=bounds, options=options) for start in starts]
    best = min((f for f in found if np.isfinite(f.fun)), key=lambda f: f.fun)
    return dict(zip(("L0", "A", "alpha", "B"), map(float, best.x)))


def early_stopped(rows: Any, lr: np.ndarray) -> tuple[dict[str, float], float, dict[str, float]]:
    """The authors' procedure: constants one update after the least objective seen, that objective, and the start."""
    import jax
    import jax.numpy as jnp

    from lab.laws.law import law

    form = law("multi-power")
    start = without_history(rows, lr) | {"C": 1.0, "beta": 0.5, "gamma": 0.5}
    columns = {c.name: rows.columns[c.name] for c in form.columns}

    def objective(theta):
        size = jnp.abs(jnp.log(form.predict(dict(zip(NAMES, theta)), columns)) - np.log(rows.target))
        return jnp.sum(jnp.where(size <= 1e-3, 0.5 * size**2, 1e-3 * size - 0.5e-6))

    rates = np.array([RATES[name] for name in NAMES])
    theta, first, second = np.array([start[name] for name in NAMES]), np.zeros(7), np.zeros(7)
    best, kept, idle = np.inf, theta, 0
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        slope = jax.jit(jax.value_and_grad(objective))
        for update in range(1, UPDATES + 1):
            value, gradient = (np.asarray(x) for x in slope(theta))
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            step = first / (1 - 0.9**update) / (np.sqrt(second / (1 - 0.999**update)) + 1e-8)
            theta = theta * (1 - rates * WEIGHT_DECAY) - rates * step
            idle = 0 if value < best else idle + 1
            if np.linalg.norm(gradient) < LEAST_GRADIENT or (update > PATIENCE + 1 and idle >= PATIENCE):
                break
            if value < best:
                best, kept = float(value), theta
    return dict(zip(NAMES, map(float, kept))), best, start


def analyse(load: Any, sizes: Any = SIZES, every: int = EVERY, resamples: int = RESAMPLES) -> Analysis:
    import pandas

    studies = {size: _study(size, load(f"mpl_curves_{size}"), every, resamples) for size in sizes}
    tables = {
        name: pandas.concat([study[name] for study in studies.values()], ignore_index=True)
        for name in ("published-against-ours", "objective-and-test", "constants", "test-curves")
    }
    findings = [finding for study in studies.values() for finding in study["findings"]]
    notes = [note for study in studies.values() for note in study["notes"]]
    notes.append("curves that branch from one run share their beginning: nine curves are fewer than nine experiments")
    return Analysis(findings, tables, notes, lambda stem: _draw(stem, studies, tables["test-curves"], findings))


def _study(size: str, table: Any, every: int, resamples: int) -> dict[str, Any]:
    """Everything about one model size."""
    import pandas

    from lab.laws.fit import fit
    from lab.laws.intervals import bootstrap, draw
    from lab.laws.law import law

    form, data, everything = law("multi-power"), curves(table), (*TRAIN, *TEST)
    rows = rows_of(data, TRAIN)
    LOG.info("%s: the authors' search, then the minimum, on the training curves (%d points)", size, len(rows))
    stopped, logged, start = early_stopped(rows, np.concatenate([data[name]["lr"] for name in TRAIN]))
    full = fit(form, rows, starts=[published(size)])
    LOG.info("%s: nine curves and %d resamples of them; minutes", size, resamples)
    nine = fit(form, rows_of(data, everything, every), starts=[full.values])
    spread = bootstrap(nine, draw(len(nine.rows), resamples, SEED, labels_of(data, everything, every)))
    intervals = spread.intervals(0.95, len(everything))
    sets = {"published": published(size), "early stopped": stopped, "full": full.values}
    tests = pandas.concat([held_out(form, v, data).assign(size=size, constants=of) for of, v in sets.items()])
    means = tests.groupby("constants")[list(METRICS)].mean().T.to_dict()
    objectives = {of: objective_at(form, rows, form.objective, values) for of, values in sets.items()}
    constants = [
        {"size": size, "constant": name, **{of: values[name] for of, values in sets.items()},
         "nine curves": nine.values[name], "nine curves_low": intervals[name].low,
         "nine curves_high": intervals[name].high} for name in NAMES
    ]  # fmt: skip
    wide = [name for name in NAMES if _wide(intervals[name])]
    ends = [p.name for p in form.parameters if _at_bound(p, intervals[p.name])]
    notes = [f"{size}, {of}: {w}" for of, f in (("full", full), ("nine curves", nine)) for w in f.certificate.warnings]
    notes += [
        f"{size}: full minimisation lowers the training objective from {objectives['published']:.3g} to "
        f"{full.objective_value:.3g}; on the six test curves mean R2 goes from {means['published']['R2']:.4f} to "
        f"{means['full']['R2']:.4f} and the mean relative error from {means['published'][METRICS[3]]:.5f} to "
        f"{means['full'][METRICS[3]]:.5f}",
        f"{size}: nine curves leave a factor of more than two in {', '.join(wide) or 'none of the constants'}; the "
        f"intervals of {', '.join(ends) or 'none'} end at a bound of the search; {spread.converged:.0%} of {resamples} "
        "resamples converged",
    ]
    return {
        "published-against-ours": pandas.concat(
            [
                _compared(size, full, stopped, logged, start, objectives, means),
                _against_nine(size, nine.values, spread.quantities, intervals),
            ]
        ),
        "objective-and-test": pandas.DataFrame(
            [{"size": size, "constants": of, "objective": objectives[of], **means[of]} for of in sets]
        ),
        "constants": pandas.DataFrame(constants),
        "test-curves": tests,
        "findings": _findings(size, nine, means, tests[tests["constants"] == "full"]["R2"].to_numpy(), intervals),
        "notes": notes,
        "data": data,
        "sets": sets,
    }


def _wide(interval: Any) -> bool:
    """Whether a constant above 0 is open by a factor of more than two, or has no interval."""
    return not interval.known or interval.high > 2 * interval.low


def _at_bound(parameter: Any, interval: Any) -> bool:
    """Whether an end of the interval is where the search for this constant ends."""
    return interval.known and bool(interval.low <= parameter.low * 1.001 or interval.high >= parameter.high * 0.999)


def _compared(size, full, stopped, logged, start, objectives, means) -> Any:
    """Published values beside the full minimum's, and beside those of the authors' procedure run again."""
    import pandas

    from lab.laws.compare import published_against_ours

    goal = {**published(size), "objective": LOGGED[size], **PRINTED[size]}
    ours = {**full.values, "objective": full.objective_value, **means["full"]}
    again = {**stopped, "objective": logged, **means["early stopped"]}
    lower = f"the minimum's training objective is {objectives['published'] / full.objective_value:.2f} times lower"
    reasons = {
        name: f"at most {UPDATES} updates of AdamW moved it from {start[name]:.4g} to {stopped[name]:.4g}; {lower}"
        for name in NAMES
    }
    reasons["objective"] = f"{lower} than that of the constants they saved, {objectives['published']:.8f}"
    reasons |= {
        metric: f"{lower}; of their constants we find {means['published'][metric]:.5f}, and the minimum is "
        f"{'better' if (ours[metric] > goal[metric]) == (metric == 'R2') else 'worse'} on the test curves"
        for metric in METRICS
    }
    why = {
        name: f"their procedure run again, on grouped drops: {again[name] / value - 1:+.1e} of the value"
        for name, value in goal.items()
    }
    return pandas.concat(
        [
            published_against_ours(goal, ours, {}, reasons, size=size, constants="full"),
            published_against_ours(goal, again, {}, why, size=size, constants="early stopped"),
        ]
    )


def _against_nine(size: str, values: Any, spread: Any, intervals: Any) -> Any:
    """Published constants beside those of all nine curves, which alone have intervals.

    A standard error is half of the central 68 % of the resamples, as some run to a bound; where an interval is open by
    more than a factor of two none is given.
    """
    from lab.laws.compare import published_against_ours

    goal = published(size)
    narrow = [name for name in NAMES if not _wide(intervals[name])]
    errors = {name: float(np.diff(np.quantile(spread[name], (0.16, 0.84)))[0] / 2) for name in narrow}
    reasons = {
        name: f"fitted to nine curves, not three; their interval [{i.low:.3g}, {i.high:.3g}] "
        f"{'contains' if i.contains(goal[name]) else 'excludes'} the published value"
        if i.known
        else i.reason
        for name, i in ((name, intervals[name]) for name in NAMES)
    }
    return published_against_ours(goal, values, errors, reasons, size=size, constants="nine curves")


def _findings(size: str, nine: Any, means: Any, r2: np.ndarray, intervals: Any) -> list[Any]:
    from lab.laws.bootstrap import percentile_interval

    drawn = np.random.default_rng(SEED).integers(0, len(r2), (2000, len(r2)))
    over_curves = percentile_interval(r2[drawn].mean(1), 0.95, len(r2))
    text = f"{size}: fitted to three schedules, the law predicts six others with a mean R2 of {PRINTED[size]['R2']}"
    claim = Claim(text, PAPER, PRINTED[size]["R2"], "R2", "equals", 0.002)
    note = f"{size}: mean R2 of the published constants {means['published']['R2']:.4f}"
    findings = [judge(claim, r2.mean(), over_curves, caveats=("the full minimum over the three",), notes=(note,))]
    for name, what in (("beta", "a drop acts as a power law"), ("gamma", "its speed goes as a power of the rate")):
        value = published(size)[name]
        claim = Claim(f"{size}: {what}, {name} = {value:.3f}", PAPER, value, "exponent", "equals", 0.1)
        findings.append(judge(claim, nine.values[name], intervals[name], caveats=("fitted to all nine curves",)))
    return findings


def _draw(stem: Path, studies: Any, table: Any, findings: Any) -> Path:
    from experiments.published_figure import png_of, sheet
    from lab.laws.fit import predict
    from lab.laws.law import law
    from lab.report import figure as draw

    size = list(studies)[-1]
    data, sets = studies[size]["data"], studies[size]["sets"]
    form = law("multi-power")
    title = "Multi-power law: loss under schedules that were not fitted"
    with sheet(stem, title, f"{PAPER}; {size} parameters on the left", findings) as (left, right):
        for name, colour in zip(TEST, draw.sequence_of_colours(len(TEST))):
            step, loss = data[name]["step"], data[name]["loss"]
            left.plot(step, loss, ".", color=colour, markersize=2, label=name.replace("_", " "))
            columns = {c.name: data[name]["columns"][c.name] for c in form.columns}
            for of, line, dashes in (("full", draw.INK, "-"), ("published", draw.PUBLISHED, "--")):
                theta = np.array(form.search(sets[of]))
                draw.curve(left, step, predict(form, theta, columns), line, dashes=dashes, width=0.9)
        left.plot([], [], "-", color=draw.INK, label="full minimum on three other curves")
        left.plot([], [], "--", color=draw.PUBLISHED, label="published constants")
        last = min(data[name]["loss"].min() for name in TEST)
        left.set(xlabel="Updates", ylabel="Training loss, nats per token", title="Six test curves", xscale="log")
        left.set_ylim(last - 0.05, last + 0.75)
        left.legend(fontsize=7)
        marks = {"published": "s", "early stopped": "^", "full": "o"}
        for shift, (of, marker) in zip((-0.12, 0, 0.12), marks.items()):
            for at, name in enumerate(TEST):
                rows = table[(table["constants"] == of) & (table["curve"] == name)]
                colour = draw.OURS if of == "full" else draw.PUBLISHED if of == "published" else draw.FAINT
                for _, row in rows.iterrows():
                    label = of if at == 0 and row["size"] == size else None
                    filled = {} if row["size"] == size else {"markerfacecolor": "white"}
                    right.plot(row[METRICS[3]], at + shift, marker, color=colour, label=label, markersize=5, **filled)
        right.set_yticks(range(len(TEST)), [name.replace("_", " ") for name in TEST])
        right.set(xscale="log", xlabel=f"Mean relative error (filled: {size})", title="Error on each test curve")
        right.legend(fontsize=7)
        plain_ticks(left, right, (0.0005, 0.001, 0.002, 0.004))
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="multi-power-law/curves",
        paper=PAPER,
        summary="The multi-power law on three loss curves, its constants and its errors on six other schedules.",
        measurements=analyse,
    )
]
