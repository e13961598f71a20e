"""A law without data as a document, and documents as JSON holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lab.laws.law import Law


def describe(law: Law) -> dict[str, Any]:
    """A law without data: formula, columns, constants, objective, published constants."""
    bounds = lambda p: [p.low, p.high]  # noqa: E731
    return plain(
        {
            "law": law.name,
            "family": law.family,
            "formula": law.formula,
            "source": law.source,
            "reads": {column.name: {"unit": column.unit, "meaning": column.meaning} for column in law.columns},
            "gives": {law.target.name: {"unit": law.target.unit, "meaning": law.target.meaning}},
            "parameters": {p.name: {"unit": p.unit, "meaning": p.meaning, "bounds": bounds(p)} for p in law.parameters},
            "derived": {q.name: {"unit": q.unit, "meaning": q.meaning} for q in law.derived},
            "objective": str(law.objective),
            "published": [
                {"source": p.source, "values": dict(p.values), "note": p.note, "recalled": p.recalled}
                for p in law.published
            ],
        }
    )


def plain(value: Any) -> Any:
    """What JSON can hold: arrays as lists, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
