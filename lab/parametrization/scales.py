"""The scales of every weight of a model: its records, a parametrization's rules, and the config's multipliers.

The numbers are Python floats; they enter the program as arrays, so that runs of a pack can differ in them.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable

import jax

from lab import models
from lab.errors import ConfigError
from lab.models.architecture import one_of
from lab.models.weight import Record, is_record

FAMILIES = ("adam", "sgd")
_BUILT_IN = {"standard": "lab.parametrization.standard", "mup": "lab.parametrization.mup"}


@dataclasses.dataclass(frozen=True)
class WeightScale:
    """What a parametrization says of one weight; the defaults are those of a gain or a bias.

    Initial weight: `init_std` x unit weight. Weight in a product: `forward` x weight. Update with learning rate lr,
    decay wd and the optimizer's direction u: -lr x `learning_rate` x (u + wd x `weight_decay` x weight).
    """

    init_std: float = 1.0
    forward: float = 1.0
    learning_rate: float = 1.0
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Scales:
    """Four trees with the structure of the weights and a float for each (see WeightScale), and activation multipliers.

    `scalars` is the dict that a model's functions take: embedding, residual, attention, readout.
    """

    init_std: dict
    forward: dict
    learning_rate: dict
    weight_decay: dict
    scalars: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """Both functions get records and the base model's records, paired; without `uses_base` the two are the same.

    `weight(record, base, family)` scales one weight, `family` being one of FAMILIES. `activations(pairs)` takes the
    list of all pairs and returns the parametrization's own factors of the `attention` and `readout` multipliers.
    """

    weight: Callable[[Record, Record, str], WeightScale]
    activations: Callable[[list[tuple[Record, Record]]], dict[str, float]]
    uses_base: bool


_PARAMETRIZATIONS: dict[str, Parametrization] = {}


def register(name: str, parametrization: Parametrization) -> None:
    """Adds a parametrization under `parametrization.name`. The last one registered under a name is used."""
    _PARAMETRIZATIONS[name] = parametrization


def known() -> list[str]:
    """Names that `parametrization.name` may have."""
    return sorted(set(_BUILT_IN) | set(_PARAMETRIZATIONS))


def _find(name: str) -> Parametrization:
    if name in _BUILT_IN and name not in _PARAMETRIZATIONS:
        importlib.import_module(_BUILT_IN[name])
    one_of("parametrization.name", name, known())
    return _PARAMETRIZATIONS[name]


def check_pair(path: str, record: Record, base: Record) -> None:
    """Raises ConfigError where a weight differs from the base model's in something other than its width axes' sizes."""
    same = dataclasses.replace(base, shape=record.shape) == record
    differ = {i for i, (size, base_size) in enumerate(zip(record.shape, base.shape)) if size != base_size}
    if not same or not differ <= set(record.width):
        raise ConfigError(
            f"weight {path} is {record.shape}, and {base.shape} in the base model; expected a difference in its width "
            f"axes {record.width} only: mend its declaration or the kind's at_width"
        )


def scales(model_config, parametrization_config, family: str) -> Scales:
    """The scales of the model of a `model` config node under a `parametrization` node, for an optimizer family.

    `family` is "adam" (AdamW, Lion: updates of the learning rate's size) or "sgd" (updates of the gradient's size).
    `init_scale` multiplies the initial scale of all but gains and biases. Raises ConfigError for an unknown name, a
    base width that the model cannot have, and a weight that cannot be paired with the base model's.
    """
    parametrization = _find(parametrization_config.name)
    one_of("the optimizer's family", family, FAMILIES)
    records = models.build(model_config).records()
    base = records
    if parametrization.uses_base:
        base = models.build(models.at_width(model_config, parametrization_config.base_width)).records()

    def scale(path, record: Record, base: Record) -> WeightScale:
        check_pair(jax.tree_util.keystr(path, simple=True, separator="/"), record, base)
        found = parametrization.weight(record, base, family)
        if record.role in ("norm", "bias"):
            return found
        return dataclasses.replace(found, init_std=found.init_std * parametrization_config.init_scale)

    tree = jax.tree_util.tree_map_with_path(scale, records, base, is_leaf=is_record)
    pairs = list(zip(*(jax.tree.leaves(one, is_leaf=is_record) for one in (records, base)), strict=True))
    factors = parametrization.activations(pairs)
    scalars = {
        "embedding": parametrization_config.embedding_multiplier,
        "residual": parametrization_config.residual_multiplier,
        "attention": parametrization_config.attention_multiplier * factors["attention"],
        "readout": parametrization_config.readout_multiplier * factors["readout"],
    }
    fields = [field.name for field in dataclasses.fields(WeightScale)]
    trees = {name: jax.tree.map(lambda leaf, name=name: float(getattr(leaf, name)), tree) for name in fields}
    return Scales(**trees, scalars={name: float(value) for name, value in scalars.items()})
