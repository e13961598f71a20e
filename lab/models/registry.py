"""Kinds of models by name. A kind is a builder, and how its config changes when only the width does."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any

from lab.errors import ConfigError
from lab.models.architecture import one_of

_BUILT_IN = {"decoder": "lab.models.decoder"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What `register` was told of a kind."""

    builder: Callable[[Any, int | None], Any]
    at_width: Callable[[Any, int], Any]
    counts: Any
    units: Callable[[Any, float], dict[str, float]] | None


_KINDS: dict[str, Kind] = {}


def proportional(config, width: int):
    """The same model at another width, every width in proportion: what muP compares with.

    With `head_width` given, heads scale and the head width stays; with `head_width` 0, the heads stay and their width
    scales. `kv_heads` scales with the heads where that is whole and divides them, and otherwise becomes the largest
    common divisor. An explicit `mlp_width` is rounded to the nearest whole number.
    Raises ConfigError where the heads do not come out whole.
    """
    base = config.copy_and_resolve_references()
    base.width = width
    if config.mlp_width:
        base.mlp_width = max(1, round(config.mlp_width * width / config.width))
    if config.head_width:
        heads, rest = divmod(config.heads * width, config.width)
        if rest or not heads:
            raise ConfigError(
                f"model.heads={config.heads} at model.width={config.width} is {config.heads * width / config.width:g} "
                f"heads at width {width}; expected a whole number: change parametrization.base_width, or set "
                "model.head_width=0"
            )
        kv_heads, rest = divmod(config.kv_heads * width, config.width)
        whole = not rest and kv_heads and heads % kv_heads == 0
        base.heads, base.kv_heads = heads, kv_heads if whole else math.gcd(config.kv_heads, heads)
    return base


def register(
    kind: str, at_width: Callable[[Any, int], Any] = proportional, counts: Any = None, units: Callable | None = None
):
    """Decorator: adds `builder(config, unroll)`, which returns a Model, as a `model.kind`. The last of a name is used.

    `at_width(config, width)` gives the config of the same family at another width. `counts` has closed forms
    `parameters(config)` and `flops_per_token(config)` (see `lab.models.counts`); None measures records and jaxpr.
    `units(config, activation_multiplier)` gives the RMS that unit scaling divides by (see `lab.models.units`).
    """

    def add(builder):
        _KINDS[kind] = Kind(builder, at_width, counts, units)
        return builder

    return add


def own_counts(kind: str) -> Any:
    """The counts of a registered kind, or None for the built-in decoder. Raises ConfigError for an unknown kind."""
    one_of("model.kind", kind, sorted(set(_BUILT_IN) | set(_KINDS)))
    if kind in _BUILT_IN:
        return None
    if _KINDS[kind].counts is not None:
        return _KINDS[kind].counts
    return importlib.import_module("lab.models.measure").Measured


def _find(kind: str) -> Kind:
    if kind in _BUILT_IN and kind not in _KINDS:
        importlib.import_module(_BUILT_IN[kind])
    one_of("model.kind", kind, sorted(set(_BUILT_IN) | set(_KINDS)))
    return _KINDS[kind]


def build(config, unroll: int | None = None):
    """The model of a `model` config node whose `vocab_size` is resolved.

    `unroll` layers are compiled at a time: None means all of them on CPU, where a scan costs 40 %, and 1 elsewhere.
    It changes no weight. Raises ConfigError for an unknown kind and for what the kind cannot build.
    """
    return _find(config.kind).builder(config, unroll)


def at_width(config, width: int):
    """The `model` config of the same family at another width; see `proportional` for the decoder's."""
    return _find(config.kind).at_width(config, width)


def units(config, activation_multiplier: float) -> dict[str, float]:
    """What the kind of a `model` config node says of its operations without weights; nothing where it says nothing."""
    found = _find(config.kind).units
    return found(config, activation_multiplier) if found else {}
