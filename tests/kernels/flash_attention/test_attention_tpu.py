"""The TPU kernels, interpreted: value and every gradient against the float64 definition, races, vmap."""

import functools

import attention_draws as draws
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import dispatch
from kernels_pallas.flash_attention import flash_attention, tpu, tpu_backward

few = settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
TILES = {"queries": 128, "keys": 128}


def by_kernels(monkeypatch, interpret):
    """The public function takes the TPU's form, interpreted."""
    for module, name in ((tpu, "forward"), (tpu_backward, "backward")):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), interpret=interpret))
    monkeypatch.setattr(dispatch, "by_platform", lambda *args, tpu, gpu, cpu, what: tpu(*args))


@pytest.fixture
def interpreted(monkeypatch):
    by_kernels(monkeypatch, True)


attend = functools.partial(flash_attention, block_sizes=TILES)


@few
@given(draws.problems(longest=300, widths=(64,)))
def test_kernels(interpreted, problem):
    draws.assert_as_exact_as_the_definition(attend, problem)


@pytest.mark.long
@pytest.mark.parametrize("ambient", [None, "highest"])
@many
@given(draws.problems(longest=400, widths=(64, 96, 128, 192, 256)))
def test_kernels_widely(interpreted, ambient, problem):
    with jax.default_matmul_precision(ambient):
        draws.assert_as_exact_as_the_definition(attend, problem)


EVERYTHING = {
    "shape": (1, 300, 300, 2, 1, 64),
    "options": {"is_causal": True, "local_window_size": 150, "first_tokens": 5, "logits_soft_cap": 3.0},
    "bias": (1, 2),
    "sinks": True,
    "segments": 2,
}


def test_every_option_at_once(interpreted):
    draws.assert_as_exact_as_the_definition(attend, EVERYTHING)


def test_bfloat16_operands_under_an_ambient_precision(interpreted):
    with jax.default_matmul_precision("highest"):
        draws.assert_as_exact_as_the_definition(attend, EVERYTHING, dtype=jnp.bfloat16)


def test_no_races(monkeypatch):
    """The interpreter that follows each copy between memories; a race would make it raise or differ."""
    by_kernels(monkeypatch, pltpu.InterpretParams(detect_races=True))
    found, _, (g, _) = draws.arrays((1, 256, 256, 1, 1, 64))
    arrays = [jnp.asarray(x, jnp.float32) for x in found.values()]
    out, back = jax.vjp(functools.partial(attend, is_causal=True), *arrays)
    gradients = back(jnp.asarray(g, jnp.float32))
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter

    assert not interpreter.races.races_found
    exact = draws.defined(*arrays, return_lse=True, is_causal=True)[0]
    np.testing.assert_allclose(out, exact, atol=2e-5)
    assert all(np.all(np.isfinite(x)) for x in gradients)


def test_vmap_is_a_larger_batch(interpreted):
    found = [draws.arrays((1, 128, 128, 1, 1, 64), sinks=True, bias=(1, 1), seed=seed)[0] for seed in range(2)]
    runs = {name: jnp.stack([jnp.asarray(run[name], jnp.float32) for run in found]) for name in found[0]}

    def loss(run):
        return jnp.sum(jnp.cos(attend(**run, is_causal=True)))

    together = jax.vmap(jax.value_and_grad(loss))(runs)
    alone = [jax.value_and_grad(loss)({name: x[run] for name, x in runs.items()}) for run in range(2)]
    alone = jax.tree.map(lambda *x: np.stack(x), *alone)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), together, alone)
