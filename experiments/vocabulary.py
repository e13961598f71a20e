"""Scaling Laws with Vocabulary (Tao et al. 2024, arXiv 2407.13623): approaches 1 and 3 on 1,200 released evaluations.

Six models (Nnv, parameters outside embedding and head) with ten vocabularies V each, evaluated twenty times as they
train: 60 curves. Lu is the loss less that of a unigram model, H characters seen, d the width, Nv = V d.

Approach 1: sort by FLOPs; a run counts where its Lu is the lowest so far. Of those, Nnv = k C^0.5 (exponent fixed) and
Nv = k C^a, Huber(1e-3) of logs. The authors first add losses interpolated between models and vocabularies (cubic in
Nnv and H, quadratic in V), and keep of their searches the one of least relative squared error: with and without the
interpolated losses, and by least squares.

Approach 3: Lu = -E + A1 / Nnv^alpha1 + A2 / Nv^alpha2 + B / D^alpha1, Huber(1e-3) of plain residuals, on evaluations
from 2.18e17 FLOPs. Tokens D = H f(ln V), f a fitted quadratic. The released code divides V by 1,000 for the fit and
passes that V to f, so that a vocabulary of 4,096 counts as one of 4 and D comes out nearly three times too large, by a
factor that depends on V: the term in Nv takes up the difference. Both units are fitted. The code also keeps, of its
starts, not the lowest objective but the lowest relative error; what that costs shows in the objective at the published
constants.

Evaluations of a curve are not independent: intervals resample whole curves.

For Nv much below Nnv and C ~ Nnv^2, approach 3 has Nv ~ Nnv^gamma with gamma = (1 + alpha1) / (1 + alpha2): the paper's
conclusion that vocabularies should grow more slowly than models (gamma 0.83) rests on alpha2 > alpha1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.parametric import LEVEL, objective_at, reason_of, rows_of
from experiments.published_figure import png_of, sheet
from lab.sweep.experiment import Analysis, Experiment

SOURCE = "Tao et al. 2024, arXiv 2407.13623"
TOKENS_PER_CHARACTER = (0.00639222, -0.15811069, 1.20470122)  # of ln V, highest power first
LEAST_FLOPS = 2.18e17
APPROACH_3 = {  # Nnv and Nv in millions, D in billions
    "E": 5.5327847,
    "A1": 1.8313852,
    "A2": 0.1958424,
    "B": 2.1241123,
    "alpha1": 0.4466063,
    "alpha2": 0.6707375,
}
APPROACH_1 = {"ln k of Nnv": -2.4846510, "ln k of Nv": -1.5890313, "a of Nv": 0.4163623}
GAMMA = 0.83
RESAMPLES = 200
SLIP, UNITS = "V in thousands (released)", "V in units"
PREDICTED = (2.87e9, 7e9, 13e9, 70e9, 300e9)  # Nnv whose best vocabulary is predicted
EDGES = (50e6, 200e6, 500e6, 1e9, 2e9, 5e9, 10e9, 20e9, 50e9, 100e9, 200e9, 500e9)  # largest Nnv of each width
WIDTHS = (512, 768, 1024, 1536, 2048, 3200, 4096, 5120, 6048, 8192, 12288, 16384)


def analyse(load: Any, resamples: int = RESAMPLES) -> Analysis:
    """`resamples`: of curves; with none there are no intervals."""
    import pandas as pd

    runs = load("vocab_isoflop")
    between = with_between(runs)
    first = {"released rows": approach_1(runs), "interpolated rows": approach_1(between)}
    first["interpolated rows, least squares"] = approach_1(between, "least-squares")
    exponents = approach_1_exponents(first["released rows"], resamples)
    third = {name: approach_3(runs, name == SLIP, resamples) for name in (SLIP, UNITS)}
    findings = verdicts(first["released rows"], exponents, third[UNITS])
    tables = {
        "published-against-ours": _compared(first, exponents, third),
        "approach-3": pd.DataFrame([_summary(name, found) for name, found in third.items()]),
        "predicted-vocabulary": _predicted(third),
        "envelope": runs[first["released rows"]["lowest"]].sort_values("FLOPs"),
    }
    return Analysis(findings, tables, _notes(first, third), lambda stem: figure(runs, first, third, findings, stem))


def width_of(n: Any) -> Any:
    """The authors' width of a model of Nnv parameters."""
    return np.array(WIDTHS)[np.searchsorted(EDGES, n)]


def tokens_per_character(vocabulary: Any) -> Any:
    """The authors' fit to a tokenizer of V entries."""
    return np.polyval(TOKENS_PER_CHARACTER, np.log(vocabulary))


def curve_of(runs: Any) -> Any:
    """Label of the training run (model, vocabulary) of each evaluation."""
    return runs.groupby(["Non_vocab_parameters", "vocab_size"]).ngroup().to_numpy()


def envelope(flops: Any, loss: Any) -> Any:
    """Which evaluations [n] have the lowest loss of all that cost no more."""
    order = np.argsort(flops, kind="stable")
    before = np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))
    lowest = np.zeros(len(flops), bool)
    lowest[order] = loss[order] < before
    return lowest


def with_between(runs: Any) -> Any:
    """The evaluations and, as the authors add them, losses between models (cubic) and between vocabularies (quadratic).

    Between models: 50 pairs (Nnv, H), both evenly spaced in logs, for each V. Between vocabularies: 20 of them for each
    model at the end of its training.
    """
    import pandas as pd
    from scipy.interpolate import griddata, interp1d

    def spaced(values, count):
        return np.geomspace(values.min(), values.max(), count)

    n, characters = spaced(runs["Non_vocab_parameters"], 50), spaced(runs["num_characters"], 50)
    added = []
    for vocabulary, mine in runs.groupby("vocab_size"):
        loss = griddata(mine[["Non_vocab_parameters", "num_characters"]], mine["Lossu"], (n, characters), "cubic")
        added.append(pd.DataFrame({"vocab_size": vocabulary, "Non_vocab_parameters": n, "num_characters": characters}))
        added[-1]["Lossu"] = loss
    vocabularies = spaced(runs["vocab_size"], 20)
    for size, mine in runs.groupby("Non_vocab_parameters"):
        last = mine.loc[mine.groupby("vocab_size")["num_characters"].idxmax()]
        tokens = (last["num_characters"] * tokens_per_character(last["vocab_size"])).mean()
        loss = interp1d(last["vocab_size"], last["Lossu"], "quadratic", fill_value="extrapolate")(vocabularies)
        added.append(pd.DataFrame({"vocab_size": vocabularies, "Non_vocab_parameters": size, "Lossu": loss}))
        added[-1]["num_characters"] = tokens / tokens_per_character(vocabularies)
    new = pd.concat(added).dropna()
    new["embed_dim"] = width_of(new["Non_vocab_parameters"])
    tokens = new["num_characters"] * tokens_per_character(new["vocab_size"])
    new["FLOPs"] = 6 * (new["Non_vocab_parameters"] + new["vocab_size"] * new["embed_dim"]) * tokens
    return pd.concat([runs, new], ignore_index=True)


def approach_1(runs: Any, objective: str = "huber") -> dict[str, Any]:
    """Power laws of the envelope in FLOPs: Nnv with exponent 0.5 ("fixed") and free ("Nnv"), and "Nv"."""
    from lab.laws.fit import fit
    from lab.laws.law import law
    from lab.laws.objective import Objective

    flops, n = runs["FLOPs"].to_numpy(float), runs["Non_vocab_parameters"].to_numpy(float)
    nv = (runs["vocab_size"] * runs["embed_dim"]).to_numpy(float)
    lowest = envelope(flops, runs["Lossu"].to_numpy(float))
    line, loss = law("vocabulary-isoflop"), Objective(objective, delta=1e-3)
    rows = {name: rows_of({"C": flops}, target, lowest) for name, target in (("Nnv", n), ("Nv", nv))}
    found = {name: fit(line, of, loss) for name, of in rows.items()}
    return {**found, "fixed": fit(line, rows["Nnv"], loss, fixed={"a": 0.5}), "runs": runs, "lowest": lowest}


def approach_1_exponents(found: dict[str, Any], resamples: int) -> Any:
    """Exponent of Nv [R] over resamples of curves, the envelope taken anew from those drawn."""
    import dataclasses

    from lab.laws.intervals import bootstrap, draw

    runs, fitted = found["runs"], found["Nv"]
    flops, loss = runs["FLOPs"].to_numpy(float), runs["Lossu"].to_numpy(float)
    if not resamples:
        return np.empty(0)
    drawn = draw(len(runs), resamples, 0, curve_of(runs)) > 0
    lowest = np.stack([envelope(flops, np.where(curves, loss, np.inf)) for curves in drawn]).astype(float)
    everything = dataclasses.replace(fitted.rows, weights=np.ones(len(runs)))
    return bootstrap(dataclasses.replace(fitted, rows=everything), lowest).quantities["a"]


def approach_3(runs: Any, thousands: bool, resamples: int) -> dict[str, Any]:
    """The fitted law, resamples of curves, and the objective at the published constants, with V in one of the units."""
    from lab.laws.fit import fit
    from lab.laws.intervals import bootstrap, draw
    from lab.laws.law import law

    runs = runs[runs["FLOPs"] >= LEAST_FLOPS].reset_index(drop=True)
    vocabulary = runs["vocab_size"] / (1000 if thousands else 1)
    columns = {
        "Nnv": (runs["Non_vocab_parameters"] / 1e6).to_numpy(float),
        "Nv": (runs["vocab_size"] * runs["embed_dim"] / 1e6).to_numpy(float),
        "D": (runs["num_characters"] / 1e9 * tokens_per_character(vocabulary)).to_numpy(float),
    }
    rows = rows_of(columns, runs["Lossu"])
    found = fit(law("vocabulary"), rows, starts=[APPROACH_3])
    curves = curve_of(runs)
    samples = dict.fromkeys(found.values, np.empty(0))
    if resamples:
        samples = bootstrap(found, draw(len(runs), resamples, 0, curves)).quantities
    at_published = objective_at(found.law, rows, found.objective, APPROACH_3)
    return {"fit": found, "samples": samples, "at_published": at_published, "curves": int(curves.max()) + 1}


def interval_of(samples: Any, curves: int, constants: int) -> Any:
    """95 % interval of a quantity over resamples of so many curves, of a law with so many constants."""
    from lab.laws.bootstrap import percentile_interval

    return percentile_interval(samples, LEVEL, curves, constants)


def deviation(samples: Any) -> float:
    """Standard error from resamples [R]."""
    return float(np.std(samples, ddof=1)) if len(samples) > 1 else np.nan


def growth(values: Any) -> Any:
    """gamma of Nv ~ Nnv^gamma along C ~ Nnv^2, for Nv much below Nnv."""
    return (1 + values["alpha1"]) / (1 + values["alpha2"])


def best_vocabulary(values: Any, n: float) -> float:
    """V of the lowest loss at Nnv = n and the budget that approach 1 (published) gives such a model."""
    from scipy.optimize import minimize_scalar

    flops, width = (n / np.exp(APPROACH_1["ln k of Nnv"])) ** 2, float(width_of(n))

    def loss(log_v):
        nv = np.exp(log_v) * width
        tokens = flops / (6 * (n + nv)) / 1e9
        return values["A2"] * (nv / 1e6) ** -values["alpha2"] + values["B"] * tokens ** -values["alpha1"]

    return float(np.exp(minimize_scalar(loss, bounds=np.log([1e2, 1e8]), method="bounded").x))


def verdicts(first: dict[str, Any], exponents: Any, third: dict[str, Any]) -> list[Any]:
    from lab.report.findings import Claim, judge

    a, alpha2 = APPROACH_1["a of Nv"], APPROACH_3["alpha2"]
    ours, gammas, caveats = third["fit"].values, growth(third["samples"]), ("with V in units",)
    alphas, gammas, less = (
        interval_of(samples, third["curves"], len(ours)) for samples in (third["samples"]["alpha2"], gammas, gammas - 1)
    )
    least = Claim(f"Approach 1: Nv ~ C^{a:.2f}", SOURCE, a, "exponent of C", "equals", 0.1)
    steep = Claim(f"Approach 3: loss falls as Nv^-{alpha2:.2f}", SOURCE, alpha2, "exponent alpha2", "equals", 0.2)
    text = f"Approach 3: vocabulary parameters grow as Nnv^gamma with gamma {GAMMA}"
    level = Claim(text, SOURCE, GAMMA, "exponent gamma", "equals", 0.1, recalled=True)
    text = "Approach 3: vocabulary parameters grow more slowly than the others (gamma - 1)"
    slower = Claim(text, SOURCE, GAMMA - 1, "gamma - 1", "sign", recalled=True)
    fitted = first["Nv"].values
    return [
        judge(least, fitted["a"], interval_of(exponents, int(curve_of(first["runs"]).max()) + 1, len(fitted))),
        judge(steep, ours["alpha2"], alphas, caveats=caveats),
        judge(level, growth(ours), gammas, caveats=caveats),
        judge(slower, growth(ours) - 1, less, caveats=caveats),
    ]


def _compared(first: dict[str, Any], exponents: Any, third: dict[str, Any]) -> Any:
    import pandas as pd

    from lab.laws.compare import published_against_ours

    tables, released = [], first["released rows"]["lowest"].sum()
    published = {"fixed": {"k": np.exp(APPROACH_1["ln k of Nnv"]), "a": 0.5}}
    published["Nv"] = {"k": np.exp(APPROACH_1["ln k of Nv"]), "a": APPROACH_1["a of Nv"]}
    for name, found in first.items():
        why = {}
        for which, constants in published.items():
            of = found[which]
            why[which] = reason_of(objective_at(of.law, of.rows, of.objective, constants) / of.objective_value - 1)
            why[which] += f" ({found['lowest'].sum()} rows on the envelope, {released} of released losses alone)"
        ours = (np.log(found["fixed"].values["k"]), np.log(found["Nv"].values["k"]), found["Nv"].values["a"])
        errors = {"a of Nv": deviation(exponents)} if name == "released rows" else {}
        reasons = dict(zip(APPROACH_1, (why["fixed"], why["Nv"], why["Nv"])))
        tables.append(
            published_against_ours(APPROACH_1, dict(zip(APPROACH_1, ours)), errors, reasons, approach=f"1, {name}")
        )
    excess = {name: found["at_published"] / found["fit"].objective_value - 1 for name, found in third.items()}
    for name, found in third.items():
        published = APPROACH_3 | {"objective": found["at_published"]}
        ours = found["fit"].values | {"objective": found["fit"].objective_value}
        errors = {key: deviation(values) for key, values in found["samples"].items()}
        other = next(each for each in third if each != name)
        reason = f"{reason_of(excess[name])}; with {other} {excess[other]:.1e}"
        tables.append(
            published_against_ours(published, ours, errors, dict.fromkeys(published, reason), approach=f"3, {name}")
        )
    return pd.concat(tables)


def _summary(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Constants with 95 % intervals over curves, gamma, objective, how the fit ended."""
    fit, row = found["fit"], {"units": name, "rows": len(found["fit"].rows)}
    samples = found["samples"] | {"gamma": growth(found["samples"])}
    for key, value in (fit.values | {"gamma": growth(fit.values)}).items():
        interval = interval_of(samples[key], found["curves"], len(fit.values))
        row |= {key: value, f"{key}_low": interval.low, f"{key}_high": interval.high}
    ends = {"objective": fit.objective_value, "objective_at_published": found["at_published"]}
    return row | ends | {"gradient": fit.certificate.gradient, "warnings": "; ".join(fit.certificate.warnings)}


def _predicted(third: dict[str, Any]) -> Any:
    """The best vocabulary by model size: published constants, and ours in both units."""
    import pandas as pd

    table = pd.DataFrame({"Nnv": PREDICTED, "width": width_of(PREDICTED)})
    table["published constants"] = [best_vocabulary(APPROACH_3, n) for n in PREDICTED]
    for name, found in third.items():
        table[name] = [best_vocabulary(found["fit"].values, n) for n in PREDICTED]
    return table


def _notes(first: dict[str, Any], third: dict[str, Any]) -> list[str]:
    slip, units = third[SLIP], third[UNITS]
    excess = slip["at_published"] / slip["fit"].objective_value - 1
    change = units["fit"].objective_value / slip["fit"].objective_value - 1
    free, rowwise = first["released rows"]["Nnv"].values["a"], units["fit"].errors["alpha2"]
    alpha2 = units["samples"]["alpha2"]
    reach = interval_of(alpha2, units["curves"], len(units["fit"].values))
    low, high = next((p.low, p.high) for p in units["fit"].law.parameters if p.name == "alpha2")
    notes = [
        f"With V in thousands the fit ends at alpha2 {slip['fit'].values['alpha2']:.3f}; the published constants' "
        f"objective is {100 * excess:.2g} % above that optimum.",
        f"With V in units alpha2 is {units['fit'].values['alpha2']:.3f} and the objective {100 * change:+.1f} % "
        f"against thousands: the wrong unit fits these rows {'better' if change > 0 else 'worse'}.",
        f"gamma = (1 + alpha1) / (1 + alpha2): published constants {growth(APPROACH_3):.3f}, in thousands "
        f"{growth(slip['fit'].values):.3f}, in units {growth(units['fit'].values):.3f}.",
        f"Approach 1 fixes Nnv ~ C^0.5; free, the envelope gives {free:.3f}.",
    ]
    if reach.known:
        ends = ((alpha2 <= low * 1.01) | (alpha2 >= high / 1.01)).mean()
        notes.append(
            f"Resampling {units['curves']} whole curves gives alpha2 from {reach.low:.2f} to {reach.high:.2f}; "
            f"{ends:.0%} of the resamples end at a bound of the search ({low:g}, {high:g}). With all evaluations "
            f"independent its standard error is {rowwise:.2f}."
        )
    return notes


def figure(runs: Any, first: Any, third: Any, findings: list[Any], stem: Path) -> Path:
    """The envelope with approach 1, and the best vocabulary by approach 3 in both units."""
    from lab.report import figure as draw

    with sheet(stem, "How large should a vocabulary be?", f"Released evaluations of {SOURCE}", findings) as (
        left,
        right,
    ):
        found = first["released rows"]
        chosen = runs[found["lowest"]]
        nv = chosen["vocab_size"] * chosen["embed_dim"]
        left.plot(chosen["FLOPs"], nv, "o", color=draw.OURS, markersize=4, label="lowest loss so far")
        grid = np.geomspace(chosen["FLOPs"].min(), chosen["FLOPs"].max(), 50)
        line = found["Nv"].values
        draw.curve(left, grid, line["k"] * grid ** line["a"], label=f"ours: C^{line['a']:.3f}")
        published = np.exp(APPROACH_1["ln k of Nv"]) * grid ** APPROACH_1["a of Nv"]
        draw.curve(left, grid, published, draw.PUBLISHED, f"published: C^{APPROACH_1['a of Nv']:.3f}", "--")
        left.set(xscale="log", yscale="log", xlabel="FLOPs", ylabel="Vocabulary parameters Nv", title="Approach 1")
        left.legend()
        sizes = np.geomspace(3e7, 3e11, 60)
        for name, colour in ((UNITS, draw.OURS), (SLIP, draw.FAINT)):
            values = third[name]["fit"].values
            label = f"{name}: alpha2 {values['alpha2']:.2f}"
            best = [best_vocabulary(values, n) * width_of(n) for n in sizes]
            draw.curve(right, sizes, best, colour, label)
        best = [best_vocabulary(APPROACH_3, n) * width_of(n) for n in sizes]
        draw.curve(right, sizes, best, draw.PUBLISHED, "published constants", "--")
        right.axvspan(runs["Non_vocab_parameters"].min(), runs["Non_vocab_parameters"].max(), color="0.93", zorder=0)
        right.set(xscale="log", yscale="log", xlabel="Other parameters Nnv (shaded: trained)", ylabel="Best Nv")
        right.set_title("Approach 3")
        right.legend()
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="vocabulary/approaches",
        paper="Tao et al. 2024, Scaling Laws with Vocabulary, arXiv 2407.13623",
        summary="The best vocabulary by the envelope of losses and by a parametric law, and what a unit does to it",
        measurements=analyse,
    )
]
