"""Sparse pre-training: the parameter count that matters is its average over training (Jin et al. 2025)."""

from __future__ import annotations

import dataclasses
from typing import Any

from lab.laws.catalogue.columns import D
from lab.laws.catalogue.hoffmann import HOFFMANN
from lab.laws.law import Column, register

SPARSE_AVERAGE = register(
    dataclasses.replace(
        HOFFMANN,
        name="sparse-average",
        formula="L = E + A / N_average^alpha + B / D^beta",
        source="Jin et al. 2025, arXiv 2501.12486",
        columns=(
            Column("N_average", "parameters", "mean over training of the parameters that are not pruned"),
            D,
        ),
        predict=lambda p, x: HOFFMANN.predict(p, {"N": x["N_average"], "D": x["D"]}),
        published=(),
    )
)


def average_parameters(kept: Any, prunable: Any, sparsity: Any, start: Any, end: Any, power: float = 3.0) -> Any:
    """Mean parameter count of gradual pruning; floats or arrays alike.

    Before `start` nothing is pruned, after `end` the share `sparsity` of the prunable parameters is; in between, with u
    from 0 to 1, the share is sparsity (1 - (1 - u)^power) (Zhu and Gupta 2017, arXiv 1710.01878: power 3).

    Args:
      kept: parameters that are never pruned (embeddings, norms).
      prunable: parameters of the layers that are.
      start, end: fractions of training, in tokens, 0 <= start <= end <= 1.
    """
    pruned = (end - start) * (1 - 1 / (power + 1)) + (1 - end)
    return kept + prunable * (1 - sparsity * pruned)
