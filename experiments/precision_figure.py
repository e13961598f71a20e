"""Figures of the low-precision experiments: pairs of losses, tensors over training, tensors at initialization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import tensors
from lab.models.precision import POLICIES
from lab.report import figure as draw
from lab.report.findings import Finding

KINDS = {"weight": "Weights", "activation": "Activations", "gradient": "Gradients"}
PARTS = {"attention": "#0072B2", "mlp": "#D55E00"}


def frame(findings: Sequence[Finding], title: str, subtitle: str, rows: int, columns: int):
    """(figure, panels [rows, columns], height of the caption)."""
    below = draw.caption_height(findings) + 0.2
    height = 3.1 * rows + 0.9 + below
    figure, panels = draw.plt.subplots(rows, columns, figsize=(10.4, height), squeeze=False)
    figure.subplots_adjust(
        left=0.08, right=0.97, wspace=0.26, hspace=0.38, top=1 - 0.9 / height, bottom=(below + 0.5) / height
    )
    figure.text(0.02, 1 - 0.12 / height, title, size=12, weight="bold", va="top")
    figure.text(0.02, 1 - 0.38 / height, subtitle, size=8.5, color=draw.FAINT, va="top")
    return figure, panels, below - 0.05


def training_figure(found: Any, cast: Any, run: Any, findings: Sequence[Finding], stem: Path, subtitle: str) -> Path:
    """Loss in FP8 over the reference's by width, and the RMS of every operand over training against FP8's range.

    Args:
      found: pairs, as of `tensors.relative`.
      cast: operands of one run, as of `tensors.operands`.
      run: that run's row of the results table.
    """
    with draw.style():
        figure, panels, below = frame(findings, "u-muP in FP8, out of the box", subtitle, 2, 2)
        _pairs(panels[0][0], found)
        for axes, (kind, title) in zip(panels.ravel()[1:], KINDS.items()):
            name = POLICIES["fp8"].format(kind)
            _over_training(axes, cast[cast["kind"] == kind], name, int(run["run.batch_tokens"]))
            axes.set_title(f"{title}: RMS against {tensors.NAMES[name]}, width {run['model.width']}")
        draw.caption(figure, findings, below)
    return draw.save(figure, stem)[0]


def _pairs(axes, found: Any) -> None:
    widths = sorted(found["model.width"].unique())
    axes.axhspan(-1, 1, color="#009E73", alpha=0.10, linewidth=0, label="within 1 %")
    axes.axhline(0, color=draw.FAINT, linewidth=0.8)
    for best, mark, label in ((False, {"markerfacecolor": "white"}, "other rates"), (True, {}, "at the best rate")):
        rows = found[found["best"] == best]
        if len(rows):
            place = np.array([widths.index(w) for w in rows["model.width"]]) + 0.05 * (rows["run.seed"] - 0.5)
            axes.plot(place, 100 * rows["relative"], "o", color=draw.OURS, markersize=5, label=label, **mark)
    finite = 100 * found["relative"][np.isfinite(found["relative"])].abs()
    reach = 1.6 * max(1.0, finite.max() if len(finite) else 1.0)
    axes.set(ylim=(-reach, reach), xlim=(-0.5, len(widths) - 0.5), xlabel="Width", ylabel="Loss over reference, %")
    axes.set_xticks(range(len(widths)), [f"{width:,}" for width in widths])
    axes.set_title("Loss in FP8 over the reference's, less 1")
    axes.legend(loc="upper left", ncols=3)


def _over_training(axes, rows: Any, name: str, batch_tokens: int) -> None:
    tensors.range_bands(axes, name)
    for (tensor, layer), line in rows.groupby(["tensor", "layer"]):
        part = tensor.split("/")[1]
        first = layer == 0
        draw.curve(
            axes, line["step"] * batch_tokens, line["rms"], PARTS[part], dashes="-" if first else "--", width=0.9
        )
    tokens = sorted(rows["step"].unique() * batch_tokens)
    axes.set_xscale("symlog", linthresh=tokens[1], linscale=0.4)
    axes.set_yscale("log", base=2)
    axes.set(xlim=(0, tokens[-1]), xlabel="Tokens trained on", ylabel="RMS")
    shown = [0, *(t for t in axes.get_xticks() if tokens[1] <= t <= tokens[-1])]
    axes.set_xticks(shown, [draw.compact(t) for t in shown])
    axes.minorticks_off()
    for part, colour in PARTS.items():
        axes.plot([], [], "-", color=colour, linewidth=1.2, label=part)
    axes.plot([], [], "--", color=draw.INK, linewidth=0.9, label="later layers")
    _, least, largest = tensors.limits(name)
    axes.text(tokens[-1], largest, "largest ", ha="right", va="top", size=7.5, color=draw.FAINT)
    axes.text(tokens[-1], least, "subnormal below ", ha="right", va="top", size=7.5, color=draw.FAINT)
    axes.legend(loc="upper left", ncols=3, bbox_to_anchor=(0, 0.93))


def initial_figure(
    found: Mapping[str, Any], spread: Any, findings: Sequence[Finding], stem: Path, subtitle: str
) -> Path:
    """Losses by precision, and histograms of the RMS of tensors at initialization, each parametrization.

    Args:
      found: precision -> pairs with a `parametrization.name`, as of `tensors.relative`.
      spread: statistics before the first update, with a column `parametrization`.
    """
    with draw.style():
        figure, panels, below = frame(findings, "Unit scaling in low precision", subtitle, 2, 2)
        _degradation(panels[0][0], found)
        for axes, (kind, title) in zip(panels.ravel()[1:], KINDS.items()):
            _histogram(axes, spread[spread["kind"] == kind], POLICIES["fp8"].format(kind))
            axes.set_title(f"{title} at initialization")
        draw.caption(figure, findings, below)
    return draw.save(figure, stem)[0]


SCALINGS = {"standard": "#8a8a8a", "unit": "#0072B2"}


def _degradation(axes, found: Mapping[str, Any]) -> None:
    axes.axhspan(-1, 1, color="#009E73", alpha=0.10, linewidth=0, label="within 1 %")
    axes.axhline(0, color=draw.FAINT, linewidth=0.8)
    largest = 1.0
    for i, (_, pairs) in enumerate(found.items()):
        best = pairs[pairs["best"]]
        for j, (name, colour) in enumerate(SCALINGS.items()):
            rows = best[best["parametrization.name"] == name]
            place = i + 0.24 * (j - 0.5) + 0.03 * (rows["run.seed"] - 1)
            axes.plot(place, 100 * rows["relative"], "o", color=colour, markersize=5, label=name if not i else None)
            finite = rows["relative"][np.isfinite(rows["relative"])]
            largest = max(largest, 100 * finite.abs().max() if len(finite) else 1.0)
    axes.set(
        ylim=(-1.6 * largest, 1.6 * largest), xlim=(-0.5, len(found) - 0.5), ylabel="Loss over full precision's, %"
    )
    axes.set_xticks(range(len(found)), [name.upper() for name in found])
    axes.set_title("Loss in low precision over full precision's, less 1")
    axes.legend(loc="upper left", ncols=3)


def _histogram(axes, rows: Any, name: str) -> None:
    tiny, least, largest = (np.log2(x) for x in tensors.limits(name))
    axes.axvspan(least, largest, color="#009E73", alpha=0.10, linewidth=0, label=f"{tensors.NAMES[name]} normal")
    axes.axvspan(tiny, least, color="#E69F00", alpha=0.14, linewidth=0, label="subnormal")
    values = np.log2(rows["rms"])
    bins = np.arange(np.floor(values.min()) - 0.5, np.ceil(values.max()) + 1.5, 1.0)
    mine = [np.log2(rows.loc[rows["parametrization"] == scaling, "rms"]) for scaling in SCALINGS]
    axes.hist(mine, bins, color=list(SCALINGS.values()), label=list(SCALINGS), zorder=3, rwidth=0.85)
    axes.set(xlabel="log2 of the RMS", ylabel="Tensors", xlim=(min(bins[0], tiny - 1), max(bins[-1], largest + 1)))
    axes.legend(loc="upper right")
