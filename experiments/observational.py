"""Ruan et al. 2024: benchmarks of many public models have few dimensions, each log-linear in compute within a family.

Scores of 148 base models on eight benchmarks; missing scores are filled by one principal component. Three checks:

    dimensions   share of the variance by principal component, families of models drawn whole
    families     PC1 = theta ln C + nu in every family of at least four models with known compute that differ in it
    prediction   for each benchmark, the components of the other seven (basis, imputation and law fitted to models up to
                 84e21 FLOPs, Llama-2 7B's, the paper's cut-off) predict the scores of the larger models by a sigmoid;
                 beside it the same sigmoid in ln C alone, which knows nothing of families

The benchmark that is predicted takes no part in its predictors. Scores are rescaled so that chance is 0.

The file's compute is 6 N D. One entry of D is 42 times the next: 627 in units of 1e12 tokens, which makes a model of
3e9 parameters the second costliest of all; as 627e9 tokens, a thousandth, it is an ordinary one. That was noticed after
it had decided the third check. The verdict here takes data sizes beyond MOST_TOKENS for slips of units and the compute
as unknown, since a known error is no measurement; the table `slip` has the check with the entry as released, and with
a thousandth of it, as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lab.report.findings import Claim, judge
from lab.sweep.experiment import Analysis, Experiment

PAPER = "Ruan et al. 2024, Observational Scaling Laws and the Predictability of LM Performance, arXiv 2405.10938"
CHANCE = {
    "MMLU": 0.25, "ARC-C": 0.25, "HellaSwag": 0.25, "Winograd": 0.5, "TruthfulQA": 0.0, "GSM8K": 0.0,
    "XWinograd": 0.5, "HumanEval": 0.0,
}  # fmt: skip
BENCHMARKS = tuple(CHANCE)
COMPUTE = "FLOPs (1E21)"
CUTOFF = 84.0  # 1e21 FLOPs
TOKENS, MOST_TOKENS = "Pretraining Data Size (T)", 100.0  # 1e12
UNKNOWN = "compute unknown"
COMPONENTS, FAMILY, LEVEL, SEED = 3, 4, 0.95, 0

CLAIMS = {
    "share of PC1": Claim("The first component explains about 80 % of the variance", PAPER, 0.80, "share", "equals",
                          0.05, recalled=True),
    "share of three components": Claim("Three components explain about 97 % of the variance", PAPER, 0.97, "share",
                                       "equals", 0.02, recalled=True),
    "families": Claim("Within a family PC1 is log-linear in compute: R2 above 0.9", PAPER, 1.0, "median R2 less 0.9",
                      "sign", recalled=True),
    "prediction": Claim("Components predict larger models' scores better than training compute does", PAPER, 1.0,
                        "ln ratio of errors, compute over components", "sign"),
}  # fmt: skip


def analyse(load: Any, resamples: int = 500) -> Analysis:
    import pandas

    from lab.laws.bootstrap import percentile_interval
    from lab.laws.catalogue.observational import impute, principal
    from lab.laws.compare import published_against_ours
    from lab.laws.intervals import draw

    released = load("obs_scaling_base_llm")
    readings, slipped = readings_of(released)
    table = readings[UNKNOWN]
    scores = table[list(BENCHMARKS)].to_numpy(float)
    filled, _ = impute(scores)
    basis = principal(filled, len(BENCHMARKS))
    counts = draw(len(table), resamples, SEED, table["Model Family"].to_numpy()).astype(int)
    shares = np.array([principal(np.repeat(filled, n, axis=0), len(BENCHMARKS)).shares for n in counts])
    cumulative = {"share of PC1": shares[:, 0], "share of three components": shares[:, :COMPONENTS].sum(1)}
    small = (table[COMPUTE] <= CUTOFF).to_numpy()
    others = {
        "standardised scores": principal(filled, len(BENCHMARKS), standardise=True).shares,
        "models with all scores": principal(scores[~np.isnan(scores).any(1)], len(BENCHMARKS)).shares,
        f"models up to {CUTOFF:g}e21 FLOPs": principal(filled[small], len(BENCHMARKS)).shares,
    }
    ours, reasons = {}, {}
    for name, parts in (("share of PC1", 1), ("share of three components", COMPONENTS)):
        ours[name] = float(basis.shares[:parts].sum())
        by = ", ".join(f"{which} {values[:parts].sum():.3f}" for which, values in others.items())
        reasons[name] = f"{len(table)} models here, {small.sum()} up to the paper's cut-off; {by}"
    clusters = table["Model Family"].nunique()
    findings = [
        judge(CLAIMS[n], ours[n], percentile_interval(cumulative[n], LEVEL, clusters), caveats=(reasons[n],))
        for n in ours
    ]
    families = by_family(table, basis.scores(filled)[:, 0])
    held, predictions = prediction(table)
    slip = pandas.DataFrame(_gain_row(name, held if name == UNKNOWN else prediction(read)[0]) for name, read in
                            readings.items())  # fmt: skip
    findings += [judge_families(families), judge_prediction(held)]
    errors = {name: float(values.std(ddof=1)) for name, values in cumulative.items()}
    published = {name: CLAIMS[name].published for name in ours}
    tables = {
        "published-against-ours": published_against_ours(published, ours, errors, reasons, data="obs_scaling_base_llm"),
        "families": families,
        "held-out": held,
        "slip": slip,
        "components": pandas.DataFrame(
            {
                "component": np.arange(1, len(BENCHMARKS) + 1),
                "share": basis.shares,
                **others,
                **{name: basis.axes[:, i] for i, name in enumerate(BENCHMARKS)},
            }
        ),
    }
    notes = [
        slipped,
        "components against compute, by how the slips are read: "
        + "; ".join(f"{r.reading} {r.gain:.2f} [{r.gain_low:.2f}, {r.gain_high:.2f}]" for r in slip.itertuples()),
        f"{np.isnan(scores).sum()} of {scores.size} scores are missing and filled by one component",
        f"{len(families)} families have at least {FAMILY} models; {table[COMPUTE].isna().sum()} models lack compute",
    ]
    first = basis.scores(filled)[:, 0]
    return Analysis(findings, tables, notes, lambda stem: _draw(stem, table, first, families, predictions, findings))


def readings_of(table: Any) -> tuple[dict[str, Any], str]:
    """The table with the compute of models beyond MOST_TOKENS unknown, as released, a thousandth; and their names."""
    tokens, compute = table[TOKENS], table[COMPUTE]
    slip = tokens > MOST_TOKENS
    named = ", ".join(
        f"{row['Model']} {row[TOKENS]:g}, {row[TOKENS] / tokens[~slip].max():.0f} times the next"
        for _, row in table[slip].iterrows()
    )
    read = {UNKNOWN: compute.mask(slip), "as released": compute, "a thousandth": compute.where(~slip, compute / 1000)}
    return {
        name: table.assign(**{COMPUTE: values}) for name, values in read.items()
    }, f"data sizes in 1e12 tokens that are read as slips of units: {named or 'none'}"


def judge_families(families: Any) -> Any:
    """Families are drawn with replacement."""
    from lab.laws.bootstrap import percentile_interval

    r2 = families["R2"].to_numpy()
    drawn = np.random.default_rng(SEED).integers(0, len(r2), (4000, len(r2)))
    interval = percentile_interval(np.median(r2[drawn], axis=1) - 0.9, LEVEL, len(r2))
    worst = ", ".join(f"{row.family} {row.R2:.2f}" for row in families.nsmallest(3, "R2").itertuples())
    return judge(CLAIMS["families"], float(np.median(r2)) - 0.9, interval, notes=(f"lowest R2: {worst}",))


def judge_prediction(held: Any) -> Any:
    """Benchmarks are drawn with replacement."""
    gain, interval = _gain(held)
    worse = ", ".join(held.loc[held["error components"] > held["error compute"], "benchmark"])
    caveat = f"each of {len(held)} benchmarks counts once; components are worse on {worse or 'none'}"
    return judge(CLAIMS["prediction"], gain, interval, caveats=(caveat,))


def _gain(held: Any) -> tuple[float, Any]:
    """Mean over benchmarks of ln(error of compute / error of components), and its interval."""
    from lab.laws.bootstrap import percentile_interval

    gain = np.log(held["error compute"] / held["error components"]).to_numpy()
    drawn = np.random.default_rng(SEED).integers(0, len(gain), (4000, len(gain)))
    return float(gain.mean()), percentile_interval(gain[drawn].mean(1), LEVEL, len(gain))


def _gain_row(reading: str, held: Any) -> dict[str, Any]:
    gain, interval = _gain(held)
    verdict = judge_prediction(held).verdict
    return {"reading": reading, "gain": gain, "gain_low": interval.low, "gain_high": interval.high, "verdict": verdict}


def by_family(table: Any, first: np.ndarray) -> Any:
    """PC1 against ln C in each family: a frame with slope, its interval and R2."""
    import pandas

    from lab.laws.power import fit_power_law

    rows = []
    for family, cell in table.assign(PC=first).dropna(subset=[COMPUTE]).groupby("Model Family"):
        C, PC = cell[COMPUTE].to_numpy(float) * 1e21, cell["PC"].to_numpy(float)
        if len(cell) < FAMILY or len(np.unique(C)) < 3:
            continue
        line = fit_power_law(C, np.exp(PC))  # the law is a line in ln C
        left = ((np.log(line(C)) - PC) ** 2).sum() / ((PC - PC.mean()) ** 2).sum()
        low, high = line.exponent_interval(LEVEL)
        row = {"family": family, "models": len(C), "compute ratio": C.max() / C.min(), "theta": line.exponent}
        rows.append({**row, "theta_low": low, "theta_high": high, "nu": line.log_coefficient, "R2": 1 - left})
    return pandas.DataFrame(rows)


def prediction(table: Any) -> tuple[Any, dict[str, Any]]:
    """Root mean squared errors on the models beyond the cut-off, by benchmark, and the predictions themselves."""
    import pandas

    from lab.laws.catalogue.observational import impute, principal
    from lab.laws.fit import fit
    from lab.laws.law import law
    from lab.laws.solve import Rows

    form, known = law("observational"), table.dropna(subset=[COMPUTE])
    small = (known[COMPUTE] <= CUTOFF).to_numpy()
    log_c = np.log(known[COMPUTE].to_numpy(float))
    log_c = (log_c - log_c[small].mean()) / log_c[small].std()
    rows, shown = [], {}
    for target, chance in CHANCE.items():
        others = known[[name for name in BENCHMARKS if name != target]].to_numpy(float)
        filled, fill = impute(others[small])
        basis = principal(filled, COMPONENTS)
        parts = basis.scores(np.where(small[:, None], _at(small, filled, others.shape), fill.fill(others)))
        columns = {f"PC{i + 1}": parts[:, i] for i in range(COMPONENTS)}
        alone = {"PC1": log_c, "PC2": np.zeros(len(log_c)), "PC3": np.zeros(len(log_c))}
        score = (known[target].to_numpy(float) - chance) / (1 - chance)
        there = ~np.isnan(score)
        row = {"benchmark": target, "models fitted": (small & there).sum(), "models held out": (~small & there).sum()}
        for name, read, fixed in (("components", columns, {}), ("compute", alone, {"beta_2": 0.0, "beta_3": 0.0})):
            weights = (small & there).astype(float)
            data = Rows(read, np.where(there, score, 0.5), weights, np.zeros(len(score), bool))
            found = fit(form, data, fixed=fixed)
            predicted = found.predict(read)
            off = (predicted - score)[~small & there] * (1 - chance)
            row[f"error {name}"], row[f"bias {name}"] = float(np.sqrt((off**2).mean())), float(off.mean())
            if name == "components":
                shown[target] = (predicted * (1 - chance) + chance, known[target].to_numpy(float), small)
        rows.append(row)
    return pandas.DataFrame(rows), shown


def _at(chosen: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`values` at the chosen rows of an array of NaN."""
    full = np.full(shape, np.nan)
    full[chosen] = values
    return full


def _draw(stem: Path, table: Any, first: Any, families: Any, predictions: Any, findings: Any) -> Path:
    from experiments.published_figure import png_of, sheet
    from lab.report import figure as draw

    with sheet(stem, "Capability from benchmarks", PAPER, findings) as (left, right):
        left.plot(table[COMPUTE] * 1e21, first, ".", color="#cccccc")
        shown = families.nlargest(8, "compute ratio")
        for row, colour in zip(shown.itertuples(), draw.sequence_of_colours(len(shown))):
            cell = (table["Model Family"] == row.family) & table[COMPUTE].notna()
            C = np.sort(table.loc[cell, COMPUTE].to_numpy() * 1e21)
            left.plot(table.loc[cell, COMPUTE] * 1e21, first[cell], "o", color=colour, markersize=4)
            draw.curve(left, C, row.theta * np.log(C) + row.nu, colour, f"{row.family}: R2 {row.R2:.2f}", width=1.1)
        left.set(xscale="log", xlabel="Training FLOPs", ylabel="PC1 of eight benchmarks", title="Within families")
        left.legend(fontsize=6.5)
        marks = iter("osD^vP*X")
        for (name, (predicted, true, small)), colour in zip(predictions.items(), draw.sequence_of_colours(8)):
            right.plot(predicted[~small], true[~small], next(marks), color=colour, markersize=4, label=name)
        right.plot([0, 1], [0, 1], "-", color=draw.FAINT, linewidth=0.8)
        right.set(xlabel="Predicted from the other benchmarks", ylabel="Measured score")
        right.set_title(f"Models above {CUTOFF:g}e21 FLOPs, not fitted")
        right.legend(fontsize=6.5)
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="observational/benchmarks",
        paper=PAPER,
        summary="Principal components of benchmarks, log-linear in compute within families; larger models predicted.",
        measurements=analyse,
    )
]
