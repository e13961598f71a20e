"""The figure of a transfer experiment: loss against learning rate by size, and the best rate against size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from experiments.transfer import Family, Valley
from lab.report import figure as draw
from lab.report.findings import Finding

COLUMNS = 3
WIDTH, HEIGHT = 3.6, 3.3  # of a panel, inches
FAMILY_COLOURS = (draw.PUBLISHED, draw.OURS, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = "osD^vP"


def figure(stem: Path, title: str, subtitle: str, found: Sequence[Family], findings: Sequence[Finding]) -> Path:
    """Writes stem.png and stem.svg, returns the first: a panel for each family, and one of best rates for all."""
    with draw.style():
        columns = min(COLUMNS, len(found) + 1)
        rows = -(-(len(found) + 1) // columns)
        wrap = int(52 * columns)
        below, above = draw.caption_height(findings, wrap) + 0.3, 0.8
        width, height = WIDTH * columns, HEIGHT * rows + below + above
        canvas, panels = draw.plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
        canvas.subplots_adjust(
            left=0.65 / width, right=1 - 0.15 / width, wspace=0.28, hspace=0.42,
            top=1 - above / height, bottom=(below + 0.5) / height,
        )  # fmt: skip
        canvas.text(0.02, 1 - 0.12 / height, title, size=12, weight="bold", va="top")
        canvas.text(0.02, 1 - 0.38 / height, subtitle, size=8.5, color=draw.FAINT, va="top")
        places = panels.ravel()
        for axes, family in zip(places, found):
            losses(axes, family)
        best(places[len(found)], found)
        for axes in places[len(found) + 1 :]:
            axes.set_axis_off()
        draw.caption(canvas, findings, below - 0.05, wrap)
    return draw.save(canvas, stem)[0]


def losses(axes: Axes, family: Family) -> None:
    """Seed means, the parabola of each size where it was fitted, its lowest point as a diamond."""
    colours = draw.sequence_of_colours(len(family.valleys))
    for valley, colour in zip(family.valleys, colours):
        trained = np.isfinite(valley.log_loss)
        tried = valley.knob[trained], np.exp(valley.log_loss[trained])
        axes.plot(*tried, "o", color=colour, markersize=3.5, label=f"{valley.group[0]:,g}")
        if valley.reason:
            axes.plot(*tried, ":", color=colour, linewidth=0.8)
            continue
        x, y = _parabola(valley)
        draw.curve(axes, np.exp(x), np.exp(y), colour, width=1.2)
        face = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.5, "markersize": 6.5}
        axes.plot(np.exp(valley.at), np.exp(valley.least), "D", zorder=5, **face)
    axes.set(xscale="log", xlabel="Learning rate", ylabel="Loss, nats per token")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{family.name}: slope {_number(family.slope)}", fontsize=9)
    axes.legend(title=_named(family.size), title_fontsize=8, fontsize=7.5, labelspacing=0.25, handletextpad=0.2)
    _to_the_point(axes, family)


def _to_the_point(axes: Axes, family: Family) -> None:
    """The y axis without the highest losses, which would flatten the valleys."""
    losses = [np.exp(v.log_loss[np.isfinite(v.log_loss)]) for v in family.valleys]
    low = min(loss.min() for loss in losses)
    high = max(np.sort(loss)[: max(3, len(loss) - 1)].max() for loss in losses)
    axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))


def _parabola(valley: Valley) -> tuple[np.ndarray, np.ndarray]:
    """ln rate and ln loss of the fitted parabola, which its points determine."""
    near = np.isfinite(valley.fitted)
    at = np.log(valley.knob[near])
    x = np.linspace(at[0], at[-1], 60)
    return x, np.polyval(np.polyfit(at - valley.at, valley.fitted[near], 2), x - valley.at)


def best(axes: Axes, found: Sequence[Family]) -> None:
    """Best rate with its interval and the fitted power law; sizes relative to the smallest where families differ."""
    sizes = {family.size for family in found}
    for family, colour, mark in zip(found, FAMILY_COLOURS, MARKS):
        rows = family.optima[np.isfinite(family.optima["best"])]
        if rows.empty:
            continue
        size = rows[family.size].to_numpy(float)
        x, best = size / (1.0 if len(sizes) == 1 else family.optima[family.size].min()), rows["best"].to_numpy(float)
        draw.points(axes, x, best, rows["low"], rows["high"], colour, f"{family.name}: {_number(family.slope)}", mark)
        if np.isfinite(family.slope.value):
            centre = np.exp(np.log(best).mean() + family.slope.value * (np.log(x) - np.log(x).mean()))
            draw.curve(axes, x, centre, colour, dashes="--", width=1.1)
    axes.set(xscale="log", yscale="log", ylabel="Best learning rate")
    axes.set_xlabel(_named(sizes.pop()) if len(sizes) == 1 else "Size over the smallest")
    axes.set_title("Best rate; its slope, 95 % interval", fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: draw.compact(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(FuncFormatter(lambda value, _: f"{value:.3g}" if _leads(value) else ""))
    marks = sorted({float(x) for line in axes.get_lines() for x in np.asarray(line.get_xdata(), float)})
    axes.set_xticks(marks, minor=False)
    draw.legend_above(axes)


def _leads(value: float) -> bool:
    """Whether a tick of a logarithmic axis is 1, 2 or 5 times a power of ten."""
    return round(value / 10 ** np.floor(np.log10(value) + 1e-9)) in (1, 2, 5)


def _named(size: str) -> str:
    return size.split(".")[-1].replace("_", " ")


def _number(slope) -> str:
    """The slope and its interval."""
    if not np.isfinite(slope.value):
        return "(none)"
    ends = f" [{slope.interval.low:.2f}, {slope.interval.high:.2f}]" if slope.interval.known else ""
    return f"{slope.value:.2f}{ends}"
