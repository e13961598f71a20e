"""The figure of one fit: data with the law, its band and the published law, and the residuals.

A law of several columns is drawn over the column that spans most. The next widest one makes up to five groups, each
drawn at its median; points are then moved along the law to their group's median (their residuals stay what they are).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from scipy.stats import t as student

from lab.laws.design import jacobian
from lab.laws.fit import Fit, predict
from lab.laws.law import Column
from lab.report import figure as draw

GROUPS = 5


@dataclasses.dataclass(frozen=True)
class View:
    """How rows are laid out: the column of the x axis, each row's group, and each group's label and other columns."""

    x: Column
    group: np.ndarray
    labels: Sequence[str]
    others: Sequence[Mapping[str, np.ndarray]]


def law_figure(
    fit: Fit,
    stem: str | Path,
    subtitle: str = "",
    constants: str = "",
    warnings: Sequence[str] = (),
    coordinates: np.ndarray | None = None,
    level: float = 0.9,
) -> tuple[Path, Path]:
    """Writes stem.png and stem.svg and returns their paths.

    Args:
      constants: a line of fitted values, under the panels.
      coordinates: resampled search coordinates [R, p] for the band; from the covariance where there are none.
    """
    view = view_of(fit)
    with draw.style():
        figure, (left, right) = draw.plt.subplots(1, 2, figsize=(10.4, 4.9), width_ratios=(1.25, 1))
        figure.subplots_adjust(left=0.075, right=0.98, wspace=0.22, top=0.83, bottom=0.2)
        figure.text(0.02, 0.975, f"{fit.law.name}: {fit.law.formula}", size=12, weight="bold", va="top")
        figure.text(0.02, 0.925, subtitle, size=8.5, color=draw.FAINT, va="top")
        figure.text(0.02, 0.055, constants, size=8, color=draw.INK, va="center")
        said = "; ".join(warnings)
        figure.text(0.02, 0.02, said, size=8, color=draw.VERDICT_COLOURS["contradicted"], va="center")
        colours = draw.sequence_of_colours(len(view.labels)) if len(view.labels) > 1 else [draw.OURS]
        _law(left, fit, view, colours, coordinates, level)
        _residuals(right, fit, view, colours)
    return draw.save(figure, stem)


def view_of(fit: Fit) -> View:
    """Groups and axis; see the module's text."""
    columns = [c for c in fit.law.columns if np.ndim(fit.rows.columns[c.name]) == 1]
    values = {c.name: fit.rows.columns[c.name] for c in columns}

    def span(column: Column) -> float:
        v = values[column.name]
        return np.ptp(np.log(v)) if (v > 0).all() else np.ptp(v) / (np.abs(v).max() or 1.0)

    ordered = sorted(columns, key=span, reverse=True)
    if len(ordered) < 2:
        return View(ordered[0], np.zeros(len(fit.rows), int), [""], [_medians(fit, np.ones(len(fit.rows), bool))])
    second = values[ordered[1].name]
    distinct = np.unique(second)
    edges = distinct[1:] if len(distinct) <= GROUPS else np.quantile(second, np.arange(1, GROUPS) / GROUPS)
    group = np.searchsorted(np.unique(edges), second, side="right")
    group = np.unique(group, return_inverse=True)[1]
    others = [_medians(fit, group == g) for g in range(group.max() + 1)]
    labels = [f"{ordered[1].name} = {draw.compact(float(at[ordered[1].name]))}" for at in others]
    return View(ordered[0], group, labels, others)


def _medians(fit: Fit, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Of every column over some rows; of a column of vectors the row in the middle."""
    found = {}
    for name, values in fit.rows.columns.items():
        inside = values[rows]
        found[name] = np.median(inside) if values.ndim == 1 else inside[len(inside) // 2]
    return found


def ends_of(fit: Fit, view: View, g: int, x: np.ndarray, coordinates: np.ndarray | None, level: float) -> Any:
    """The band over x [n]: (low, high), quantiles of resampled laws, else by the delta method; None without either."""
    if coordinates is not None:
        return np.nanquantile(_along(fit, view, g, x, coordinates), [0.5 - level / 2, 0.5 + level / 2], axis=0)
    if not np.isfinite(fit.covariance).all() or fit.degrees_of_freedom < 1:
        return None
    j = jacobian(fit, _columns(view, g, x))
    reach = student.ppf(0.5 + level / 2, fit.degrees_of_freedom) * np.sqrt(((j @ fit.covariance) * j).sum(1))
    there = _along(fit, view, g, x)
    logs = fit.objective.space == "log"
    return (there * np.exp(-reach), there * np.exp(reach)) if logs else (there - reach, there + reach)


def _columns(view: View, g: int, x: np.ndarray) -> dict[str, np.ndarray]:
    """The law's columns over x [n], the others at the group's."""
    others = {name: np.broadcast_to(at, (len(x), *np.shape(at))) for name, at in view.others[g].items()}
    return {**others, view.x.name: x}


def _along(fit: Fit, view: View, g: int, x: np.ndarray, theta: np.ndarray | None = None) -> np.ndarray:
    """The law over x [n] with a group's other columns: [n], or [R, n] for coordinates [R, p]."""
    return predict(fit.law, fit.theta if theta is None else theta, _columns(view, g, x))


def _law(axes: Axes, fit: Fit, view: View, colours: Sequence, coordinates: np.ndarray | None, level: float) -> None:
    x, target, published = fit.rows.columns[view.x.name], fit.rows.target, _published(fit)
    logs, moving, predicted = fit.objective.space == "log", len(fit.rows.columns) > 1, fit.predict(fit.rows.columns)
    for g, (label, colour) in enumerate(zip(view.labels, colours)):
        mine = (view.group == g) & (fit.rows.weights > 0)
        if not mine.any():
            continue
        grid = _grid(x[mine])
        ends = ends_of(fit, view, g, grid, coordinates, level)
        if ends is not None:
            draw.band(axes, grid, *ends, colour)
        draw.curve(axes, grid, _along(fit, view, g, grid), colour, "fit" if len(colours) == 1 else None)
        if published is not None:
            draw.curve(axes, grid, _along(fit, view, g, grid, published[1]), draw.PUBLISHED, None, "--", 0.9)
        moved = target[mine]
        if moving:
            there, here = _along(fit, view, g, x[mine]), predicted[mine]
            moved = moved * there / here if logs else moved + there - here
        below = fit.rows.censored[mine]
        axes.plot(x[mine][~below], moved[~below], "o", color=colour, markersize=3.5, alpha=0.8, zorder=3, label=label)
        if below.any():
            draw.censored_points(axes, x[mine][below], moved[below], colour)
    if published is not None:
        axes.plot([], [], "--", color=draw.PUBLISHED, linewidth=0.9, label=f"published: {published[0]}")
    axes.set_title(f"Data, law and its {level:.0%} band")
    axes.set_ylabel(_named(fit.law.target) + (", moved to the group's median" if moving else ""))
    _x_axis(axes, view.x, x)
    if logs:
        axes.set_yscale("log")
        draw.legend_above(axes, columns=2, line=0.055)
        _plain_ticks(axes.yaxis)
    else:
        axes.legend(loc="best", labelspacing=0.3)


def _residuals(axes: Axes, fit: Fit, view: View, colours: Sequence) -> None:
    """Observed less predicted: in percent where the objective is of logs, else in the target's unit."""
    x, logs, counted = fit.rows.columns[view.x.name], fit.objective.space == "log", fit.counted
    shown = -100 * np.expm1(fit.residuals) if logs else -fit.residuals
    for g, colour in enumerate(colours):
        mine = (view.group == g) & counted
        axes.plot(x[mine], shown[mine], "o", color=colour, markersize=3.5, alpha=0.8)
    axes.axhline(0, color=draw.INK, linewidth=0.9, zorder=1)
    half = float(np.median(np.abs(shown[counted])))
    axes.axhspan(-half, half, color=draw.FAINT, alpha=0.15, linewidth=0, label=f"half of the rows: {half:.2g}")
    unit = "%" if logs else fit.law.target.unit
    axes.set(title="Residuals", ylabel=f"observed less predicted{', ' + unit if unit else ''}")
    _x_axis(axes, view.x, x)
    axes.legend(loc="best")


def _published(fit: Fit) -> tuple[str, np.ndarray] | None:
    """The first source that prints every constant, with its coordinates, where it comes near these rows."""
    for published in fit.law.published:
        if set(fit.law.names) <= set(published.values):
            theta = np.array(fit.law.search({name: published.values[name] for name in fit.law.names}))
            off = dataclasses.replace(fit, theta=theta).residuals
            near = np.median(np.abs(off[fit.counted])) < (
                0.4 if fit.objective.space == "log" else np.ptp(fit.rows.target)
            )
            return (published.source, theta) if near else None
    return None


def _grid(x: np.ndarray) -> np.ndarray:
    if (x > 0).all():
        return np.geomspace(x.min() / 1.15, x.max() * 1.15, 120)
    reach = 0.05 * np.ptp(x)
    return np.linspace(x.min() - reach, x.max() + reach, 120)


def _named(column: Column) -> str:
    return f"{column.name}, {column.unit}" if column.unit and column.unit != "any" else column.name


def _x_axis(axes: Axes, column: Column, x: np.ndarray) -> None:
    axes.set_xlabel(_named(column))
    if (x > 0).all() and x.max() > 3 * x.min():
        axes.set_xscale("log")


def _plain_ticks(axis) -> None:
    """Numbers instead of powers of ten where a logarithmic axis spans little."""
    low, high = axis.get_view_interval()
    if high / low < 5:
        axis.set_major_locator(MaxNLocator(7))
        axis.set_minor_locator(NullLocator())
    if high / low < 50:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
