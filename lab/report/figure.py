"""The house style of figures, and the marks that every law figure needs. Axes and arrays in, artists out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from lab.report.findings import Finding  # noqa: E402

INK, FAINT = "#222222", "#8a8a8a"
PUBLISHED = "#D55E00"
VERDICT_COLOURS = {"holds": "#00785a", "contradicted": "#b03a2e", "inconclusive": "#8a6d00"}
OURS = "#0072B2"

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.hashsalt": "windtunnel",
    "svg.fonttype": "none",
}


@contextmanager
def style() -> Iterator[None]:
    """The house style inside the block."""
    with plt.rc_context(STYLE):
        yield


def sequence_of_colours(count: int) -> list[tuple]:
    """Colours for an ordered series, light to dark, told apart by the colour-blind and in grey (viridis, ends cut)."""
    return [plt.get_cmap("viridis")(x) for x in np.linspace(0.82, 0.08, count)]


def points(
    axes: Axes, x, y, low=None, high=None, colour: str | tuple = OURS, label: str | None = None, marker: str = "o"
) -> None:
    """Measured points with error bars; low, high [K] are ends of intervals, NaN: no bar, infinite: an arrow."""
    x, y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    if low is not None:
        low, high = np.atleast_1d(np.asarray(low, float)), np.atleast_1d(np.asarray(high, float))
        bars = np.stack([np.where(np.isfinite(low), y - low, 0.0), np.where(np.isfinite(high), high - y, 0.0)])
        opened = np.isposinf(high)
        axes.errorbar(x, y, np.maximum(bars, 0.0), fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5, zorder=3)
        for at, value in zip(x[opened], y[opened]):
            axes.annotate("", (at, value * 1.6), (at, value), arrowprops={"arrowstyle": "->", "color": colour})
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    axes.plot(x, y, marker, color=colour, markersize=6, label=label, zorder=4, **edge)


def censored_points(axes: Axes, x, y, colour: str | tuple = OURS, label: str | None = None) -> None:
    """Lower bounds: open triangles that point to where the truth lies."""
    open_face = {"markerfacecolor": "white", "markeredgecolor": colour, "markersize": 6}
    axes.plot(x, y, "^", linestyle="none", label=label, zorder=4, **open_face)


def curve(axes: Axes, x, y, colour: str | tuple = OURS, label: str | None = None, dashes: str = "-", width=1.6) -> None:
    """A fitted or published law."""
    axes.plot(x, y, dashes, color=colour, label=label, linewidth=width, zorder=2)


def band(axes: Axes, x, low, high, colour: str | tuple = OURS, label: str | None = None) -> None:
    """The interval of a law."""
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, label=label, zorder=1)


def legend_above(axes: Axes, columns: int = 1, line: float = 0.058) -> None:
    """Legend at the top, the logarithmic y axis stretched so that no mark lies under it."""
    count = -(-sum(label.count("\n") + 1 for label in axes.get_legend_handles_labels()[1]) // columns)
    low, high = axes.get_ylim()
    axes.set_ylim(low, low * (high / low) ** (1.0 / (1.0 - min(line * count, 0.6))))
    axes.legend(loc="upper left" if columns == 1 else "upper right", labelspacing=0.35, ncols=columns)


def compact(value: float) -> str:
    """1500 -> "1.5k", 2000000 -> "2M"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def verdict_lines(findings: Sequence[Finding], width: int = 150) -> list[tuple[str, str, str]]:
    """(verdict, colour, wrapped text) per finding, for a caption."""
    lines = []
    for finding in findings:
        text = textwrap.fill(f"{finding.claim.text}. {finding.reason}", width)
        lines.append((finding.verdict, VERDICT_COLOURS[finding.verdict], text))
    return lines


def caption(figure: Figure, findings: Sequence[Finding], top: float, width: int = 150) -> None:
    """Verdicts under the panels, from height `top` (inches from the bottom) down."""
    height, step = figure.get_figheight(), 0.155
    at = top
    for verdict, colour, text in verdict_lines(findings, width):
        figure.text(0.02, at / height, verdict.upper(), color=colour, fontsize=7.5, weight="bold", va="top")
        figure.text(0.115, at / height, text, color=INK, fontsize=7.5, va="top", linespacing=1.25)
        at -= step * (text.count("\n") + 1) + 0.06


def caption_height(findings: Sequence[Finding], width: int = 150) -> float:
    """Inches that `caption` needs."""
    return sum(0.155 * (text.count("\n") + 1) + 0.06 for _, _, text in verdict_lines(findings, width))


def save(figure: Figure, stem: str | Path) -> tuple[Path, Path]:
    """Writes stem.png and stem.svg, whole or not at all, the same bytes for the same figure; closes it."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        path = stem.with_name(stem.name + suffix)
        beside = path.with_name(f".{path.name}.part")
        try:
            with plt.rc_context(STYLE):
                figure.savefig(beside, format=suffix[1:], metadata=metadata)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        written.append(path)
    plt.close(figure)
    return written[0], written[1]
