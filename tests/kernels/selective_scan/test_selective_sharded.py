"""Over eight emulated devices: the same numbers, and communication that no length makes larger."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selective_problem import no_worse, problem, results

from kernels_pallas.selective_scan import selective_scan, sharded_selective_scan

MESH = jax.make_mesh((2, 2, 2), ("data", "time", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
LONG = jax.make_mesh((8,), ("time",), axis_types=(jax.sharding.AxisType.Auto,))
ALL = {"mesh": MESH, "batch_axis": "data", "channel_axis": "model", "sequence_axis": "time"}


@pytest.mark.parametrize("where", [ALL, {"mesh": LONG, "sequence_axis": "time"}], ids=["batch+channels+time", "time"])
def test_sharded_is_single_device(where):
    made = problem(length=64, segments=True)
    single = results(functools.partial(selective_scan, output_final_state=True), made, jnp.float32)
    ours = functools.partial(sharded_selective_scan, output_final_state=True, **where)
    # The order of the sums differs: by a few roundings, as another number of tokens would.
    no_worse(results(ours, made, jnp.float32), single, single, ulps=16)


def communicated(length):
    """Elements that the collectives of a training step give, by kind."""
    shape = jax.ShapeDtypeStruct
    x, columns = shape((2, length, 16), jnp.float32), shape((2, length, 4), jnp.float32)

    def loss(x, dt, A, B, C):
        return jnp.sum(sharded_selective_scan(x, dt, A, B, C, mesh=LONG, sequence_axis="time") ** 2)

    split, whole = (jax.NamedSharding(LONG, spec) for spec in (jax.P(None, "time"), jax.P()))
    places = (split, split, whole, split, split)
    step = jax.jit(jax.grad(loss, argnums=range(5)), in_shardings=places, out_shardings=places)
    hlo = step.lower(x, x, shape((16, 4), jnp.float32), columns, columns).compile().as_text()
    kinds = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
    found = re.findall(rf"= \w+\[([\d,]*)\]\S* ({kinds})(?:-start)?\(", hlo)
    return sorted((kind, int(np.prod([int(n) for n in shape.split(",")]))) for shape, kind in found)


def test_communication_does_not_grow_with_the_sequence():
    short = communicated(64)
    pair = 2 * 2 * 16 * 4
    assert ("all-gather", 8 * pair) in short and sum(size for _, size in short) <= 3 * 8 * pair
    assert short == communicated(512)
