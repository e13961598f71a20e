"""A weight knows what it is: the record that each weight is declared with, and the box that carries it through Linen.

From the record follow initial scale, multipliers, sharding and counts; nothing else in the library matches on names.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

ROLES = ("embedding", "hidden", "residual", "readout", "norm", "bias", "router", "recurrence")
NEUTRAL = {"forward": 1.0, "backward": 1.0, "gradient": 1.0}  # factors of a weight that has none of its own


@dataclasses.dataclass(frozen=True)
class Record:
    """What a weight is. Axes are indices into `shape`, which has one logical name per axis in `axes`.

    `fan_in` and `fan_out` are the axes that the operation sums over and makes; `width` those that grow with the model's
    width; `depth` the axis of stacked layers, or None. `role` is one of ROLES: `hidden` maps features to features,
    `residual` is a hidden weight whose product is added to the residual stream, `embedding` maps tokens to features,
    `readout` features to logits, `router` features to the scores of experts; a `recurrence` weight belongs to a feature
    (a decay, a step size) and is summed over nothing.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    fan_in: tuple[int, ...]
    fan_out: tuple[int, ...]
    width: tuple[int, ...]
    depth: int | None
    role: str

    def size(self, axes: tuple[int, ...]) -> int:
        """The product of the sizes of some axes; 1 for none."""
        product = 1
        for axis in axes:
            product *= self.shape[axis]
        return product

    def _move(self, index: int, by: int) -> Record:
        def moved(axes):
            return tuple(axis + by if axis >= index else axis for axis in axes)

        depth = None if self.depth is None else moved((self.depth,))[0]
        return dataclasses.replace(
            self, fan_in=moved(self.fan_in), fan_out=moved(self.fan_out), width=moved(self.width), depth=depth
        )

    def stacked(self, index: int, name: str, length: int) -> Record:
        """The record of `length` such weights stacked along a new axis `index`, which becomes the depth axis."""
        moved = self._move(index, 1)
        shape = (*self.shape[:index], length, *self.shape[index:])
        axes = (*self.axes[:index], name, *self.axes[index:])
        return dataclasses.replace(moved, shape=shape, axes=axes, depth=index)

    def unstacked(self, index: int) -> Record:
        """The record of one weight of a stack along axis `index`."""
        shape, axes = (value[:index] + value[index + 1 :] for value in (self.shape, self.axes))
        return dataclasses.replace(self, shape=shape, axes=axes, depth=None)._move(index, -1)


@flax.struct.dataclass
class Weight(nn.meta.AxisMetadata):
    """A value with its record: the box that Linen's `init` returns and that `unbox` opens."""

    value: Any
    record: Record = flax.struct.field(pytree_node=False)

    def unbox(self):
        return self.value

    def replace_boxed(self, value):
        return self.replace(value=value)

    def add_axis(self, index: int, params: dict):
        return self.replace(record=self.record.stacked(index, params[nn.PARTITION_NAME], params["length"]))

    def remove_axis(self, index: int, params: dict):
        return self.replace(record=self.record.unstacked(index))


def declare(
    module: nn.Module,
    name: str,
    axes: dict[str, int],
    *,
    role: str,
    fan_in: tuple[int, ...] = (),
    fan_out: tuple[int, ...] = (),
    width: tuple[int, ...] = (),
):
    """Declares weight `name` of a Linen module, `axes` naming its axes and their sizes in order; returns its value,
    multiplied by its `forward` factor (see `factors`).

    What Linen's own `init` would return has the right shapes and records, and zeros: `draw` makes the values.
    """
    value = bare(module, name, axes, role=role, fan_in=fan_in, fan_out=fan_out, width=width)
    return value * jnp.asarray(factors(module, name)["forward"], value.dtype)


def bare(module: nn.Module, name: str, axes: dict[str, int], *, role: str, fan_in=(), fan_out=(), width=()):
    """`declare` without the factor: for a product that applies its three factors itself (`lab.models.linear`)."""
    shape = tuple(axes.values())
    record = Record(shape, tuple(axes), fan_in, fan_out, width, None, role)
    return module.param(name, lambda key: Weight(jnp.zeros(shape, jnp.float32), record))


def factors(module: nn.Module, name: str) -> dict:
    """Scalars `forward`, `backward`, `gradient` of a weight, from the collection that `Model` passes beside weights."""
    return module.get_variable("factors", name, NEUTRAL)


def draw(key: jax.Array, path: str, record: Record) -> jax.Array:
    """The initial float32 value of the weight at `path` ("layers/mlp/up"), at unit scale.

    Gains are 1, biases 0, all else standard normal; the parametrization's `init_std` multiplies it afterwards, so that
    the scale is a number that enters the program. The key is folded by path, and threefry makes an element from its
    flat index: a weight depends on its name and shape and on no other weight, a layer of a stack (axis 0) not on their
    number, and none on the mesh (but for rounding).
    """
    if record.role == "norm":
        return jnp.ones(record.shape, jnp.float32)
    if record.role == "bias":
        return jnp.zeros(record.shape, jnp.float32)
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    flat = jax.random.normal(key, (math.prod(record.shape),), jnp.float32)  # flat compiles in a third of the time
    return flat.reshape(record.shape)


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path ("layers/mlp/up"), in the tree's order; a record is a leaf."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def is_record(leaf) -> bool:
    """Whether a leaf of a tree is a Record, for `jax.tree.map(..., is_leaf=is_record)`."""
    return isinstance(leaf, Record)
