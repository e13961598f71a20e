"""The delta rule's TPU kernels: interpreted against the float64 reference, and compiled for TPUs that are not there."""

from __future__ import annotations

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from delta_rule_problems import cast, close, errors, problem, truth, value_and_grads, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # where races are noted; no public name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.cases import size_of
from kernels_pallas.chips import CHIPS
from kernels_pallas.delta_rule import api, cases, delta_rule, tpu, tpu_chunk
from tests.kernels.jaxprs import pallas_calls, work

GATES = ("none", "head", "channel")


@functools.cache
def by_kernels(interpret=True):
    """`delta_rule` by the interpreted TPU kernels; the same function again, so that one shape is compiled once."""

    def form(function):
        return lambda *a, chunk, **kw: function(*a, **kw, heads=2, interpret=interpret)

    forms = types.SimpleNamespace(forward=form(tpu.forward), backward=form(tpu.backward))

    def rule(**operands):
        return delta_rule(**operands, output_final_state=True)

    rule.forms = forms
    return rule


@pytest.fixture
def interpreted(monkeypatch):
    def use(**settings):
        rule = by_kernels(**settings)
        monkeypatch.setattr(api, "cpu", rule.forms)
        return rule

    return use


@pytest.mark.parametrize("gate", (*(pytest.param(g, marks=pytest.mark.long) for g in ("none", "head")), "channel"))
def test_value_and_gradients_against_float64(interpreted, gate):
    close(interpreted(), problem(gate=gate, T=200, strongest=4.0))


@pytest.mark.parametrize("gate", ("head", "channel"))
def test_strong_gates_leave_no_nan_and_lose_nothing(interpreted, gate):
    function, operands = interpreted(), problem(gate=gate, T=200, strongest=0.1)
    often = np.random.default_rng(5).uniform(size=operands["g"].shape) < 0.2
    close(function, operands | {"g": np.where(often, -50.0, operands["g"])})
    for everywhere in (-50.0, -np.inf):
        strong = cast(operands | {"g": np.full(operands["g"].shape, everywhere)}, np.float32)
        made = value_and_grads(function, strong, weights(strong))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made))


@pytest.mark.long
@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.tuples(st.integers(0, 10**6), st.sampled_from(GATES), st.integers(1, 400), st.booleans()))
def test_value_and_gradients_against_float64_long(options):
    seed, gate, length, segments = options
    with pytest.MonkeyPatch.context() as patch:
        rule = by_kernels()
        patch.setattr(api, "cpu", rule.forms)
        close(rule, problem(seed, T=length, gate=gate, strongest=4.0, segments=segments))


@pytest.mark.parametrize("gate", ("head", pytest.param("channel", marks=pytest.mark.long)))
def test_bfloat16(interpreted, gate):
    close(interpreted(), problem(gate=gate, T=140), jnp.bfloat16)


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1e-4), (jnp.bfloat16, 2**-9)])
def test_the_inverse_is_exact_where_sums_of_powers_explode(dtype, limit):
    k = problem(T=128, K=64, alike=0.9)["k"][0, :, 0]
    a = np.tril(2 * k @ k.T, -1).astype(np.float32)
    narrow = dtype == jnp.bfloat16  # then the operands' own rounding is the limit

    def kernel(a, x, a_parts, x_parts, y_parts):
        tpu_chunk.write_parts(a_parts, 0, a[...], narrow)
        tpu_chunk.invert(a_parts, x_parts, y_parts, 1, narrow)
        x[...] = sum(part.astype(jnp.float32) for part in tpu_chunk.read_parts(x_parts, 0))

    scratch = [pltpu.VMEM((2 if narrow else 1, 1, 128, 128), dtype)] * 3
    x = pl.pallas_call(
        kernel, out_shape=jax.ShapeDtypeStruct(a.shape, a.dtype), scratch_shapes=scratch, interpret=True
    )(a)
    for block in (slice(0, 64), slice(64, 128)):
        true = np.linalg.inv(np.eye(64) + a[block, block].astype(np.float64))
        assert errors(x[block, block], true) < limit
    assert np.mean(k @ k.T) > 0.85


@pytest.mark.parametrize("gate", ("head", pytest.param("channel", marks=pytest.mark.long)))
def test_no_races(interpreted, gate):
    operands = cast(problem(gate=gate, T=130, K=8, V=8), np.float32)
    function = interpreted(interpret=pltpu.InterpretParams(detect_races=True))
    made = value_and_grads(function, operands, weights(operands))
    assert not interpret_pallas_call.races.races_found
    assert max(jax.tree.leaves(errors(made, truth(operands)))) < 1e-5


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: f"{case.direction} {case.label}")
def test_cost_estimate_is_what_the_kernel_does_and_every_dot_pins_its_precision(case):
    (call,) = pallas_calls(jax.make_jaxpr(case.function)(*case.arguments).jaxpr)
    kernel = call.params
    steps = np.prod(kernel["grid_mapping"].grid)
    cost = kernel["cost_estimate"]
    assert steps == sum(case.steps.values())
    np.testing.assert_allclose([cost.flops, cost.transcendentals], steps * np.array(work(kernel["jaxpr"])), rtol=0.01)
    assert cost.bytes_accessed == case.floor_bytes


def compiles(compile_for, case, chip):
    made = compile_for(chip, case.function, *case.arguments, free_layouts=True)
    (kernel,) = made.kernels
    assert re.sub(r"\.\d+$", "", kernel.name) in case.steps
    assert kernel.vmem_bytes <= CHIPS[chip].vmem_bytes
    assert made.moves() == []
    assert made.accessed_bytes <= 1.1 * case.floor_bytes
    return kernel


@pytest.mark.parametrize("direction", ("forward", "backward"))
def test_compiles_for_v5e(compile_for, direction):
    case = next(case for case in cases.CASES if case.direction == direction)
    compiles(compile_for, case, "v5e")


@pytest.mark.long
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: f"{case.direction} {case.label}")
def test_compiles_for_every_chip(compile_for, case, chip):
    compiles(compile_for, case, chip)


def operands_of_shape(length, dtype=jnp.bfloat16, gate="head", batch=2, heads=8, width=128):
    shape = jax.ShapeDtypeStruct
    q, beta = shape((batch, length, heads, width), dtype), shape((batch, length, heads), jnp.float32)
    g = {"none": None, "head": beta, "channel": shape(q.shape, jnp.float32)}[gate]
    return {"q": q, "k": q, "v": q, "beta": beta, "g": g}


def gradient(operands):
    def loss(operands):
        return jnp.sum(delta_rule(**operands).astype(jnp.float32) ** 2)

    return jax.value_and_grad(loss)(operands)


@pytest.mark.parametrize("length", (8192, pytest.param(32768, marks=pytest.mark.long)))
def test_memory_of_the_gradient_grows_with_the_length(compile_for, length):
    temps = []
    for T in (length, 4 * length):
        operands = operands_of_shape(T, batch=8)  # below 128 MB the compiler keeps states in VMEM
        temps.append(compile_for("v5e", gradient, operands, free_layouts=True).temp_bytes)
    assert temps[1] <= 4.2 * temps[0]
    assert temps[1] < size_of(*(operands[name] for name in "qkv"))


OPTIONS = {
    "ragged": {"length": 1000},
    "short": {"length": 50},
    "no decay": {"gate": "none"},
    "per channel, float32": {"gate": "channel", "dtype": jnp.float32},
    "12 heads of width 64": {"heads": 12, "width": 64},
    "width 256": {"width": 256, "heads": 2},
}


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIONS)
def test_options_compile(compile_for, name):
    operands = operands_of_shape(**{"length": 1024} | OPTIONS[name])
    operands["segment_ids"] = jax.ShapeDtypeStruct(operands["q"].shape[:2], jnp.int32)

    def program(operands):
        ids = operands.pop("segment_ids")
        loss = functools.partial(delta_rule, segment_ids=ids, output_final_state=True)
        return jax.vjp(lambda x: loss(**x), operands)[1]

    def whole(operands):
        pull = program(operands)
        (o, final) = jax.eval_shape(lambda x: delta_rule(**x, output_final_state=True), operands)
        return pull((jnp.ones(o.shape, o.dtype), jnp.ones(final.shape, final.dtype)))

    with jax.default_matmul_precision("highest"):
        assert len(compile_for("v5e", whole, operands).kernels) == 2


def test_vmap_is_one_kernel_with_a_larger_batch(compile_for):
    operands = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), operands_of_shape(256, heads=2))
    made = compile_for("v5e", jax.vmap(gradient), operands)
    assert len(made.kernels) == 2
