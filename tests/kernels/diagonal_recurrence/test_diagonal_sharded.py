"""Over eight emulated devices: the same numbers, and communication that no length makes larger."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diagonal_problem import no_worse, problem, results

from kernels_pallas.diagonal_recurrence import diagonal_recurrence, sharded_diagonal_recurrence

MESH = jax.make_mesh((2, 2, 2), ("data", "time", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
LONG = jax.make_mesh((8,), ("time",), axis_types=(jax.sharding.AxisType.Auto,))
ALL = {"mesh": MESH, "batch_axis": "data", "channel_axis": "model", "sequence_axis": "time"}


@pytest.mark.parametrize("where", [ALL, {"mesh": LONG, "sequence_axis": "time"}], ids=["batch+channels+time", "time"])
@pytest.mark.parametrize("options", [{"segments": True}, {"constant": True}], ids=str)
def test_sharded_is_single_device(where, options):
    made = problem(length=64, width=8, decay=0.05, **options)
    single = results(functools.partial(diagonal_recurrence, output_final_state=True), made, jnp.float32)
    ours = functools.partial(sharded_diagonal_recurrence, output_final_state=True, **where)
    # The order of the sums differs: by a few roundings, as another number of tokens would.
    no_worse(results(ours, made, jnp.float32), single, single, ulps=8)


def test_a_segment_that_starts_with_a_shard_forgets_the_shard_before():
    x = jnp.ones((1, 16, 1))
    ids = np.repeat(np.arange(2), 8)[None]
    h = sharded_diagonal_recurrence(x, jnp.zeros(1), segment_ids=ids, mesh=LONG, sequence_axis="time")
    np.testing.assert_array_equal(h[0, :, 0], [*range(1, 9)] * 2)


def communicated(length):
    """Elements that the collectives of a training step give, by kind."""
    x = jax.ShapeDtypeStruct((2, length, 16), jnp.float32)

    def loss(x, log_a):
        return jnp.sum(sharded_diagonal_recurrence(x, log_a, mesh=LONG, sequence_axis="time") ** 2)

    split = jax.NamedSharding(LONG, jax.P(None, "time"))
    hlo = (
        jax.jit(jax.grad(loss, argnums=(0, 1)), in_shardings=split, out_shardings=split).lower(x, x).compile().as_text()
    )
    kinds = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
    found = re.findall(rf"= \w+\[([\d,]*)\]\S* ({kinds})(?:-start)?\(", hlo)
    return sorted((kind, int(np.prod([int(n) for n in shape.split(",")]))) for shape, kind in found)


def test_communication_does_not_grow_with_the_sequence():
    short = communicated(64)
    assert short == communicated(512)
    assert ("all-gather", 8 * 2 * 2 * 16) in short and sum(size for _, size in short) <= 3 * 8 * 2 * 2 * 16


def test_bad_meshes_are_named():
    x = jnp.zeros((2, 12, 8))
    with pytest.raises(ValueError, match="mesh: found axes .*, expected one named 'expert'"):
        sharded_diagonal_recurrence(x, x, mesh=MESH, batch_axis="expert")
    with pytest.raises(ValueError, match="dimension T: found 12, expected a multiple of the 8 devices on 'time'"):
        sharded_diagonal_recurrence(x, x, mesh=LONG, sequence_axis="time")
