"""Capabilities of many models from their benchmarks (Ruan et al. 2024, arXiv 2405.10938).

Principal components of a table of models and benchmarks measure what the models can do. Each is log-linear in training
compute within a family of models (law `capability`), and any other task is a sigmoid of them (law `observational`).

Missing scores are imputed by the components themselves: of standardised benchmarks, the basis that best explains the
filled table and the scores that it predicts are found in turn until neither moves. Held-out models are filled and
projected with the basis of the others (`Basis.fill`, `Basis.scores`), so that they tell nothing of themselves.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab.laws.catalogue.columns import C
from lab.laws.errors import TableError
from lab.laws.law import Column, Law, positive, real, register
from lab.laws.objective import Objective

COMPONENTS = 3  # that the paper fits to downstream tasks
SQUARES = Objective("least-squares", space="linear")


def _sigmoid(p, x):
    linear = p["alpha"] + sum(p[f"beta_{i}"] * x[f"PC{i}"] for i in range(1, COMPONENTS + 1))
    return 1 - p["h"] + p["h"] * jax.nn.sigmoid(linear)


OBSERVATIONAL = register(
    Law(
        name="observational",
        family="observational",
        formula="accuracy = 1 - h + h sigmoid(alpha + beta_1 PC1 + beta_2 PC2 + beta_3 PC3)",
        source="Ruan et al. 2024, arXiv 2405.10938",
        columns=tuple(Column(f"PC{i}", "", "principal component of benchmarks", False) for i in range(1, 4)),
        target=Column("accuracy", "", "of a task, normalised so that chance is 0"),
        parameters=(
            real("alpha", "", (-3.0, 0.0, 3.0), -100, 100),
            real("beta_1", "", (1.0, 5.0), -100, 100),
            real("beta_2", "", (0.0,), -100, 100),
            real("beta_3", "", (0.0,), -100, 100),
            positive("h", "", (0.9,), 0.8, 1.0, "share of the range that capability moves"),
        ),
        predict=_sigmoid,
        objective=SQUARES,
    )
)

CAPABILITY = register(
    Law(
        name="capability",
        family="observational",
        formula="PC = theta ln C + nu, of one family of models",
        source="Ruan et al. 2024, arXiv 2405.10938",
        columns=(C,),
        target=Column("PC", "", "principal component of benchmarks"),
        parameters=(real("theta", "", (0.1,)), real("nu", "", (0.0,))),
        predict=lambda p, x: p["theta"] * jnp.log(x["C"]) + p["nu"],
        linear=("theta", "nu"),
        objective=SQUARES,
    )
)


@dataclasses.dataclass(frozen=True)
class Basis:
    """Principal components of a table [models, benchmarks], benchmarks divided by `scale`.

    Attributes:
      mean, scale: [B].
      axes: [K, B], orthonormal, strongest first; of each, the loadings sum to 0 or more.
      shares: [K] of the variance.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    shares: np.ndarray

    def scores(self, table: np.ndarray) -> np.ndarray:
        """Components [n, K] of models [n, B] with no score missing."""
        return (np.asarray(table, float) - self.mean) / self.scale @ self.axes.T

    def fill(self, table: np.ndarray, bounds: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
        """The table with its missing scores (NaN) as the components that best explain a model's other scores say."""
        table = np.array(table, float)
        for row in table:
            known = ~np.isnan(row)
            if known.all():
                continue
            target = (row[known] - self.mean[known]) / self.scale[known]
            parts = np.linalg.lstsq(self.axes[:, known].T, target, rcond=None)[0]
            row[~known] = np.clip(parts @ self.axes * self.scale + self.mean, *bounds)[~known]
        return table


def principal(table: Any, components: int, standardise: bool = False) -> Basis:
    """The principal components of a table [n, B] without missing scores; the paper does not standardise here.

    Raises:
      TableError: missing scores, or fewer models or benchmarks than components.
    """
    table = _table(table, components)
    if np.isnan(table).any():
        raise TableError("found missing scores, expected none: impute first")
    return _basis(table, _spread(table) if standardise else np.ones(table.shape[1]), components)


def impute(
    table: Any, components: int = 1, bounds: tuple[float, float] = (0.0, 1.0), tolerance: float = 1e-9
) -> tuple[np.ndarray, Basis]:
    """Fills missing scores (NaN) of a table [n, B] and gives the basis that filled them, for models held out.

    Raises:
      TableError: a model or a benchmark without any score, fewer models or benchmarks than components, or no end of
        the iteration.
    """
    table = _table(table, components)
    missing = np.isnan(table)
    if missing.all(0).any() or missing.all(1).any():
        raise TableError("found a model or a benchmark with no score at all, expected at least one; leave it out")
    scale = _spread(table)
    filled = np.where(missing, np.nanmean(table, 0), table)
    for _ in range(10_000):
        basis = _basis(filled, scale, components)
        better = basis.fill(table, bounds)
        if np.abs(better - filled).max() <= tolerance:
            return better, basis
        filled = better
    raise TableError(f"found no end of the imputation with {components} components, expected fewer components or gaps")


def _table(table: Any, components: int) -> np.ndarray:
    table = np.array(table, float)
    if table.ndim != 2 or not 1 <= components <= min(table.shape[0] - 1, table.shape[1]):
        raise TableError(f"found a table of shape {table.shape}, expected more models than the {components} components")
    return table


def _spread(table: np.ndarray) -> np.ndarray:
    spread = np.nanstd(table, 0)
    if not (spread > 0).all():
        raise TableError("found a benchmark with one distinct score, expected a spread; leave it out")
    return spread


def _basis(table: np.ndarray, scale: np.ndarray, components: int) -> Basis:
    mean = table.mean(0)
    _, strengths, axes = np.linalg.svd((table - mean) / scale, full_matrices=False)
    axes = axes[:components] * np.where(axes[:components].sum(1, keepdims=True) < 0, -1, 1)
    return Basis(mean, scale, axes, (strengths**2 / (strengths**2).sum())[:components])
