"""Attention and its gradient against autodiff of softmax(QK')V, in float64 and under each way of executing runs.

Arrays are [batch, heads, head width, length].
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lab.models.attend import attend, blocks


def naive(q, k, v):
    """Autodiff's: repeated keys and values, a full score matrix, jax.nn.softmax."""
    groups = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(x, groups, axis=1) for x in (k, v))
    scores = jnp.einsum("bhdt,bhds->bhts", q, k)
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("bhts,bhds->bhdt", jax.nn.softmax(jnp.where(causal, scores, -jnp.inf)), v)


def draw(batch, length, head_width, *heads, dtype=np.float64):
    noise = np.random.default_rng(5)
    return [noise.normal(size=(batch, h, head_width, length)).astype(dtype) for h in heads]


def value_and_gradients(function):
    def both(q, k, v, g):
        out, back = jax.vjp(function, q, k, v)
        return out, back(g)

    return both


@pytest.mark.parametrize("length", [1, 65, 128, 259])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_values_and_gradients_equal_autodiff(length, kv_heads):
    with jax.enable_x64(True):
        arrays = draw(2, length, 6, 4, kv_heads, kv_heads, 4)
        arrays[0] *= 5  # sharp probabilities
        ours, theirs = (jax.jit(value_and_gradients(f))(*arrays) for f in (attend, naive))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10), ours, theirs)


def test_large_scores_do_not_overflow():
    q, k, v = draw(1, 70, 4, 2, 2, 2, dtype=np.float32)
    out, gradients = value_and_gradients(attend)(100 * q, 100 * k, v, v)
    assert all(np.isfinite(x).all() for x in (out, *gradients))


@pytest.mark.parametrize("length", [1, 63, 64, 100, 128, 1000])
def test_blocks_tile_the_queries(length):
    found = blocks(length)
    assert [t for start, end in found for t in range(start, end)] == list(range(length)) and len(found) <= 4


def test_vmap_and_map_over_runs_equal_each_run_alone():
    with jax.enable_x64(True):
        q, k, v, g = (np.stack([x, 2 * x, -x]) for x in draw(2, 70, 4, 4, 2, 2, 4))
        one = value_and_gradients(attend)
        alone = [one(*arrays) for arrays in zip(q, k, v, g, strict=True)]
        alone = jax.tree.map(lambda *x: np.stack(x), *alone)
        together = jax.jit(jax.vmap(one))(q, k, v, g)
        looped = jax.jit(lambda *a: jax.lax.map(lambda x: one(*x), a))(q, k, v, g)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12), alone, together)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12), alone, looped)


@pytest.mark.parametrize("how", ["jit", "shard_map"])
def test_sharded_over_sequences_and_heads(how):
    """Four devices, two along the batch and two along the heads; the program has no collective."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    spec = PartitionSpec("data", "tensor", None, None)
    with jax.enable_x64(True):
        arrays = draw(2, 70, 4, 4, 2, 2, 4)
        one = value_and_gradients(attend)
        alone = jax.jit(one)(*arrays)
        if how == "shard_map":
            one = jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec)
        placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x in arrays]
        program = jax.jit(one, out_shardings=NamedSharding(mesh, spec)).lower(*placed).compile()
        split = program(*placed)
    assert not any(word in program.as_text() for word in ("all-gather", "all-reduce", "all-to-all", "collective"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12), alone, split)
