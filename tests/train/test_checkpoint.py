"""Checkpoints: exact, overlapped, and whole or passed over, whatever happens to the process or to its files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lab.train.checkpoint import Checkpointer


@struct.dataclass
class State:
    weights: dict
    optimizer: tuple
    step: jax.Array
    keys: jax.Array
    tokens: np.ndarray


def sharding(devices):
    mesh = jax.make_mesh((devices,), ("run",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec("run"))


def make_state(seed, devices=8, runs=8, width=6):
    rng = np.random.default_rng(seed)
    weights = {"embed": rng.normal(size=(runs, 5, width)), "mlp": {"up": rng.normal(size=(runs, width))}}
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights)
    weights["low"] = jnp.asarray(rng.normal(size=(runs, 3)), jnp.bfloat16)
    optimizer = jax.vmap(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init)(weights)
    keys = jax.vmap(jax.random.key)(jnp.arange(runs) + seed)
    state = State(weights, optimizer, jnp.full((runs,), seed, jnp.int32), keys, jnp.arange(runs) * seed)
    return jax.device_put(state, sharding(devices))


def abstract(state, devices):
    placed = sharding(devices)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), state)


def plain(state):
    raw = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state)
    return jax.tree.map(np.asarray, raw)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.map(lambda x: str(x.dtype), found) == jax.tree.map(lambda x: str(x.dtype), expected)
    jax.tree.map(np.testing.assert_array_equal, plain(found), plain(expected))


@pytest.mark.parametrize("saved_on", [8, 1, 2])
def test_restores_on_other_device_counts(tmp_path, saved_on):
    state = make_state(3, saved_on)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(17, state, {"runs": ["a", "b"]})
        for devices in (1, 2, 4, 8):
            tick, found, meta = checkpointer.restore(abstract(state, devices))
            assert (tick, meta) == (17, {"runs": ["a", "b"]})
            assert_same(found, state)
            assert all(leaf.sharding.num_devices == devices for leaf in jax.tree.leaves(found))
