"""Figures of loss-prediction, cerebras and umup: predictions of the largest, a ladder's residuals, searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, NullFormatter

from lab.report import figure as draw

COLOURS = {"standard": "#D55E00", "mup": "#0072B2", "umup": "#009E73"}
TITLES = {"standard": "Standard parametrization", "mup": "muP", "umup": "u-muP"}
WIDTH = 11.0  # inches


def page(panels: int, height: float, title: str, subtitle: str, findings: Sequence[Any]) -> tuple[Any, Any]:
    """A figure with a row of panels under a title and the verdicts under them."""
    below = draw.caption_height(findings) + 0.75
    figure, axes = draw.plt.subplots(1, panels, figsize=(WIDTH, height + below + 0.9), squeeze=False)
    whole = figure.get_figheight()
    figure.subplots_adjust(0.065, (below + 0.15) / whole, 0.985, 1 - 0.95 / whole, wspace=0.27)
    figure.text(0.02, 1 - 0.1 / whole, title, size=12, weight="bold", va="top")
    figure.text(0.02, 1 - 0.35 / whole, subtitle, size=8.5, color=draw.FAINT, va="top")
    draw.caption(figure, findings, below - 0.45)
    return figure, axes[0]


def plain(axis: Any, form: Any = "{:.3g}".format) -> None:
    """Numbers instead of powers of ten on a logarithmic axis, a few where it spans less than a power."""
    axis.set_major_formatter(draw.plt.FuncFormatter(lambda value, _: form(value)))
    low, high = axis.get_view_interval()
    if high / low < 4:
        axis.set_major_locator(MaxNLocator(6))
    axis.set_minor_formatter(NullFormatter())


def predictions(found: Sequence[Any], findings: Sequence[Any], stem: Path) -> Path:
    """Loss against size with the law of the small widths, one panel a parametrization; the errors beside each other.

    `found`: `experiments.loss_prediction.Prediction` for each parametrization that has one.
    """
    with draw.style():
        figure, panels = page(
            3, 3.2, "Loss of the largest width, predicted from the small ones",
            "one learning rate, tuned at the smallest width; bands: 95 % prediction intervals of a further width",
            findings,
        )  # fmt: skip
        seen = {each.name: each for each in found}
        everything = [loss for each in found for loss in (*each.rows["loss"], each.predicted)]
        for axes, name in zip(panels, ("standard", "mup")):
            axes.set_title(TITLES[name])
            axes.set(
                xscale="log", yscale="log", xlabel="Parameters N, without embeddings", ylabel="Loss, nats per token"
            )
            if name in seen:
                _prediction(axes, seen[name])
                axes.set_ylim(min(everything) / 1.01, max(everything) * 1.01)
            else:
                axes.text(0.5, 0.5, "no prediction", transform=axes.transAxes, ha="center", color=draw.FAINT)
            plain(axes.yaxis)
            plain(axes.xaxis, draw.compact)
        _errors(panels[2], found)
    return draw.save(figure, stem)[0]


def _prediction(axes: Any, found: Any) -> None:
    colour, rows = COLOURS[found.name], found.rows
    sizes, losses = rows["parameters.non_embedding"].to_numpy(float), rows["loss"].to_numpy(float)
    grid = np.geomspace(sizes.min() / 1.1, sizes.max() * 1.15, 100)
    law, reach = found.curve(grid), found.curve.reach(grid)
    draw.band(axes, grid, law * np.exp(-reach), law * np.exp(reach), colour)
    values = found.curve.fit.values
    draw.curve(axes, grid, law, colour, f"{values['E']:.3g} + {values['c']:.3g} (N/{draw.compact(found.curve.centre)})"
               f"$^{{-{values['p']:.2g}}}$")  # fmt: skip
    draw.points(axes, sizes[:-1], losses[:-1], colour=colour, label="fitted: small widths")
    axes.plot(sizes[-1], found.predicted, "D", markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.6,
              markersize=8, zorder=5, label=f"predicted: {found.predicted:.3f}")  # fmt: skip
    axes.plot(sizes[-1], losses[-1], "*", color=draw.INK, markersize=11, zorder=6, label=f"measured: {losses[-1]:.3f}")
    axes.legend(loc="lower left", labelspacing=0.35)


def _errors(axes: Any, found: Sequence[Any]) -> None:
    """Measured less predicted, in percent, with the prediction intervals."""
    axes.set_title("Measured less predicted")
    axes.axhspan(-1, 1, color=draw.FAINT, alpha=0.15, linewidth=0, label="within 1 %")
    axes.axhline(0, color=draw.INK, linewidth=0.9)
    for at, each in enumerate(found):
        value, ends = 100 * each.error.value, each.error.interval
        draw.points(axes, at, value, 100 * ends.low, 100 * ends.high, COLOURS[each.name])
        axes.annotate(f"{value:+.2f} %", (at, value), (8, 0), textcoords="offset points", size=8.5, va="center")
    axes.set_xticks(range(len(found)), [TITLES[each.name] for each in found])
    axes.set(xlim=(-0.6, max(len(found), 1) - 0.4), ylabel="Error of the prediction, % of loss")
    axes.grid(False, axis="x")
    axes.legend(loc="best")


def ladder(ladders: Sequence[Any], published: dict[str, float], findings: Sequence[Any], stem: Path) -> Path:
    """Loss against compute with both laws, and the residuals about them.

    Args:
      ladders: `experiments.cerebras.Ladder` for each parametrization that has a law.
      published: residual deviation in percent by parametrization.
    """
    with draw.style():
        figure, (left, right) = page(
            2, 3.6, "A ladder of models at 20 tokens a parameter",
            "one learning rate for muP, the published steps of it for standard; both from the smallest model", findings,
        )  # fmt: skip
        for each in ladders:
            colour, rows, curve = COLOURS[each.name], each.rows, each.curve
            flops = rows["flops"].to_numpy(float)
            grid = np.geomspace(flops.min() / 1.3, flops.max() * 1.3, 100)
            draw.curve(left, grid, curve(grid), colour, dashes="-" if each.name == "mup" else "--")
            draw.points(left, flops, rows["loss"], colour=colour, label=TITLES[each.name])
            shift = 1.03 if each.name == "mup" else 1 / 1.03
            label = f"{TITLES[each.name]}: {100 * curve.spread:.2f} % ({published[each.name]:.2f} % published)"
            right.vlines(flops * shift, 0, 100 * curve.residuals, color=colour, linewidth=1.2)
            draw.points(right, flops * shift, 100 * curve.residuals, colour=colour, label=label)
        for size, at, loss in _names(ladders):
            left.annotate(f"N = {draw.compact(size)}", (at, loss), (5, 5), textcoords="offset points", size=7,
                          ha="left", color=draw.FAINT)  # fmt: skip
        left.set(xscale="log", yscale="log", xlabel="Training FLOPs", ylabel="Loss, nats per token", title="Loss")
        right.set(xscale="log", xlabel="Training FLOPs", ylabel="Measured less fitted, % of loss", title="Residuals")
        right.axhline(0, color=draw.INK, linewidth=0.9)
        plain(left.yaxis)
        left.legend(loc="upper right")
        if ladders:
            reach = max(np.abs(100 * each.curve.residuals).max() for each in ladders) * 1.15 or 1.0
            right.set_ylim(-reach, 1.35 * reach)
            right.legend(loc="upper right")
    return draw.save(figure, stem)[0]


def _names(ladders: Sequence[Any]) -> list[tuple[float, float, float]]:
    """(N, FLOPs, lowest loss) of every rung."""
    found: dict[float, tuple[float, float]] = {}
    for each in ladders:
        for _, row in each.rows.iterrows():
            size, loss = row["parameters.non_embedding"], row["loss"]
            found[size] = (row["flops"], min(loss, found.get(size, (0, np.inf))[1]))
    return [(size, *place) for size, place in sorted(found.items())]


def searches(families: Sequence[Any], found: Sequence[Any], findings: Sequence[Any], stem: Path, subtitle: str) -> Path:
    """Loss against learning rate by width for each parametrization; below, the best rates and the searches.

    Args:
      families: `experiments.transfer.Family` of each parametrization.
      found: `experiments.umup.Search` of each that was searched to the end.
    """
    from experiments.transfer_figure import best, losses

    with draw.style():
        below = draw.caption_height(findings) + 0.75
        figure, panels = draw.plt.subplots(2, 3, figsize=(WIDTH, 7.4 + below))
        whole = figure.get_figheight()
        figure.subplots_adjust(0.065, below / whole, 0.985, 1 - 0.9 / whole, wspace=0.27, hspace=0.33)
        figure.text(0.02, 1 - 0.1 / whole, "u-muP: learning rate across widths, and the cost of tuning", size=12,
                    weight="bold", va="top")  # fmt: skip
        figure.text(0.02, 1 - 0.35 / whole, subtitle, size=8.5, color=draw.FAINT, va="top")
        draw.caption(figure, findings, below - 0.55)
        for axes, family in zip(panels[0], families):
            losses(axes, family)
        best(panels[1][0], families)
        for axes, name in zip(panels[1][1:], ("mup", "umup")):
            axes.set_title(f"{TITLES[name]}: tuning at the narrowest width", fontsize=9)
            axes.set(xlabel="Runs", ylabel="Lowest loss so far, nats per token")
            mine = [each for each in found if each.name == name]
            for each in mine:
                _search(axes, each)
            if not mine:
                axes.text(0.5, 0.5, "not searched to the end", transform=axes.transAxes, ha="center", color=draw.FAINT)
    return draw.save(figure, stem)[0]


def _search(axes: Any, found: Any) -> None:
    """The lowest loss so far of both searches, in runs; the independent one's sweeps are named."""
    from experiments.umup import arrived, joint_so_far, so_far

    colour, paths = COLOURS[found.name], joint_so_far(found)
    runs = np.arange(1, paths.shape[1] + 1)
    low, middle, high = np.quantile(paths, [0.1, 0.5, 0.9], axis=0)
    draw.band(axes, runs, low, high, draw.FAINT)
    draw.curve(axes, runs, middle, draw.FAINT, "joint: median and 80 % of random orders")
    steps = so_far(found)
    counts, losses = [count for count, _, _ in steps], [loss for _, loss, _ in steps]
    axes.step(counts, losses, where="post", color=colour, linewidth=1.4, zorder=3)
    draw.points(axes, counts, losses, colour=colour, label="independent: after each sweep")
    for count, loss, what in steps:
        words = what.replace("_multiplier", "").replace("_", " ")
        axes.annotate(words, (count, loss), (2, 6), textcoords="offset points", size=7, rotation=45)
    axes.axhline(
        arrived(found), color=draw.INK, linewidth=0.9, linestyle=(0, (4, 3)), label="0.5 % above the best found"
    )
    lowest, first = min(low[-1], losses[-1]), losses[0]
    reach = max(first - lowest, 0.01 * lowest)
    axes.set_xlim(0, 1.15 * max(counts[-1], runs[-1]))
    axes.set_ylim(lowest - 0.1 * reach, first + 1.6 * reach)
    axes.legend(loc="upper right", labelspacing=0.3)
