"""The figure of `init-theory/signal`: stream and gradient over width and over depth, theory as lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.init_theory import GRADIENT_EXPONENT, NAMES
from lab.report import figure as draw
from lab.report.findings import Finding

MARKERS = dict(zip(NAMES, "osD"))
COLOURS = dict(zip(NAMES, ("#0072B2", "#56B4E9", "#CC79A7")))


def signal_figure(found: Any, rows: Any, findings: Sequence[Finding], stem: Path, subtitle: str) -> Path:
    """Writes the PNG (and SVG) and returns its path."""
    with draw.style():
        below = draw.caption_height(findings) + 0.2
        height = 6.6 + below
        figure, panels = draw.plt.subplots(2, 2, figsize=(10.4, height))
        figure.subplots_adjust(
            left=0.08, right=0.97, wspace=0.24, hspace=0.36, top=1 - 0.9 / height, bottom=(below + 0.5) / height
        )
        figure.text(0.02, 1 - 0.12 / height, "The signal at initialization", size=12, weight="bold", va="top")
        figure.text(0.02, 1 - 0.38 / height, subtitle, size=8.5, color=draw.FAINT, va="top")
        _over_width(panels[0], found)
        _over_depth(panels[1], rows)
        draw.caption(figure, findings, below - 0.05)
    return draw.save(figure, stem)[0]


def _over_width(panels, found: Any) -> None:
    depth = found["depth"].min()
    last = found[(found["layer"] == depth) & (found["depth"] == depth) & (found["multiplier"] == 1.0)]
    for axes, what in zip(panels, ("stream", "gradient")):
        for name, rows in last.groupby("parametrization"):
            shift = 1.03 ** (list(NAMES).index(name) - 1)  # equal values beside each other, not upon each other
            rms = np.sqrt(rows[what])
            axes.plot(rows["width"] * shift, rms, MARKERS[name], color=COLOURS[name], markersize=5, label=NAMES[name])
            widths = np.array(sorted(rows["width"].unique()), float)
            exponent = 0.0 if what == "stream" else GRADIENT_EXPONENT[name]
            level = np.exp(np.mean(np.log(rms) - exponent * np.log(rows["width"])))
            draw.curve(axes, widths, level * widths**exponent, COLOURS[name], dashes="--", width=1.0)
        axes.set(xscale="log", yscale="log", xlabel="Width")
        axes.set_xticks(sorted(last["width"].unique()), [f"{w}" for w in sorted(last["width"].unique())])
        axes.minorticks_off()
    low, high = np.sqrt(last["stream"].min()), np.sqrt(last["stream"].max())
    panels[0].set(ylim=(low / 1.6, high * 1.6), ylabel="RMS", title="Stream after the last layer, over width")
    ticks = [round(float(t), 2) for t in np.geomspace(low / 1.4, high * 1.4, 5)]
    panels[0].set_yticks(ticks, [f"{t:g}" for t in ticks])
    panels[0].plot([], [], "--", color=draw.INK, linewidth=1.0, label="theory: slope 0")
    panels[1].set(ylabel="RMS", title="Gradient of that stream, over width")
    panels[1].plot([], [], "--", color=draw.INK, linewidth=1.0, label="theory: slopes -1/2 and -1")
    for axes in panels:
        axes.legend(loc="best")


def _over_depth(panels, rows: Any) -> None:
    groups = list(rows.groupby(["depth", "multiplier"]))
    depths = sorted(rows["depth"].unique())
    colours = dict(zip(depths, draw.sequence_of_colours(len(depths))))
    for axes, what in zip(panels, ("stream", "gradient")):
        for (depth, multiplier), group in groups:
            scaled = multiplier == 1.0
            face = colours[depth] if scaled else "white"
            axes.plot(
                group["layer"], group[what], "o", color=colours[depth], markerfacecolor=face, markersize=4.5, zorder=3
            )
            line = group.drop_duplicates("layer").sort_values("layer")
            draw.curve(
                axes, line["layer"], line[f"{what}_theory"], colours[depth], dashes="-" if scaled else "--", width=1.1
            )
        axes.set(yscale="log", xlabel="Layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter(lambda value, _: draw.compact(value))
        axes.yaxis.set_minor_formatter(lambda value, _: draw.compact(value) if f"{value:e}"[0] in "25" else "")
    for depth in depths:
        panels[1].plot([], [], "o", color=colours[depth], label=f"{depth} layer" + "s" * int(depth > 1))
    panels[1].plot([], [], "-", color=draw.INK, linewidth=1.1, label="theory, branches / sqrt(2 x depth)")
    panels[1].plot([], [], "--", color=draw.INK, linewidth=1.1, label="theory, branches not scaled (open marks)")
    panels[1].legend(loc="upper right")
    panels[0].set(ylabel="Variance over the embedding's", title="Stream, layer by layer (standard)")
    panels[1].set(ylabel="Variance over the last layer's", title="Gradient, layer by layer (standard)")
