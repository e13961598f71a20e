"""Where searches begin: a grid of the nonlinear parameters' starts, the linear ones solved for at each point."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab.laws import solve
from lab.laws.law import Law
from lab.laws.solve import Rows

GRID = 2048  # points at most


def start_grid(law: Law, rows: Rows, space: str, fixed: Mapping[str, float]) -> np.ndarray:
    """Starts [S, p]: all combinations of the nonlinear parameters' starts, the linear ones solved for at each.

    `predict` is linear in those, so its derivatives with respect to them are the columns of a least-squares problem;
    rows are weighted by 1 / target where residuals are logs. Of the solutions with every subset of columns, the best
    that keeps positive parameters positive is taken; parameters left out start small.
    """
    linear = [name for name in law.linear if name not in fixed]
    choices = []
    for parameter in law.parameters:
        if parameter.name in fixed:
            choices.append((fixed[parameter.name],))
        else:
            choices.append((1.0,) if parameter.name in linear else parameter.starts)
    points = np.array(list(itertools.islice(itertools.product(*choices), 200_000)), float)
    if len(points) > GRID:
        points = points[np.random.default_rng(0).permutation(len(points))[:GRID]]
    index = {name: i for i, name in enumerate(law.names)}
    if linear:
        points[:, [index[name] for name in linear]] = _solve_linear(law, rows, space, points, linear)
    for i, parameter in enumerate(law.parameters):
        if parameter.log:
            points[:, i] = np.log(np.clip(points[:, i], parameter.low, parameter.high))
    return points


@functools.partial(jax.jit, static_argnums=(0, 1))
def _terms(law: Law, linear: tuple[str, ...], points: Any, columns: Any) -> tuple[Any, Any]:
    """For natural parameters [S, p]: the derivatives of the prediction by the linear ones [S, n, k], and the rest."""

    def at_point(point):
        def at(values):
            return law.predict(dict(zip(law.names, point)) | dict(zip(linear, values)), columns)

        return jax.jacfwd(at)(jnp.ones(len(linear))), at(jnp.zeros(len(linear)))

    return jax.vmap(at_point)(points)


def _solve_linear(law: Law, rows: Rows, space: str, points: np.ndarray, linear: list[str]) -> np.ndarray:
    index = {name: i for i, name in enumerate(law.names)}
    which = [index[name] for name in linear]
    signed = np.array([not law.parameters[i].log for i in which])
    with solve.exact():
        columns, rest = (np.asarray(x) for x in _terms(law, tuple(linear), points, rows.columns))
    weight = np.sqrt(rows.weights) / (np.abs(rows.target) if space == "log" else 1.0)
    X = np.nan_to_num(columns * weight[:, None])
    y = np.nan_to_num((rows.target - rest) * weight)
    size = np.sqrt((X**2).mean(1)) + 1e-300  # [S, k]
    X = X / size[:, None, :]
    best = np.full((len(points), len(linear)), 1e-3) * np.sqrt((y**2).mean(1))[:, None]
    least = np.full(len(points), np.inf)
    for chosen in itertools.product((True, False), repeat=len(linear)):
        keep = np.array(chosen)
        if not keep.any():
            continue
        Xk = X[:, :, keep]
        normal = np.einsum("snk,snl->skl", Xk, Xk) + 1e-12 * len(weight) * np.eye(keep.sum())
        answer = np.linalg.solve(normal, np.einsum("snk,sn->sk", Xk, y)[..., None])[..., 0]
        loss = ((np.einsum("snk,sk->sn", Xk, answer) - y) ** 2).sum(1)
        allowed = ((answer > 0) | signed[keep]).all(1) & np.isfinite(loss)
        better = allowed & (loss < least)
        full = np.full((len(points), len(linear)), 1e-3) * np.sqrt((y**2).mean(1))[:, None]
        full[:, keep] = answer
        best, least = np.where(better[:, None], full, best), np.where(better, loss, least)
    return best / size
