"""Sweeps as plain data: a *point* is a dict of dotted config overrides, an axis is a list of points.

A value may be a function of the config as the constants of its point left it (a horizon of twenty tokens per
parameter, say), so that a rule is written once and holds for every width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lab.config import override
from lab.errors import ConfigError

Point = Mapping[str, Any]


def axis(key: str, values: Iterable[Any]) -> list[Point]:
    """One point per value."""
    return [{key: value} for value in values]


def product(*axes: list[Point]) -> list[Point]:
    """Every combination; later axes vary fastest."""
    return [merge(points) for points in itertools.product(*axes)]


def zipped(*axes: list[Point]) -> list[Point]:
    """The first points together, the second together, and so on.

    Raises:
      ConfigError: where the axes differ in length.
    """
    lengths = [len(points) for points in axes]
    if len(set(lengths)) > 1:
        raise ConfigError(f"zipped axes: found lengths {lengths}, expected equal lengths")
    return [merge(points) for points in zip(*axes)]


def chain(*axes: list[Point]) -> list[Point]:
    """One after another, each point once."""
    unique: list[Point] = []
    for point in itertools.chain(*axes):
        if point not in unique:
            unique.append(point)
    return unique


def log_spaced(first: float, last: float, count: int) -> list[float]:
    """`count` values from `first` to `last`, equal ratios, rounded to 4 digits."""
    return [float(f"{value:.4g}") for value in np.geomspace(first, last, count)]


def powers(first: int, last: int, ratio: int = 2) -> list[int]:
    """first, first * ratio, ... up to `last`."""
    values = [first]
    while values[-1] * ratio <= last:
        values.append(values[-1] * ratio)
    return values


def merge(points: Iterable[Point]) -> Point:
    """One point of several.

    Raises:
      ConfigError: where two of them set the same key.
    """
    merged: dict[str, Any] = {}
    for point in points:
        for key in point:
            if key in merged:
                raise ConfigError(f"{key}: set by two axes of the same sweep")
        merged.update(point)
    return merged


def apply(base: ConfigDict, point: Point) -> ConfigDict:
    """The config of a point: constants first, then functions of the config in the point's order."""
    cfg = override(base, {key: value for key, value in point.items() if not callable(value)})
    for key, value in point.items():
        if callable(value):
            cfg = override(cfg, {key: value(cfg)})
    return cfg
