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
from kernels_pallas.flash_attention import flash_attention, reference, tiles, tpu, tpu_backward
from kernels_pallas.flash_attention.api import checked

few = settings(max_examples=2, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
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


@pytest.fixture
def no_room(monkeypatch):
    """No head fits in VMEM from end to end, as of long sequences: keys by blocks, gradients by two kernels."""
    monkeypatch.setattr(tiles, "vmem_limit", lambda: 0)


attend = functools.partial(flash_attention, block_sizes=TILES)


@few
@given(draws.problems(longest=300, widths=(64,)))
def test_kernels(interpreted, problem):
    draws.assert_as_exact_as_the_definition(attend, problem)


@pytest.mark.long
@pytest.mark.parametrize("ambient", [None, "highest"])
@pytest.mark.parametrize("room", [True, False])
@many
@given(draws.problems(longest=400, widths=(64, 96, 128, 192, 256)))
def test_kernels_widely(interpreted, monkeypatch, ambient, room, problem):
    if not room:
        monkeypatch.setattr(tiles, "vmem_limit", lambda: 0)
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


def test_every_option_at_once_by_blocks(interpreted, no_room):
    draws.assert_as_exact_as_the_definition(attend, EVERYTHING)


def test_bfloat16_operands_under_an_ambient_precision(interpreted):
    with jax.default_matmul_precision("highest"):
        draws.assert_as_exact_as_the_definition(attend, EVERYTHING, dtype=jnp.bfloat16)


@pytest.mark.parametrize("room", [True, False])
def test_no_races(monkeypatch, room):
    """The interpreter that follows each copy between memories; a race would make it raise or differ."""
    if not room:
        monkeypatch.setattr(tiles, "vmem_limit", lambda: 0)
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


def costs(function, *arguments):
    """{name of kernel: its CostEstimate}, and the FLOPs of each matrix product outside kernels."""
    found, products = {}, []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "pallas_call":
                found[equation.params["name"]] = equation.params["cost_estimate"]
            elif equation.primitive.name == "dot_general":
                ((over, _), _) = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                products.append(2 * equation.outvars[0].aval.size * int(np.prod([left[axis] for axis in over])))
            else:
                for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
                    if hasattr(inner, "eqns"):
                        walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found, products


@pytest.mark.parametrize("room", [True, False])
def test_cost_estimates_equal_a_count(monkeypatch, room):
    """Full attention in one block: FLOPs are products of the definition's size, bytes those of operands and results."""
    if not room:
        monkeypatch.setattr(tiles, "vmem_limit", lambda: 0)
    q, k = jnp.zeros((2, 256, 4, 64)), jnp.zeros((2, 256, 2, 64))
    row = jnp.zeros((2, 256, 4))
    setting, *prepared = checked(q, k, k, None, None, None)
    options = {**setting.of_scores, "block_sizes": {"queries": 256, "keys": 256}}
    _, products = costs(functools.partial(reference.attention, **setting.of_scores), *prepared)
    assert len(products) == 2 and len(set(products)) == 1
    made, _ = costs(functools.partial(tpu.forward, **options), *prepared)
    made |= costs(functools.partial(tpu_backward.backward, **options), *prepared, row, row, None, q)[0]
    flops = {name.removeprefix("flash_attention_"): cost.flops / products[0] for name, cost in made.items()}
    forward, rows = 2 * q.nbytes + 2 * k.nbytes + row.nbytes, 2 * row.nbytes
    moved = {name.removeprefix("flash_attention_"): cost.bytes_accessed for name, cost in made.items()}
    if room:
        assert flops == {"forward": 2, "backward": 5}
        assert moved == {"forward": forward, "backward": 3 * q.nbytes + 4 * k.nbytes + rows}
    else:
        assert flops == {"forward": 2, "backward_queries": 3, "backward_keys": 4}
        of_queries, of_keys = 3 * q.nbytes + 2 * k.nbytes + rows, 2 * q.nbytes + 4 * k.nbytes + rows
        assert moved == {"forward": forward, "backward_queries": of_queries, "backward_keys": of_keys}


def test_cost_of_a_causal_mask_is_that_of_the_blocks_it_meets():
    q = jnp.zeros((1, 1024, 1, 64))
    cost = {}
    for causal in (False, True):
        setting, *prepared = checked(q, q, q, None, None, None, is_causal=causal)
        made, _ = costs(functools.partial(tpu.forward, **setting.of_scores, block_sizes=TILES), *prepared)
        cost[causal] = made["flash_attention_forward"].flops
    assert cost[True] == cost[False] * 36 / 64


def test_vmap_is_a_larger_batch(interpreted):
    found = [draws.arrays((1, 128, 128, 1, 1, 64), sinks=True, bias=(1, 1), seed=seed)[0] for seed in range(2)]
    runs = {name: jnp.stack([jnp.asarray(run[name], jnp.float32) for run in found]) for name in found[0]}

    def loss(run):
        return jnp.sum(jnp.cos(attend(**run, is_causal=True)))

    together = jax.vmap(jax.value_and_grad(loss))(runs)
    alone = [jax.value_and_grad(loss)({name: x[run] for name, x in runs.items()}) for run in range(2)]
    alone = jax.tree.map(lambda *x: np.stack(x), *alone)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), together, alone)
