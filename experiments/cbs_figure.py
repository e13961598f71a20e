"""The figure of one panel: steps to target with the fitted overhead law, and B* against size or tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from experiments.cbs_analysis import Analysis
from experiments.cbs_claims import PAPER_SEQUENCE
from lab.report import figure as draw
from lab.report.findings import Finding

_FAR = 1.5
"""Published line this factor from ours (in the middle): its slope is drawn through our points as well."""


def panel_figure(analysis: Analysis, stem: str | Path, subtitle: str = "") -> tuple[Path, Path]:
    """Writes stem.png and stem.svg and returns their paths. `subtitle`: corpus, scale, cost."""
    with draw.style():
        below = draw.caption_height(analysis.findings) + 0.2
        height = 4.9 + below
        figure, (left, right) = draw.plt.subplots(1, 2, figsize=(10.4, height))
        figure.subplots_adjust(
            left=0.07, right=0.93, wspace=0.3, top=1 - 0.85 / height, bottom=(below + 0.55) / height
        )
        title = "Critical batch size: " + analysis.panel.title.lower()
        figure.text(0.02, 1 - 0.12 / height, title, size=12, weight="bold", va="top")
        if subtitle:
            figure.text(0.02, 1 - 0.38 / height, subtitle, size=8.5, color=draw.FAINT, va="top")
        _overhead_curves(left, analysis)
        _law(right, analysis)
        draw.caption(figure, analysis.findings, below - 0.05)
    return draw.save(figure, stem)


def comparison_figure(
    fixed_model: Analysis, fixed_data: Analysis, finding: Finding, stem: str | Path, subtitle: str = ""
) -> tuple[Path, Path]:
    """B* against tokens at one size beside B* against size at one amount of data, on one scale."""
    with draw.style():
        below = draw.caption_height([finding]) + 0.2
        height = 4.9 + below
        figure, panels = draw.plt.subplots(1, 2, figsize=(10.4, height), sharey=True)
        top, bottom = 1 - 0.85 / height, (below + 0.55) / height
        figure.subplots_adjust(left=0.095, right=0.94, wspace=0.3, top=top, bottom=bottom)
        figure.text(0.02, 1 - 0.12 / height, "Critical batch size: data or size", size=12, weight="bold", va="top")
        if subtitle:
            figure.text(0.02, 1 - 0.38 / height, subtitle, size=8.5, color=draw.FAINT, va="top")
        for axes, analysis in zip(panels, (fixed_model, fixed_data)):
            _law(axes, analysis)
            axes.set_title(analysis.panel.title)
        draw.caption(figure, [finding], below - 0.05)
    return draw.save(figure, stem)


def _overhead_curves(axes: Axes, analysis: Analysis) -> None:
    settings, groups = analysis.settings, analysis.groups
    measured = np.concatenate([g.cells["batch_sequences"].to_numpy(float) for g in groups])
    grid = np.geomspace(measured.min() / 1.3, measured.max() * 1.3, 200)
    missed = False
    for group, colour in zip(groups, draw.sequence_of_colours(len(groups))):
        cells = group.cells
        bound = cells["censored"].to_numpy(bool)
        batch, steps = cells["batch_sequences"].to_numpy(float), cells["steps"].to_numpy(float)
        axes.plot(batch[~bound], steps[~bound], "o", color=colour, markersize=4, zorder=3, label=group.label)
        if bound.any():
            draw.censored_points(axes, batch[bound], steps[bound], colour)
            missed = True
        if group.fit is None:
            continue
        draw.curve(axes, grid, group.fit.steps(grid), colour)
        linear = group.fit.steps(settings.reference_sequences) * settings.reference_sequences / grid
        draw.curve(axes, grid, linear, colour, dashes=":", width=0.9)
        if group.usable and group.critical < grid[-1] * 4:
            axes.plot(
                group.critical, group.fit.steps(group.critical), "D", markerfacecolor="white", markeredgecolor=colour,
                markeredgewidth=1.6, markersize=7, zorder=5,
            )
    axes.axvline(settings.reference_sequences, color=draw.FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.text(
        settings.reference_sequences, 0.02, " reference", rotation=90, color=draw.FAINT, size=7.5, ha="right",
        transform=axes.get_xaxis_transform(),
    )
    if missed:
        draw.censored_points(axes, [], [], draw.INK, "target not reached (bound)")
    axes.plot([], [], "-", color=draw.INK, label="ln S = ln(a + b/B)")
    axes.plot([], [], ":", color=draw.INK, linewidth=0.9, label="linear scaling")
    label = f"B*: {settings.overhead:.0%} above linear"
    axes.plot([], [], "D", markerfacecolor="white", markeredgecolor=draw.INK, label=label)
    axes.set(xscale="log", yscale="log", xlabel=f"Batch size, sequences of {analysis.sequence_length:g} tokens")
    axes.set_ylabel("Updates to target loss")
    axes.set_title("Updates to target")
    _plain_ticks(axes.xaxis)
    draw.legend_above(axes, columns=2)


def _law(axes: Axes, analysis: Analysis) -> None:
    kind, law = analysis.panel, analysis.law
    usable = [g for g in analysis.groups if g.usable]
    symbol, words = {"parameters": ("N", "Non-embedding parameters"), "tokens": ("D", "Training tokens")}[kind.variable]
    axes.set(xscale="log", yscale="log", xlabel=f"{words} {symbol}, millions")
    axes.set_ylabel(f"Critical batch size B*, sequences of {analysis.sequence_length:g} tokens")
    axes.set_title("Critical batch size")
    if not usable:
        nothing = "no critical batch size was identified"
        axes.text(0.5, 0.5, nothing, transform=axes.transAxes, ha="center", color=draw.FAINT)
        return
    x = np.array([analysis.x(g) for g in usable])
    stars = np.array([g.critical for g in usable])
    grid = np.geomspace(x.min() / 1.35, x.max() * 1.35, 100)
    if law.law:
        draw.band(axes, grid, *law.band(grid))
        draw.curve(axes, grid, law.law(grid), label=f"ours: {_formula(law, symbol)}")
    if analysis.limit_law.law:
        limit = np.array([g.limit for g in usable])
        draw.curve(axes, grid, analysis.limit_law.law(grid), "#56B4E9", dashes="-.", width=1.1,
                   label=f"small-batch limit: {_formula(analysis.limit_law, symbol)}")
        axes.plot(x, limit, "s", color="#56B4E9", markersize=3.5, zorder=3)
    scales = [(analysis.x(g), analysis.noise[g.label]) for g in analysis.groups if g.label in analysis.noise]
    scales = [(at, scale) for at, scale in scales if np.isfinite(scale.sequences)]
    if scales:
        draw.points(
            axes, [at for at, _ in scales], [s.sequences for _, s in scales], [s.interval.low for _, s in scales],
            [s.interval.high for _, s in scales], "#CC79A7", "gradient noise scale", "P",
        )
    _published(axes, analysis, grid, symbol)
    intervals = [g.critical_interval for g in usable]
    label = f"ours: B*, {analysis.settings.level:.0%} interval"
    draw.points(axes, x, stars, [i.low for i in intervals], [i.high for i in intervals], label=label)
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)
    tokens = axes.secondary_yaxis(
        "right", functions=(lambda b: b * analysis.sequence_length, lambda t: t / analysis.sequence_length)
    )
    tokens.set_ylabel("tokens", color=draw.FAINT)
    tokens.tick_params(colors=draw.FAINT, which="both")
    tokens.spines["right"].set_visible(False)
    tokens.yaxis.set_major_formatter(FuncFormatter(lambda value, _: draw.compact(value)))
    tokens.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: draw.compact(v) if _leading(v) in (2, 5) else ""))
    draw.legend_above(axes)


def _published(axes: Axes, analysis: Analysis, grid: np.ndarray, symbol: str) -> None:
    """The published law in our sequences; far from our points also its slope through them."""
    published = analysis.panel.law
    line = published.tokens(grid) / analysis.sequence_length
    formula = f"{published.coefficient:.4g} {symbol}$^{{{published.exponent:.3g}}}$"
    where = "" if analysis.sequence_length == PAPER_SEQUENCE else f" (sequences of {PAPER_SEQUENCE})"
    recalled = ", recalled" if published.recalled else ""
    stars = np.array([g.critical for g in analysis.groups if g.usable])
    x = np.array([analysis.x(g) for g in analysis.groups if g.usable])
    centre_x, centre = np.exp(np.log(x).mean()), np.exp(np.log(stars).mean())
    ratio = published.tokens(centre_x) / analysis.sequence_length / centre
    if 1 / _FAR < ratio < _FAR:
        draw.curve(axes, grid, line, draw.PUBLISHED, f"published: {formula}{where}{recalled}", "--")
        return
    draw.curve(axes, grid, centre * (grid / centre_x) ** published.exponent, draw.PUBLISHED,
               f"published slope {published.exponent:.3g} through our points{recalled}", "--")
    if 1 / 30 < ratio < 30:
        draw.curve(axes, grid, line, draw.PUBLISHED, f"published law extrapolated: {formula}{where}", ":", 1.2)
    else:
        text = f"published law extrapolated, {formula}{where},\nlies at {ratio:.2g} times ours: off the axes"
        axes.plot([], [], " ", label=text)


def _formula(law, symbol: str) -> str:
    interval = law.exponent_interval
    ends = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval.known else " (no interval)"
    return f"{law.coefficient:.4g} {symbol}$^{{{law.exponent:.3f}}}${ends}"


def _plain_ticks(axis) -> None:
    """Numbers instead of powers of ten on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    low, high = axis.get_view_interval()
    if high / low < 30:
        axis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}" if _leading(v) in (2, 5) else ""))
    else:
        axis.set_minor_formatter(NullFormatter())


def _leading(value: float) -> int:
    return round(value / 10 ** np.floor(np.log10(value) + 1e-9))
