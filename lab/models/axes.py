"""Which mesh axis a weight's logical axis is split over."""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import PartitionSpec

from lab.models.weight import Record

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
