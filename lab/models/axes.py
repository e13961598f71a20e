"""Which mesh axis a weight's logical axis is split over, and a micro-batch's sequences and heads."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from lab.models.weight import Record

BATCH = ("data", "fsdp")
RULES = {
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_width": None,
    "mlp": "tensor",
    "vocab": "tensor",
}


def partition_spec(
    record: Record, mesh_shape: Mapping[str, int], rules: Mapping[str, str | None] = RULES
) -> PartitionSpec:
    """The PartitionSpec of a weight on a mesh of these axis sizes (`mesh.shape`).

    An axis stays whole where its rule says None, the mesh lacks the axis or has one device along it, the size does not
    divide, or an earlier axis of the same weight took it. An unknown logical axis is whole. Heads are split whole.
    """
    taken, spec = set(), []
    for name, size in zip(record.axes, record.shape, strict=True):
        axis = rules.get(name)
        devices = mesh_shape.get(axis, 1) if axis else 1
        fits = devices > 1 and size % devices == 0 and axis not in taken
        spec.append(axis if fits else None)
        if fits:
            taken.add(axis)
    return PartitionSpec(*spec)


def free_axes(mesh: AbstractMesh) -> set[str]:
    """The axes over which XLA, and not a `shard_map`, splits what is traced; none where there is no mesh."""
    return {name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto}


def heads_spec(mesh: AbstractMesh, batch: int, kv_heads: int) -> PartitionSpec:
    """The PartitionSpec of [batch, heads, ...]: sequences over the batch axes, heads over the tensor axis, or whole."""
    sequences = tuple(axis for axis in BATCH if axis in free_axes(mesh))
    heads = RULES["kv_heads"]
    return PartitionSpec(
        sequences if batch % math.prod(mesh.shape[axis] for axis in sequences) == 0 else None,
        heads if heads in free_axes(mesh) and kv_heads % mesh.shape[heads] == 0 else None,
    )
