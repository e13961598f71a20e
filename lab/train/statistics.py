"""Statistics of a run's tensors against the range of a number format: weights, activations, gradients.

One backward pass over a few validation sequences, whatever the execution settings are, through the same casts as
training. Per tensor, and per layer of a stack: its root mean square, its largest magnitude, and of its non-zero values
the shares that the format would flush to zero, make subnormal, or saturate.

    weight           as it enters its product
    activation       what the model tapped (`lab.models.scaling.tap`)
    gradient         what arrives there of the loss summed over predictions, as training backpropagates it
    weight_gradient  the same of the weight, over sqrt(predictions)

The formats are those of the model's precision; where that leaves operands as they are, those of FP8 (E4M3, and E5M2 for
gradients), so that a run in full precision says what FP8 would do to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from lab.models.model import Model
from lab.models.precision import POLICIES
from lab.models.weight import by_path

SEQUENCES = 8  # fewer where the validation split has fewer
STATISTICS = ("rms", "largest", "flushed", "subnormal", "saturated")
OUTSIDE = -1  # the layer of a tensor that is in no stack
_FORMAT_OF = {"weight": "weight", "activation": "activation", "gradient": "gradient", "weight_gradient": "gradient"}


def shares(x, name: str) -> list[jax.Array]:
    """Of the non-zero values of x: the shares that format `name` flushes to zero, makes subnormal, saturates.

    A value whose magnitude is above the largest number saturates. The shares of a tensor without non-zero values are 0.
    """
    limits, size = jnp.finfo(name), jnp.abs(x)
    largest, least = (jnp.asarray(limit, x.dtype) for limit in (limits.max, limits.smallest_normal))
    rounded = jnp.minimum(size, largest).astype(name).astype(x.dtype)
    counted = size > 0
    fates = (counted & (rounded == 0), (rounded > 0) & (rounded < least), size > largest)
    return [jnp.sum(fate) / jnp.maximum(jnp.sum(counted), 1) for fate in fates]


def describe(x, name: str) -> jax.Array:
    """float32 [len(STATISTICS)] of one tensor in float32 or wider; of a tensor that holds NaN the first two are NaN."""
    found = [jnp.sqrt(jnp.mean(x * x)), jnp.max(jnp.abs(x)), *shares(x, name)]
    return jnp.stack([value.astype(jnp.float32) for value in found])


def _tensors(model: Model, weights, tokens_BT1, multipliers) -> dict[str, jax.Array]:
    """`kind:path` -> the tensor."""
    activations, arriving, of_weights = model.taps(weights, tokens_BT1, multipliers)
    root = (tokens_BT1.shape[0] * (tokens_BT1.shape[1] - 1)) ** 0.5
    kinds = {"weight": by_path(weights), "activation": activations, "gradient": arriving}
    kinds["weight_gradient"] = {path: leaf / root for path, leaf in by_path(of_weights).items()}
    return {f"{kind}:{path}": leaf for kind, leaves in kinds.items() for path, leaf in leaves.items()}


def _layers(model: Model, tensors: dict) -> Iterator[tuple[str, bool]]:
    """The keys of `_tensors` in the order of `columns`, and whether a tensor is stacked on its first axis: as are the
    weights whose paths have the same first part."""
    stacks = {path.split("/")[0] for path, record in by_path(model.records()).items() if record.depth is not None}
    for key in sorted(tensors):
        yield key, key.split(":")[1].split("/")[0] in stacks


def measure(model: Model, weights, tokens_BT1, multipliers) -> jax.Array:
    """float32 [tensors and layers, len(STATISTICS)] in the order of `columns`, for tokens [B, T + 1].

    Tensors of one size and format are described together: operations by the hundred would take long to compile.
    """
    tensors = _tensors(model, weights, tokens_BT1, multipliers)
    groups, places, count = {}, {}, 0
    for key, stacked in _layers(model, tensors):
        operand = _FORMAT_OF[key.split(":")[0]]
        name = POLICIES[model.precision].format(operand) or POLICIES["fp8"].format(operand)
        rows = tensors[key].reshape(tensors[key].shape[0] if stacked else 1, -1)
        group = name, rows.shape[1]
        groups.setdefault(group, []).append(rows.astype(jnp.promote_types(rows.dtype, jnp.float32)))
        places.setdefault(group, []).extend(range(count, count + len(rows)))
        count += len(rows)
    found = [jax.vmap(partial(describe, name=group[0]))(jnp.concatenate(rows)) for group, rows in groups.items()]
    return jnp.concatenate(found)[np.argsort(np.concatenate(list(places.values())))]


@lru_cache(maxsize=64)
def columns(model: Model) -> tuple[str, ...]:
    """The columns of a run's curve of statistics: the step, then `kind:tensor:layer:statistic`."""
    weights = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(partial(_tensors, model), weights, tokens, model.neutral())
    names = ["step"]
    for key, stacked in _layers(model, shapes):
        layers = range(shapes[key].shape[0]) if stacked else (OUTSIDE,)
        names += [f"{key}:{layer}:{statistic}" for layer in layers for statistic in STATISTICS]
    return tuple(names)


def frame(rows):
    """The long form of a curve of statistics: one row for each step, tensor, kind and layer.

    Args:
      rows: data frame with the columns of `columns`.

    Returns:
      Data frame of step, tensor (a path), kind, layer (OUTSIDE where in no stack), and STATISTICS.
    """
    import pandas

    names = rows.columns[1 :: len(STATISTICS)]
    kinds, tensors, layers, _ = zip(*(name.split(":") for name in names))
    values = rows.to_numpy()[:, 1:].reshape(len(rows), len(names), len(STATISTICS))
    parts = [
        pandas.DataFrame({"step": int(step), "tensor": tensors, "kind": kinds, "layer": np.array(layers, int)})
        for step in rows["step"]
    ]
    numbers = pandas.DataFrame(values.reshape(-1, len(STATISTICS)), columns=list(STATISTICS))
    return pandas.concat([pandas.concat(parts, ignore_index=True), numbers], axis=1)
