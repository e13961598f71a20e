"""From results to a panel's analysis: which runs make a group, where the learning rate needs more tuning, what is said.

The sweeps' settings are what `critical_batch_size.sweep` wrote: reference batch, D or horizons, learning rates.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import cbs_analysis, cbs_cells, cbs_figure
from experiments.cbs_claims import PAPER_REFERENCE_TOKENS, PAPER_SEQUENCE
from experiments.critical_batch_size import TOKENS_PER_PARAMETER
from lab.report.text import quantity
from lab.sweep.axes import Point
from lab.sweep.experiment import Analysis, Results, edge_points


def part(panel: str, results: Results) -> Results:
    """The runs of one of the panels that were swept together, with that panel's settings."""
    settings, table = results.settings[panel], results.table
    sizes = zip(table["model.width"], table["model.depth"])
    mine = np.array([size in settings["models"] for size in sizes])
    mine &= table["schedule.warmup_tokens"] == settings["warmup_tokens"]
    return Results(table[mine], results.evaluations, settings)


def groups(panel: str, results: Results) -> list[Any]:
    """The overhead curves of a panel: one per size, or one per horizon of the one size."""
    settings, found = results.settings, sorted(set(results.table["parameters"]))
    if settings["horizons"]:
        return [cbs_cells.Group(f"D = {quantity(tokens)}", found[0], tokens) for tokens in settings["horizons"]]
    fixed = settings["tokens"]
    return [cbs_cells.Group(f"N = {quantity(n)}", n, fixed or TOKENS_PER_PARAMETER * n) for n in found]


def cells(panel: str, results: Results) -> Any:
    """Steps to target by group, batch size and seed."""
    return cbs_cells.cells_from_runs(
        results.table, results.evaluations, groups(panel, results), results.settings["reference_tokens"]
    )


def extend(panel: str, results: Results) -> list[Point]:
    """One more learning rate where the best one of a size, horizon and batch size lies on the edge of its grid.

    All seeds get it. The limits are a factor of eight about the centre of the grid.
    """
    results = with_columns(results)
    runs, points = results.table, []
    by_cell = runs.groupby(["parameters", "run.batch_tokens"])
    tried = {key: sorted(set(rows["optimizer.learning_rate"])) for key, rows in by_cell}
    for _, rows in cells(panel, results).table.groupby("group"):
        best = {key: cell["learning_rate"].iloc[0] for key, cell in rows.groupby(["parameters", "batch_tokens"])}
        for key, rate in edges(best, tried, results.settings).items():
            for _, row in runs[(runs["parameters"] == key[0]) & (runs["run.batch_tokens"] == key[1])].iterrows():
                keys = [k for k in row.index if k.startswith(("model.", "run.", "schedule."))]
                points.append({**{k: plain(row[k]) for k in keys}, "optimizer.learning_rate": rate})
    return points


def extend_parts(results: Results) -> list[Point]:
    """The same for panels that were swept together."""
    return [point for panel in results.settings for point in extend(panel, part(panel, results))]


def edges(best: dict, tried: dict, settings: Any) -> dict:
    """The next learning rate of each cell whose best one is on an edge."""
    further = {}
    for key in best:
        centre = settings["centre"] * (key[1] / settings["reference_tokens"]) ** settings["power"]
        further.update(edge_points({key: best[key]}, {key: tried[key]}, (centre / 8, centre * 8)))
    return further


def plain(value: Any) -> Any:
    """A table's number as a Python number."""
    return value.item() if hasattr(value, "item") else value


def with_columns(results: Results) -> Results:
    """The table with the columns that the cells are made from."""
    table = results.table.assign(
        parameters=results.table["parameters.non_embedding"], sequence_length=results.table["model.sequence_length"]
    )
    return dataclasses.replace(results, table=table[table["status"].isin(["finished", "diverged"])])


def analyse(panel: str, results: Results) -> Analysis:
    """Cells, overhead fits, power law, noise scale, verdicts."""
    analysis, made = analyse_panel(panel, results)
    return conclude(analysis, made, f"{results.table['data.corpus'].iloc[0]}, {len(results.table)} runs")


def analyse_panel(panel: str, results: Results) -> tuple[Any, Any]:
    """A panel's analysis, and the cells it rests on."""
    results = with_columns(results)
    made = cells(panel, results)
    length = int(results.table["sequence_length"].iloc[0])
    settings = cbs_analysis.Settings(results.settings["reference_tokens"] / length)
    return cbs_analysis.analyse(made, panel, settings, probes(panel, results, made.table), caveats(results)), made


def compare(results: Results) -> Analysis:
    """Whether B* follows the data rather than the size: one exponent less the other."""
    grown, sized = (analyse_panel(panel, part(panel, results))[0] for panel in ("fixed-model", "fixed-data"))
    finding = cbs_analysis.compare_panels(grown, sized)
    exponents = pd.DataFrame(
        {
            "panel": a.panel.title,
            "variable": a.panel.variable,
            "exponent": a.law.exponent,
            "low": a.law.exponent_interval.low,
            "high": a.law.exponent_interval.high,
            "published": a.panel.law.exponent,
        }
        for a in (grown, sized)
    )
    subtitle = f"{results.table['data.corpus'].iloc[0]}, {len(results.table)} runs"
    draw = lambda stem: Path(cbs_figure.comparison_figure(grown, sized, finding, stem, subtitle)[0])  # noqa: E731
    return Analysis([finding], {"exponents": exponents}, (*grown.notes, *sized.notes), draw)


def conclude(analysis: Any, made: Any, subtitle: str) -> Analysis:
    """The panel's tables, notes and figure as a report takes them."""
    groups = cbs_analysis.group_table(analysis)
    tables = {"critical_batch": groups, "sensitivity": analysis.sensitivity, "cells": made.table}
    draw = lambda stem: Path(cbs_figure.panel_figure(analysis, stem, subtitle)[0])  # noqa: E731
    return Analysis(analysis.findings, tables, (*laws(analysis), *analysis.notes), draw)


def laws(analysis: Any) -> list[str]:
    """The fitted power laws as formulas, constants with their intervals."""
    symbol = "N" if analysis.panel.variable == "parameters" else "D"

    def formula(law: Any) -> str:
        c, p = law.coefficient_interval, law.exponent_interval
        ends = [f" [{i.low:.4g}, {i.high:.4g}]" if i.known else "" for i in (c, p)]
        return f"B* = {law.coefficient:.2f}{ends[0]} {symbol}^{law.exponent:.3f}{ends[1]}"

    unit = f"sequences of {analysis.sequence_length:g} tokens, {symbol} in millions"
    named = (("", analysis.law), ("in the limit of small batches ", analysis.limit_law))
    found = [f"{name}{formula(law)} ({unit})" for name, law in named if law.law]
    noise = analysis.noise_law
    if noise:
        found.append(f"gradient noise scale: {noise.coefficient:.3g} {symbol}^{noise.exponent:.3f} ({unit})")
    return found


def probes(panel: str, results: Results, table: Any) -> Any:
    """Gradient-noise probes per group: the reference batch's best runs, over the second half of the way to D."""
    rows = []
    for group in groups(panel, results):
        mine = table[(table["group"] == group.label) & (table["batch_tokens"] == results.settings["reference_tokens"])]
        if mine.empty:
            continue
        chosen = results.table[
            (results.table["parameters"] == group.parameters)
            & (results.table["run.batch_tokens"] == results.settings["reference_tokens"])
            & (results.table["optimizer.learning_rate"] == mine["learning_rate"].iloc[0])
        ]
        for _, run in chosen.iterrows():
            curve = results.evaluations(run["run"])
            curve = curve[(curve["tokens"] >= group.tokens / 2) & (curve["tokens"] <= 1.01 * group.tokens)]
            sums = np.diff(curve[["noise_difference", "noise_product", "noise_probes"]].to_numpy(), axis=0)
            half = run["microbatch_tokens"] // run["sequence_length"] // 2
            rows += [(group.label, d / n, p / n, half) for d, p, n in sums if n > 0 and half]
    columns = ["group", "squared_difference", "inner_product", "half_sequences"]
    return pd.DataFrame(rows, columns=columns) if rows else None


def caveats(results: Results) -> list[str]:
    """Sentences that belong to every verdict."""
    most = results.table["epochs"].max()
    return [f"the longest run passes over the corpus {most:.1f} times"] if most > 1 else []


def published(panel: str, path: Path) -> Analysis:
    """The authors' own steps to target through the same analysis."""
    made = cbs_cells.read_published(path)
    settings = cbs_analysis.Settings(PAPER_REFERENCE_TOKENS / PAPER_SEQUENCE)
    return conclude(cbs_analysis.analyse(made, panel, settings), made, "the authors' steps to target")
