"""The scales of every weight of a model: its records, a parametrization's rules, and the config's multipliers.

The numbers are Python floats; they enter the program as arrays, so that runs of a pack can differ in them. No jax at
import: `lab plan` checks names and base models here.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lab.errors import ConfigError
from lab.models import registry
from lab.models.architecture import one_of

if TYPE_CHECKING:
    from lab.models.weight import Record

FAMILIES = ("adam", "sgd", "lamb")
TREES = ("init_std", "learning_rate", "weight_decay", "epsilon")
_BUILT_IN = {
    "standard": "standard",
    "ntk": "ntk",
    "mup": "mup",
    "depth-mup": "depth_mup",
    "completep": "completep",
    "umup": "umup",
    "unit": "unit",
}


@dataclasses.dataclass(frozen=True)
class WeightScale:
    """What a parametrization says of one weight; the defaults are those of a gain or a bias.

    Initial weight: `init_std` x unit weight. Product: `forward` x (x @ weight), and `backward` x the gradient of x,
    `gradient` x that of the weight; both are `forward` where not given, which makes gradients true. Update with
    learning rate lr, decay wd and the optimizer's direction u: -lr x `learning_rate` x (u + wd x `weight_decay` x
    weight). Adam's epsilon is multiplied by `epsilon`.
    """

    init_std: float = 1.0
    forward: float = 1.0
    learning_rate: float = 1.0
    weight_decay: float = 0.0
    epsilon: float = 1.0
    backward: float | None = None
    gradient: float | None = None

    def factors(self) -> dict[str, float]:
        """The three factors of the weight's product."""
        given = {"backward": self.backward, "gradient": self.gradient}
        return {"forward": self.forward, **{k: self.forward if v is None else v for k, v in given.items()}}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a rule sees of a weight: its record, the base model's, and the optimizer's family (one of FAMILIES)."""

    record: Record
    base: Record
    family: str

    @property
    def fan_in(self) -> int:
        return self.record.size(self.record.fan_in)

    @property
    def fan_out(self) -> int:
        return self.record.size(self.record.fan_out)

    @property
    def layers(self) -> int:
        """Layers that are stacked in this weight; 1 outside of the stack."""
        return 1 if self.record.depth is None else self.record.shape[self.record.depth]

    @property
    def r_in(self) -> float:
        """Fan-in over the base model's."""
        return self.fan_in / self.base.size(self.base.fan_in)

    @property
    def r_out(self) -> float:
        """Fan-out over the base model's."""
        return self.fan_out / self.base.size(self.base.fan_out)

    @property
    def r_depth(self) -> float:
        """Layers over the base model's; 1 outside of the stack."""
        return 1.0 if self.record.depth is None else self.layers / self.base.shape[self.base.depth]


@dataclasses.dataclass(frozen=True)
class Context:
    """What the multipliers of activations may depend on.

    `model`, `base` and `given` are config nodes: of the model, the base model, the parametrization. `depth` counts the
    layers that have residual factors (a model without such layers has 1, and no use for them).
    """

    model: Any
    base: Any
    given: Any
    depth: int
    subjects: Mapping[str, Subject]

    @property
    def tied(self) -> Subject | None:
        """The embedding that is the readout too, where no weight is one of its own; None otherwise."""
        by_role = {subject.record.role: subject for subject in self.subjects.values()}
        return None if "readout" in by_role else by_role.get("embedding")

    @property
    def head_widths(self) -> tuple[int, int] | None:
        """The head width and the base model's, where weights have heads."""
        for subject in self.subjects.values():
            axes = subject.record.axes
            if "head_width" in axes:
                return tuple(r.shape[axes.index("head_width")] for r in (subject.record, subject.base))
        return None

    def branches(self) -> np.ndarray:
        """`residual_multiplier` shared out between attention and MLP, [depth, 2]: their ratio is `residual_ratio`, the
        mean of their squares that of the multiplier (u-muP, arXiv:2407.17465, section 3.3)."""
        ratio = self.given.residual_ratio
        mlp = self.given.residual_multiplier * (2 / (ratio**2 + 1)) ** 0.5
        return np.tile([ratio * mlp, mlp], (self.depth, 1))

    def plain(self) -> dict[str, Any]:
        """The config's own multipliers: those of a parametrization that has none."""
        return {
            "embedding": self.given.embedding_multiplier,
            "attention": self.given.attention_multiplier,
            "activation": self.given.activation_multiplier,
            "readout": self.given.readout_multiplier,
            "residual": {"branch": self.branches()},
        }


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """Rules by role, and multipliers of activations.

    `rules[role](subject)` gives a WeightScale. `multipliers(context)` gives what `lab.models.model.Model` describes;
    start from `context.plain()`. `base` names the sizes of a base model that it compares with: "width", "depth".
    `exponents` declares how quantities of the check grow with width or depth where the answer is not the one that
    transfer needs: see `lab.parametrization.check`.
    """

    rules: Mapping[str, Callable[[Subject], WeightScale]]
    multipliers: Callable[[Context], dict] = Context.plain
    base: tuple[str, ...] = ()
    exponents: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scales:
    """Trees with the structure of the weights and a float for each (see WeightScale), and the model's multipliers."""

    init_std: dict
    learning_rate: dict
    weight_decay: dict
    epsilon: dict
    multipliers: dict

    def trees(self) -> dict[str, dict]:
        """The trees by name."""
        return {name: getattr(self, name) for name in TREES}


_PARAMETRIZATIONS: dict[str, Parametrization] = {}


def register(name: str, parametrization: Parametrization) -> None:
    """Adds a parametrization under `parametrization.name`. The last one registered under a name is used."""
    _PARAMETRIZATIONS[name] = parametrization


def known() -> list[str]:
    """Names that `parametrization.name` may have."""
    return sorted(set(_BUILT_IN) | set(_PARAMETRIZATIONS))


def find(name: str) -> Parametrization:
    """The parametrization of a name. Raises ConfigError, naming the nearest, for one that is not known."""
    if name in _BUILT_IN and name not in _PARAMETRIZATIONS:
        importlib.import_module(f"lab.parametrization.{_BUILT_IN[name]}")
    one_of("parametrization.name", name, known())
    return _PARAMETRIZATIONS[name]


def base_of(model_config, parametrization_config) -> Any:
    """The `model` node of the base model: the model itself but for the sizes that the parametrization compares.

    Raises ConfigError where the base cannot be had. It may be the larger of the two: rules hold both ways.
    """
    compared, base = find(parametrization_config.name).base, model_config
    if "width" in compared:
        base = registry.at_width(base, parametrization_config.base_width)
    if "depth" in compared:
        base = base.copy_and_resolve_references()
        base.depth = parametrization_config.base_depth
    return base


def check_pair(path: str, record: Record, base: Record) -> None:
    """Raises ConfigError where a weight differs from the base model's in more than the sizes of its width and depth."""
    same = dataclasses.replace(base, shape=record.shape) == record
    differ = {i for i, (size, base_size) in enumerate(zip(record.shape, base.shape)) if size != base_size}
    if not same or not differ <= {*record.width, record.depth}:
        raise ConfigError(
            f"weight {path} is {record.shape}, and {base.shape} in the base model; expected a difference in its width "
            f"axes {record.width} or its depth only: mend its declaration or the kind's at_width"
        )


def scales(model_config, parametrization_config, family: str) -> Scales:
    """The scales of the model of a `model` config node under a `parametrization` node, for an optimizer family.

    `family` is "adam" (AdamW, Lion: updates of the learning rate's size), "lamb" (of the learning rate times the
    weight's size) or "sgd" (of the gradient's size). `init_scale` multiplies the initial scale of all but gains and
    biases. Raises ConfigError for an unknown name, a base model that cannot be had, a weight that cannot be paired with
    the base model's, and a weight whose role has no rule.
    """
    import jax

    from lab.models.weight import is_record

    parametrization = find(parametrization_config.name)
    one_of("the optimizer's family", family, FAMILIES)
    base_config = base_of(model_config, parametrization_config)
    records, base = (registry.build(config).records() for config in (model_config, base_config))
    subjects: dict[str, Subject] = {}

    def scale(path, record: Record, base: Record) -> WeightScale:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        check_pair(name, record, base)
        if record.role not in parametrization.rules:
            raise ConfigError(
                f"weight {name} has the role {record.role!r}, for which {parametrization_config.name} has no rule; "
                f"expected one of {', '.join(parametrization.rules)}"
            )
        subjects[name] = Subject(record, base, family)
        found = parametrization.rules[record.role](subjects[name])
        if record.role in ("norm", "bias"):
            return found
        return dataclasses.replace(found, init_std=found.init_std * parametrization_config.init_scale)

    tree = jax.tree_util.tree_map_with_path(scale, records, base, is_leaf=is_record)
    model = registry.build(model_config)
    context = Context(model_config, base_config, parametrization_config, model.depth, subjects)
    weights = jax.tree.map(lambda leaf: {k: float(v) for k, v in leaf.factors().items()}, tree)
    found = parametrization.multipliers(context)
    trees = {name: jax.tree.map(lambda leaf, name=name: float(getattr(leaf, name)), tree) for name in TREES}
    return Scales(**trees, multipliers=_completed(model.neutral(), found) | {"weights": weights})


def _completed(neutral: dict, found: dict) -> dict:
    """The multipliers of a parametrization with every entry present, gradients true where it does not say."""
    residual = found.get("residual", {})
    branch = {"branch_gradient": residual["branch"]} if "branch" in residual else {}
    readout = {"readout_gradient": found["readout"]} if "readout" in found else {}
    whole = {**neutral, **readout, **found}
    shape = np.shape(neutral["residual"]["branch"])
    whole["residual"] = {
        name: np.array(np.broadcast_to(value, shape), np.float32)
        for name, value in {**neutral["residual"], **branch, **residual}.items()
    }
    return whole | {name: float(value) for name, value in whole.items() if name not in ("residual", "weights")}
