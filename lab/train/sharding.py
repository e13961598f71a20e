"""Meshes, and where each array of a pack lies on them.

Axes: `run` (members of a pack), `data` (sequences), `fsdp` (sequences, and weights split by their width), `tensor`
(heads, MLP width, vocabulary). A weight's place follows from its record; optimizer state, accumulators and averages
lie where the weight lies whose path they end in.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lab.errors import ConfigError
from lab.models.axes import BATCH, partition_spec
from lab.models.weight import Record

AXES = ("run", "data", "fsdp", "tensor")


def make_mesh(mesh: ConfigDict, runs: int, devices: list | None = None) -> Mesh:
    """The mesh that a config asks for; `run` = 0 takes the devices that are left, at most one for each run.

    Raises:
      ConfigError: where the mesh needs more devices than there are.
    """
    devices = jax.devices() if devices is None else devices
    inner = mesh.data * mesh.fsdp * mesh.tensor
    run = mesh.run or max(1, min(runs, len(devices) // inner))
    if run * inner > len(devices):
        raise ConfigError(
            f"execution.mesh: run {run} x data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor} needs "
            f"{run * inner} devices, found {len(devices)}; make an axis smaller"
        )
    grid = np.array(devices[: run * inner]).reshape(run, mesh.data, mesh.fsdp, mesh.tensor)
    return Mesh(grid, AXES)


def batch_devices(mesh: Mesh) -> int:
    """Over how many devices the sequences of a micro-batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def state_shardings(state: Any, records: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each leaf of a pack's state, whose leading axis is `run`."""
    specs = {
        names(path): partition_spec(record, dict(mesh.shape))
        for path, record in jax.tree_util.tree_flatten_with_path(records, is_leaf=lambda x: isinstance(x, Record))[0]
    }

    def place(path, leaf):
        name = names(path)
        inner = next((specs[name[i:]] for i in range(len(name)) if name[i:] in specs), PartitionSpec())
        inner = inner if len(inner) <= leaf.ndim - 1 else PartitionSpec()
        return NamedSharding(mesh, PartitionSpec("run", *inner))

    return jax.tree_util.tree_map_with_path(place, state)


def names(path: tuple) -> tuple[str, ...]:
    """A key path as plain strings."""
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
