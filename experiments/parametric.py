"""What the experiments on parametric loss laws share: rows, the objective at given constants, tables, a panel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

LEVEL = 0.95


def rows_of(columns: Mapping[str, Any], loss: Any, kept: Any = None) -> Any:
    """Rows [n] of weight one; those not `kept` (bool [n]) weigh zero, so that every choice compiles once."""
    from lab.laws.solve import Rows

    loss = np.asarray(loss, float)
    weights = np.ones(len(loss)) if kept is None else np.asarray(kept, float)
    columns = {name: np.asarray(values, float) for name, values in columns.items()}
    return Rows(columns, loss, weights, np.zeros(len(loss), bool))


def objective_at(law: Any, rows: Any, objective: Any, values: Mapping[str, float]) -> float:
    """The objective, a sum in its own unit, at given constants."""
    from lab.laws.fit import predict

    predicted, measured = predict(law, np.array(law.search(values)), rows.columns), rows.target
    log = objective.space == "log"
    size = np.abs(np.log(predicted) - np.log(measured) if log else predicted - measured)
    delta = objective.delta
    inside = {"huber": size <= delta, "lad": size < 0, "least-squares": size >= 0}[objective.name]
    beyond = delta * (size - 0.5 * delta) if objective.name == "huber" else size
    return float((rows.weights * np.where(inside, 0.5 * size**2, beyond)).sum())


def reason_of(excess: float, rounding: float = 0.0) -> str:
    """Why published constants differ from ours, by how far their objective lies above ours, relative to ours.

    Args:
      rounding: the same excess of our constants, rounded to the digits that were printed.
    """
    from lab.laws.fit import SAME_OPTIMUM

    if excess < -SAME_OPTIMUM:
        return f"ours is not the optimum: the objective at theirs is {-excess:.1e} of ours lower"
    above = f"the objective there is {excess:.1e} of ours higher"
    if abs(excess) <= SAME_OPTIMUM:
        return f"the same optimum: the objective at theirs differs by {abs(excess):.0e} of ours"
    if excess <= 2 * rounding:
        return f"the same optimum but for the digits printed: {above}, at ours rounded alike {rounding:.1e}"
    return f"theirs is not the optimum: {above}"


def rounded_alike(values: Mapping[str, float], printed: Mapping[str, float]) -> dict[str, float]:
    """Our values with as many decimals as the printed ones have."""
    return {name: round(values[name], len(repr(float(at)).partition(".")[2])) for name, at in printed.items()}


def loss_of(values: Mapping[str, float]) -> Callable[[Any, Any], Any]:
    """E + A / N^alpha + B / D^beta as a function of N and D."""
    from lab.laws.law import law

    return lambda n, d: np.asarray(law("hoffmann").predict(values, {"N": n, "D": d}))


def a_of(values: Mapping[str, Any]) -> Any:
    """The exponent of N in the compute-optimal N ~ C^a; the law's own would load jax wherever a claim is stated."""
    return values["beta"] / (values["alpha"] + values["beta"])


def compute_optimal(values: Mapping[str, Any], flops: Any) -> tuple[Any, Any]:
    """N and D that minimise E + A / N^alpha + B / D^beta at C = 6 N D (Hoffmann et al. 2022, equation 4).

    Args:
      values: constants by name, numbers or arrays [R, 1] (resamples).
      flops: [K].
    """
    from lab.laws.law import law

    found = {quantity.name: quantity.value(values) for quantity in law("hoffmann").derived}
    n = found["G"] * (np.asarray(flops) / 6) ** found["a"]
    return n, np.asarray(flops) / (6 * n)


def choices_table(fits: Mapping[str, Any], quantity: str, dependent: Sequence[str] = ()) -> Any:
    """A frame with a row per choice of the analysis: rows kept, constants, and `quantity` with its profile interval.

    Args:
      dependent: choices whose rows are not independent (checkpoints of one run), which get no interval.
    """
    import pandas

    from lab.laws.bootstrap import no_interval
    from lab.laws.intervals import settled

    rows = []
    for choice, fit in fits.items():
        interval = no_interval("dependent rows", LEVEL)
        if choice not in dependent:
            fit, intervals = settled(fit, [quantity], LEVEL)
            interval = intervals[quantity]
        found = {"choice": choice, "rows": int((fit.rows.weights > 0).sum()), **fit.values}
        found |= {quantity: {**fit.values, **fit.derived}[quantity]}
        found |= {f"{quantity}_low": interval.low, f"{quantity}_high": interval.high}
        found |= {"objective": fit.objective_value, "warnings": "; ".join(fit.certificate.warnings)}
        rows.append(found)
    return pandas.DataFrame(rows)


def valleys(
    axes: Any, n: Any, flops: Any, loss: Any, budgets: Sequence[float], ours: Callable, published: Callable
) -> None:
    """Losses [n] over model size, coloured by compute, with both laws (functions of N and D) along `budgets`."""
    from matplotlib.colors import ListedColormap, LogNorm

    from lab.report import figure as draw

    norm, colours = LogNorm(np.min(flops), np.max(flops)), ListedColormap(draw.sequence_of_colours(256))
    axes.scatter(n, loss, c=flops, cmap=colours, norm=norm, s=13, linewidths=0, zorder=3)
    spread = np.ptp(np.log(flops)) / 12
    for k, budget in enumerate(budgets):
        near = np.abs(np.log(np.asarray(flops) / budget)) < spread
        grid = np.geomspace(np.min(np.asarray(n)[near]) / 1.2, np.max(np.asarray(n)[near]) * 1.2, 80)
        draw.curve(
            axes, grid, ours(grid, budget / (6 * grid)), colours(norm(budget)), "ours" if k == 0 else None, width=1.3
        )
        line = published(grid, budget / (6 * grid))
        draw.curve(axes, grid, line, draw.PUBLISHED, "published" if k == 0 else None, ":", 1.1)
        axes.annotate(f"{budget:.0e}".replace("e+", "e"), (grid[-1], ours(grid[-1], budget / (6 * grid[-1]))), size=6.5)
    axes.set(xscale="log", yscale="log", xlabel="Parameters N", ylabel="Loss, nats per token")
    axes.yaxis.set_major_formatter(draw.plt.FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(draw.plt.FuncFormatter(lambda value, _: f"{value:.3g}"))
