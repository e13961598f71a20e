"""The plain XLA form against the float64 definition: value and every gradient, short and tiled."""

import attention_draws as draws
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from jax.test_util import check_grads

from kernels_pallas.flash_attention import cpu, flash_attention

few = settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def tiled(monkeypatch):
    """Every sequence counts as long, in tiles of 64 queries and 32 keys."""
    monkeypatch.setattr(cpu, "SHORT", 0)
    monkeypatch.setattr(cpu, "tile_sizes", lambda mask, *_: (min(64, mask.queries), min(32, mask.keys)))


@few
@given(draws.problems())
def test_short_form(problem):
    draws.assert_as_exact_as_the_definition(flash_attention, problem)


@few
@given(draws.problems())
def test_tiled_form(tiled, problem):
    draws.assert_as_exact_as_the_definition(flash_attention, problem)


@pytest.mark.long
@pytest.mark.parametrize("ambient", [None, "highest"])
@many
@given(draws.problems())
def test_short_form_widely(ambient, problem):
    with jax.default_matmul_precision(ambient):
        draws.assert_as_exact_as_the_definition(flash_attention, problem)


@pytest.mark.long
@pytest.mark.parametrize("ambient", [None, "highest"])
@many
@given(draws.problems())
def test_tiled_form_widely(tiled, ambient, problem):
    with jax.default_matmul_precision(ambient):
        draws.assert_as_exact_as_the_definition(flash_attention, problem)


EVERYTHING = {
    "shape": (2, 90, 90, 4, 2, 8),
    "options": {"is_causal": True, "local_window_size": 40, "first_tokens": 5},
    "bias": (1, 4),
    "sinks": True,
    "segments": 3,
}


def test_bfloat16_operands_under_an_ambient_precision():
    with jax.default_matmul_precision("highest"):
        draws.assert_as_exact_as_the_definition(flash_attention, EVERYTHING, dtype=jnp.bfloat16)


def test_finite_differences():
    """Of every gradient, the soft cap and a query that sees nothing among the options."""
    found, _, _ = draws.arrays((1, 7, 6, 2, 1, 4), bias=(1, 2), sinks=True)
    ids = np.array([[0, 0, 1, 1, 1, 1, 1]]), np.array([[0, 0, 0, 1, 1, 1]])

    def both(query, key, value, bias, sinks):
        return flash_attention(
            query, key, value, bias, sinks=sinks, segment_ids=ids, is_causal=True, logits_soft_cap=3.0, return_lse=True
        )

    with jax.enable_x64(True):
        found = tuple(jnp.asarray(x, jnp.float64) for x in found.values())
        check_grads(both, found, order=1, modes=["rev"], eps=1e-6, rtol=1e-6)


@pytest.mark.parametrize("short", [True, False])
def test_a_query_that_sees_nothing_has_zeros_and_no_gradient(monkeypatch, short):
    monkeypatch.setattr(cpu, "SHORT", 512 if short else 0)
    found, _, (g, _) = draws.arrays((1, 6, 3, 2, 2, 4))
    found = [jnp.asarray(x, jnp.float32) for x in found.values()]

    def loss(*arrays):
        out, lse = flash_attention(*arrays, is_causal=True, return_lse=True)
        return jnp.sum(out * g), (out, lse)

    (_, (out, lse)), (dq, dk, dv) = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*found)
    assert np.all(out[:, :3] == 0) and np.all(dq[:, :3] == 0) and np.all(np.isneginf(lse[:, :3]))
    assert np.all(out[:, 3:] != 0) and all(np.all(np.isfinite(x)) for x in (dq, dk, dv, lse[:, 3:]))


def test_large_scores_do_not_overflow():
    found, _, _ = draws.arrays((1, 70, 70, 2, 2, 4))
    q, k, v = (jnp.asarray(x, jnp.float32) for x in found.values())
    out, back = jax.vjp(lambda *x: flash_attention(*x, is_causal=True), 100 * q, 100 * k, v)
    assert all(np.isfinite(x).all() for x in (out, *back(v)))


@pytest.mark.parametrize("queries, keys", [(0, 5), (5, 0), (1, 1)])
def test_nothing_and_one(queries, keys):
    found, _, _ = draws.arrays((2, queries, keys, 2, 1, 4))
    q, k, v = (jnp.asarray(x, jnp.float32) for x in found.values())
    out, lse = flash_attention(q, k, v, is_causal=True, return_lse=True)
    assert out.shape == q.shape and lse.shape == q.shape[:3]
    if keys == 0:
        assert np.all(out == 0) and np.all(np.isneginf(lse))
    elif queries == 1:
        np.testing.assert_allclose(out, np.repeat(v, 2, axis=2), rtol=1e-6)


@pytest.mark.parametrize("length", [70, 600])
def test_vmap_over_runs_equals_each_run_alone(length):
    problem = {"shape": (2, length, length, 2, 1, 4), "bias": (1, 2), "sinks": True}
    runs = [draws.arrays(**problem, seed=seed)[0] for seed in range(3)]
    stacked = {name: np.stack([run[name] for run in runs]) for name in runs[0]}
    shared = stacked.pop("bias")[0]
    ids = np.sort(np.random.default_rng(0).integers(0, 3, (2, length)), -1)

    def loss(found, bias):
        out = flash_attention(**found, bias=bias, is_causal=True, segment_ids=ids)
        return jnp.sum(out * jnp.cos(out))

    with jax.enable_x64(True):
        one = jax.jit(jax.value_and_grad(loss, (0, 1)))
        alone = [one({name: x[run] for name, x in stacked.items()}, shared) for run in range(3)]
        together = jax.jit(jax.vmap(one, in_axes=(0, None)))(stacked, shared)
    stacked_alone = jax.tree.map(lambda *x: np.stack(x), *alone)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12), together, stacked_alone)
