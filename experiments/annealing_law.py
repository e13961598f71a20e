"""Tissue et al. 2024, the annealing law on the curves of Luo et al. 2025: same split, compared by held-out error.

L = L0 + A S1^-alpha - C S2 with a decay of 0.999 per update in S2, fitted to cosine_24000, constant_24000 and wsdcon_9
(Huber(1e-3) of log residuals) and tried on the six other curves, beside the multi-power law fitted the same way. S2
counts changes of the learning rate after the warm-up; with the warm-up's rise counted as well, or another decay, the
table of choices says what changes. The two laws are compared by the logarithm of the ratio of their root mean squared
errors, per test curve; the curves are drawn whole, both sizes together. Three training curves leave nothing to draw
from for the constants, which have no interval.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from experiments.loss_curves import (
    METRICS,
    SIZES,
    TEST,
    TRAIN,
    WARMUP,
    curves,
    held_out,
    plain_ticks,
    rows_of,
    with_area,
)
from experiments.multi_power_law import PRINTED, published
from lab.report.findings import Claim, judge
from lab.sweep.experiment import Analysis, Experiment

PAPER = "Tissue et al. 2024, Scaling Law with Learning Rate Annealing, arXiv 2408.11029"
LUO = "Luo et al. 2025, arXiv 2503.12811"
LOG = logging.getLogger(__name__)
DECAYS = (0.99, 0.995, 0.999, 0.9995)
DECAY = 0.999
SEED = 0

BETTER = Claim(
    "The multi-power law predicts schedules that were not fitted better than the annealing law", LUO, 1.0,
    "ln ratio of held-out errors, annealing over multi-power", "sign",
)  # fmt: skip
WHOLE_CURVE = Claim(
    "Fitted to a few curves the annealing law predicts the whole curve of other schedules (within 0.5 % on average)",
    PAPER, 0.0, "mean held-out relative error", "near_zero", 0.005,
)  # fmt: skip


def analyse(load: Any, sizes: Any = SIZES, decays: Any = DECAYS, every: int = 1) -> Analysis:
    """`every`: fits read every so-manieth point of a curve."""
    import pandas

    from lab.laws.compare import published_against_ours
    from lab.laws.fit import fit
    from lab.laws.law import law

    annealing, multi_power = law("annealing"), law("multi-power")
    compared, tests, choices, constants, notes, drawn = [], [], [], [], [], {}
    for size in sizes:
        measured = curves(load(f"mpl_curves_{size}"))
        LOG.info("%s: the multi-power law, then %d settings of the annealing law", size, 2 * len(decays))
        rival = fit(multi_power, rows_of(measured, TRAIN, every))
        rival_metrics = held_out(multi_power, rival.values, measured)
        gains = []
        for since, counted in ((WARMUP, "after warm-up"), (0, "all")):
            for decay in decays:
                data = with_area(measured, decay, since)
                found = fit(annealing, rows_of(data, TRAIN, every))
                metrics = held_out(annealing, found.values, data)
                gains.append(float(np.log(metrics["RMSE"] / rival_metrics["RMSE"]).mean()))
                row = {"size": size, "changes counted": counted, "decay": decay, "objective": found.objective_value}
                means = metrics[list(METRICS)].mean()
                choices.append({**row, **means, "ln error over multi-power": gains[-1], **found.values})
                if decay == DECAY and counted == "after warm-up":
                    chosen, chosen_data, chosen_metrics = found, data, metrics
        tests += [chosen_metrics.assign(size=size, law="annealing"), rival_metrics.assign(size=size, law="multi-power")]
        constants += [{"size": size, "constant": name, "value": value} for name, value in chosen.values.items()]
        notes += [f"{size}, annealing law: {line}" for line in chosen.certificate.warnings]
        notes += [f"{size}, multi-power law: {line}" for line in rival.certificate.warnings]
        authors = held_out(multi_power, published(size), measured)[list(METRICS)].mean()
        mine, theirs = chosen_metrics[list(METRICS)].mean(), rival_metrics[list(METRICS)].mean()
        notes.append(
            f"{size}: mean held-out RMSE {mine['RMSE']:.5f} of the annealing law, {theirs['RMSE']:.5f} of the "
            f"multi-power law at its minimum, {authors['RMSE']:.5f} of that law with its authors' constants; over "
            f"{len(gains)} choices of S2 ln of the first error over the second is {min(gains):.2f} to {max(gains):.2f}"
        )
        none = dict.fromkeys(METRICS, np.nan)
        others = {
            m: f"no value is published for these curves; the multi-power law has {theirs[m]:.5f}" for m in METRICS
        }
        why = {m: f"ours is at the minimum; of their constants we find {authors[m]:.5f}" for m in METRICS}
        compared += [
            published_against_ours(none, mine, {}, others, size=size, law="annealing"),
            published_against_ours(PRINTED[size], theirs, {}, why, size=size, law="multi-power"),
        ]
        drawn[size] = {"annealing": (chosen, chosen_data), "multi-power": (rival, measured)}
    test = pandas.concat(tests, ignore_index=True)
    findings = _findings(test)
    notes.append(f"the decay of S2 is stated, not fitted: {DECAY} per update; the table of choices has others")
    tables = {
        "published-against-ours": pandas.concat(compared, ignore_index=True),
        "test-curves": test,
        "choices": pandas.DataFrame(choices),
        "constants": pandas.DataFrame(constants),
    }
    return Analysis(findings, tables, notes, lambda stem: _draw(stem, drawn, test, findings))


def _findings(test: Any) -> list[Any]:
    """Both sizes of one test curve are drawn together: they share the schedule."""
    from lab.laws.bootstrap import percentile_interval

    errors = test.pivot_table(index="curve", columns=["law", "size"], values="RMSE")
    ratio = (np.log(errors["annealing"]) - np.log(errors["multi-power"])).mean(axis=1).to_numpy()
    mine = test[test["law"] == "annealing"].pivot_table(index="curve", columns="size", values=METRICS[3])
    relative = mine.mean(axis=1).to_numpy()
    drawn = np.random.default_rng(SEED).integers(0, len(ratio), (2000, len(ratio)))

    def interval(values):
        return percentile_interval(values[drawn].mean(1), 0.95, len(values))

    per_curve = ", ".join(f"{name} {np.exp(value):.2f}" for name, value in zip(errors.index, ratio))
    return [
        judge(BETTER, ratio.mean(), interval(ratio), notes=(f"error of annealing over multi-power: {per_curve}",)),
        judge(WHOLE_CURVE, relative.mean(), interval(relative), caveats=("the paper states no number; 0.5 % is ours",)),
    ]


def _draw(stem: Path, drawn: Any, test: Any, findings: Any) -> Path:
    from experiments.published_figure import png_of, sheet
    from lab.report import figure as draw

    size = list(drawn)[-1]
    with sheet(stem, "Annealing law and multi-power law on the same curves", f"{PAPER}; curves of {LUO}", findings) as (
        left,
        right,
    ):
        shown = ("cosine_72000", "wsd_20000_24000", "wsdcon_3", "wsdcon_18")
        lines = {"annealing": (draw.OURS, "--"), "multi-power": (draw.INK, "-")}
        for name, colour in zip(shown, draw.sequence_of_colours(len(shown))):
            _, data = drawn[size]["annealing"]
            left.plot(data[name]["step"], data[name]["loss"], ".", color=colour, markersize=2,
                      label=name.replace("_", " "))  # fmt: skip
            for law, (line, dashes) in lines.items():
                found, data = drawn[size][law]
                columns = {c.name: data[name]["columns"][c.name] for c in found.law.columns}
                draw.curve(left, data[name]["step"], found.predict(columns), line, dashes=dashes, width=0.9)
        for law, (line, dashes) in lines.items():
            left.plot([], [], dashes, color=line, label=law)
        least = min(data[name]["loss"].min() for name in shown)
        left.set(xlabel="Updates", ylabel="Training loss, nats per token", xscale="log")
        left.set(ylim=(least - 0.05, least + 0.75), title=f"Four of six test curves, {size} parameters")
        left.legend(fontsize=7)
        for law, (line, _) in lines.items():
            for at, name in enumerate(TEST):
                for of in drawn:
                    rows = test[(test["law"] == law) & (test["curve"] == name) & (test["size"] == of)]
                    filled = {} if of == size else {"markerfacecolor": "white"}
                    label = law if at == 0 and of == size else None
                    right.plot(rows["RMSE"], [at], "o", color=line, label=label, markersize=5, **filled)
        right.set_yticks(range(len(TEST)), [name.replace("_", " ") for name in TEST])
        right.set(xscale="log", xlabel=f"Root mean squared error, nats per token (filled: {size})")
        right.set_title("Error on each test curve")
        right.legend(fontsize=7)
        plain_ticks(left, right, (0.002, 0.005, 0.01, 0.02))
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="annealing-law/curves",
        paper=PAPER,
        summary="The annealing law on the multi-power law's curves and split, both compared by held-out error.",
        measurements=analyse,
    )
]
