"""What the check measures: one program for each size and optimizer, whatever the parametrization, seed or fault."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lab.models.model import Model
from lab.models.weight import by_path, is_record
from lab.parametrization.scales import Scales

QUERY, KEY, SCORES = "scaled_query", "compared_key", "scores"


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer, handed in because `lab.optim` lies above this layer.

    `init` and `update` are its functions of that name, both of which take `name` first; `numbers` are pairs of its
    hyperparameters. `learning_rate` None means the check's own.
    """

    name: str
    family: str
    init: Callable
    update: Callable
    learning_rate: float | None
    numbers: tuple[tuple[str, float], ...]


def unnumbered(tensor: str) -> str:
    """The name of a tensor without the number of its layer: "layers[1]/residual" -> "layers/residual"."""
    return re.sub(r"\[\d+\]", "", tensor)


def tensors(tapped: dict[str, jax.Array], records: dict) -> dict[str, jax.Array]:
    """What is looked at among taps: not inputs of products, which are outputs of something else; not the readout's
    product, which is the logits without their factor; and of queries and keys the causal scores, their product."""
    readouts = tuple(f"{path}.out" for path, record in by_path(records).items() if record.role == "readout")
    found = {path: x for path, x in tapped.items() if not path.endswith((".in", QUERY, KEY)) and path not in readouts}
    for path, query in tapped.items():
        if path.endswith(QUERY):
            key = tapped[path.removesuffix(QUERY) + KEY]  # [..., batch, heads, head width, length]
            key = jnp.repeat(key, query.shape[-3] // key.shape[-3], axis=-3)
            found[path.removesuffix(QUERY) + SCORES] = jnp.tril(jnp.einsum("...dt,...ds->...ts", query, key))
    return found


def _rms(x: jax.Array, axis: int | None = 0) -> jax.Array:
    """RMS over all axes but one (None: over all)."""
    return jnp.sqrt(jnp.mean(x.astype(jnp.float32) ** 2, axis=tuple(i for i in range(x.ndim) if i != axis)))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _program(model: Model, name: str, init: Callable, update: Callable, key, tokens, updates, numbers: dict) -> dict:
    """RMS by quantity: for activations by entry of the first axis, for weights by layer."""
    records, trees, multipliers = model.records(), numbers["scales"], numbers["multipliers"]

    def look(weights):
        tapped, _, gradient = model.taps(weights, tokens, multipliers)
        return tensors(tapped, records), jax.tree.map(lambda g: g / tokens[:, 1:].size, gradient)

    def body(i, carry):
        weights, state, first, _ = carry
        seen, gradient = look(weights)
        moved = update(name, numbers["optimizer"], numbers["row"], trees, records, gradient, state, weights)
        weights, state = jax.tree.map(lambda new, old: jnp.where(i < updates, new, old), moved, (weights, state))
        return weights, state, jax.tree.map(lambda new, old: jnp.where(i == 0, new, old), seen, first), seen

    weights = jax.tree.map(jnp.multiply, model.init(key), trees["init_std"])
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(look, weights)[0])
    carry = weights, init(name, weights), nothing, nothing
    moved, _, before, after = jax.lax.fori_loop(0, updates + 1, body, carry)
    found = {f"initial {path}": _rms(x) for path, x in before.items()}
    found |= {f"change {path}": _rms(after[path] - x) for path, x in before.items()}
    changes = jax.tree.map(lambda r, a, b: _rms(a - b, r.depth), records, moved, weights, is_leaf=is_record)
    return found | {f"update {path}": x for path, x in by_path(changes).items()}


def measure(
    model: Model, optimizer: Optimizer, rate: float, scales: Scales, shape: tuple[int, int], updates: int, seed: int
) -> dict:
    """RMS by name, for one draw of weights and of tokens [batch, length + 1]; one for each layer of a stack."""
    weights_key, tokens_key = jax.random.split(jax.random.key(seed))
    tokens = jax.random.randint(tokens_key, shape, 0, model.vocab_size)
    row = {"learning_rate": rate, "weight_decay": 0.0}
    numbers = {"scales": scales.trees(), "multipliers": scales.multipliers, "row": row}
    numbers = jax.tree.map(jnp.float32, numbers | {"optimizer": dict(optimizer.numbers)})
    static = model, optimizer.name, optimizer.init, optimizer.update
    found = jax.device_get(_program(*static, weights_key, tokens, updates, numbers))
    factors, share = scales.multipliers["weights"], shares(scales.multipliers["residual"])
    for path, record in by_path(model.records()).items():
        node = factors
        for part in path.split("/"):
            node = node[part]
        entering = node["forward"] * (1.0 if record.depth is None else share)
        found[f"update {path}"] = found[f"update {path}"] * entering
    return found


def shares(residual: dict[str, np.ndarray]) -> np.ndarray:
    """The factor of each layer's branches, [depth], on their way to the end of the stream: RMS of its two branches."""
    branch, skip = (np.ravel(residual[name]).astype(np.float64) for name in ("branch", "skip"))
    after = np.append(np.cumprod(skip[::-1])[::-1][1:], 1.0)
    return np.sqrt(np.mean((branch * after).reshape(-1, 2) ** 2, axis=1))


def value(found: dict, name: str) -> float:
    """The RMS of a row: of the layer that it names, or over all."""
    layer = re.search(r"\[(\d+)\]", name)
    x = found[unnumbered(name)]
    return float(x[int(layer[1])] if layer else np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def names(model: Model, per_layer: bool) -> list[str]:
    """Every quantity in order of computation: a weight's update where it is used first, before the tensors that depend
    on it. Activations of layers by layer ("layers[0]/residual") or, for models whose depths differ, all in one."""
    weights = jax.tree.map(
        lambda record: jax.ShapeDtypeStruct(record.shape, jnp.float32), model.records(), is_leaf=is_record
    )
    tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    outputs: dict[str, Any] = {}

    def tapped(weights, tokens):
        outputs.update(found := model.taps(weights, tokens, {})[0])
        return list(found.values())

    jaxpr = jax.make_jaxpr(tapped)(weights, tokens).jaxpr
    used = {f"update {path}": var for path, var in zip(by_path(weights), jaxpr.invars)}
    places: dict[str, tuple] = {}
    _places(jaxpr, used, dict(zip(outputs, jaxpr.outvars, strict=True)), (), places)
    looked = jax.eval_shape(lambda w, t: tensors(model.taps(w, t, {})[0], model.records()), weights, tokens)
    places |= {path: places[path.removesuffix(SCORES) + KEY] for path in looked if path.endswith(SCORES)}
    places = {name: place for name, place in places.items() if name in used or name in looked}
    keyed = []
    for name, place in places.items():
        kinds = [name] if name in used else [f"initial {name}", f"change {name}"]
        layers = range(model.depth) if per_layer and None in place and name not in used else [None]
        for layer in layers:
            key = tuple((layer or 0) if part is None else part for part in place)
            for order, kind in enumerate(kinds):
                keyed.append((key, name not in used, order, kind if layer is None else _numbered(kind, layer)))
    return [name for *_, name in sorted(keyed)]


def _numbered(name: str, layer: int) -> str:
    kind, _, path = name.partition(" ")
    stack, _, rest = path.partition("/")
    return f"{kind} {stack}[{layer}]/{rest}"


def _places(jaxpr, used: dict, made: dict, prefix: tuple, places: dict[str, tuple]) -> None:
    """Where names of `used` variables are read first, and those of `made` ones come from, as indices of equations from
    the outermost in; None stands for the number of a layer."""
    for i, equation in enumerate(jaxpr.eqns):
        inner = [
            sub.jaxpr if isinstance(sub, core.ClosedJaxpr) else sub
            for sub in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
            if _is_jaxpr(sub)
        ]
        reads = {name: j for name, var in used.items() if name not in places for j in _where(var, equation.invars)}
        makes = {name: j for name, var in made.items() for j in _where(var, equation.outvars)}
        here = (*prefix, i)
        if len(inner) == 1 and len(inner[0].invars) == len(equation.invars):
            scanned = equation.primitive.name == "scan"
            deeper = (*here, None) if scanned else here
            ins = {name: inner[0].invars[j] for name, j in reads.items()}
            outs = {name: inner[0].outvars[j] for name, j in makes.items()}
            _places(inner[0], ins, outs, deeper, places)
        for name in (*reads, *makes):
            places.setdefault(name, here)


def _where(var, variables) -> list[int]:
    return [j for j, other in enumerate(variables) if other is var][:1]


def _is_jaxpr(value) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
