"""The delta rule's GPU kernels: interpreted against the float64 reference, chosen for CUDA, compiled for an H200."""

from __future__ import annotations

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from delta_rule_problems import cast, close, errors, problem, value_and_grads, weights

from kernels_pallas.aot_gpu import lower_for_cuda
from kernels_pallas.delta_rule import api, delta_rule, gpu, gpu_backward
from kernels_pallas.delta_rule.tpu_chunk import parts
from kernels_pallas.gpu_chunks import WIDEST
from tests.kernels.jaxprs import assert_costs_are_declared, pallas_calls

PARTS = ("prepare", "walk", "outputs", "walk_back", "gradients")


@functools.cache
def ours(chunk=128):
    """One function, so that a shape is compiled once."""
    return functools.partial(delta_rule, output_final_state=True, block_sizes={"chunk": chunk})


@pytest.fixture
def interpreted(monkeypatch):
    """`delta_rule` by the interpreted GPU kernels, in the place of the CPU's form."""
    forms = {"forward": gpu.forward, "backward": gpu_backward.backward}
    forms = {name: functools.partial(form, interpret=True) for name, form in forms.items()}
    monkeypatch.setattr(api, "cpu", types.SimpleNamespace(**forms))


def long(*values):
    return pytest.param(*values, marks=pytest.mark.long, id=str(values))


@pytest.mark.parametrize(
    "options",
    [
        {"T": 140, "gate": "channel", "strongest": 4.0},
        long({"T": 150, "K": 24, "V": 40, "strongest": 4.0}),
        long({"T": 100, "gate": "none", "alike": 0.9, "segments": False}),
        long({"T": 300, "gate": "channel", "K": 100, "V": 96}),
        long({"T": 300, "K": 100, "V": 96, "strongest": 20.0}),
        long({"T": 1}),
        long({"T": 16, "N": 1, "K": 7, "V": 1, "gate": "channel"}),
    ],
    ids=str,
)
def test_value_and_gradients_against_float64(interpreted, options):
    close(ours(), problem(**options))


@pytest.mark.long
def test_a_short_chunk(interpreted):
    close(ours(16), problem(T=50))


@pytest.mark.long
@pytest.mark.parametrize("gate", ("head", "channel"))
def test_bfloat16(interpreted, gate):
    close(ours(), problem(gate=gate, T=140), jnp.bfloat16)


@pytest.mark.long
@pytest.mark.parametrize("gate", ("head", "channel"))
def test_strong_gates_leave_no_nan_and_lose_nothing(interpreted, gate):
    operands = problem(gate=gate, T=140, strongest=0.1)
    often = np.random.default_rng(5).uniform(size=operands["g"].shape) < 0.2
    close(ours(), operands | {"g": np.where(often, -50.0, operands["g"])})
    for everywhere in (-50.0, -np.inf):
        strong = cast(operands | {"g": np.full(operands["g"].shape, everywhere)}, np.float32)
        made = value_and_grads(ours(), strong, weights(strong))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize(("narrow", "limit"), [(False, 1e-4), (True, 2**-9)])  # bfloat16 operands round as much
def test_the_inverse_is_exact_where_sums_of_powers_explode(narrow, limit):
    k = problem(T=64, K=64, alike=0.9)["k"][0, :, 0]
    a = np.tril(2 * k @ k.T, -1)
    assert np.mean(k @ k.T) > 0.85
    x = jax.jit(gpu.inverse)(parts(jnp.asarray(a, jnp.float32), narrow))
    assert errors(x, np.linalg.inv(np.eye(64) + a)) < limit


def operands_of_shape(length=4096, dtype=jnp.bfloat16, gate="head", width=128, heads=8):
    shape = jax.ShapeDtypeStruct
    q, beta = shape((1, length, heads, width), dtype), shape((1, length, heads), jnp.float32)
    g = {"none": None, "head": beta, "channel": shape(q.shape, jnp.float32)}[gate]
    return q, q, q, beta, g, q


def trained(q, k, v, beta, g, do):
    o, pull = jax.vjp(delta_rule, q, k, v, beta, g)
    return o, pull(do)


def names(gate):
    return {f"delta_rule_{'vector' if gate == 'channel' else 'scalar'}_{part}" for part in PARTS}


@pytest.mark.parametrize("gate", ("none", "channel"))
def test_a_program_for_cuda_has_the_kernels_and_what_they_do_not_serve_the_plain_form(gate):
    def kernels(**options):
        text = lower_for_cuda(trained, *operands_of_shape(300, gate=gate, heads=2, **options))
        return set(re.findall(r"delta_rule_(?:scalar|vector)_\w+", text))

    assert kernels() == names(gate)
    assert not kernels(width=WIDEST + 1)
    with jax.enable_x64(True):
        assert not kernels(dtype=jnp.float64)


@pytest.mark.parametrize("gate", ("head", "channel"))
@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float32))
def test_declared_cost_is_that_of_the_programs_and_every_dot_pins_its_precision(gate, dtype):
    q, k, v, beta, g, do = operands_of_shape(512, dtype, gate)
    state = jax.ShapeDtypeStruct((1, 8, 128, 128), jnp.float32)
    forward = functools.partial(gpu.forward, resets=None, scale=1.0, chunk=128)
    _, _, states = jax.eval_shape(lambda *x: forward(*x[:5], initial_state=x[5]), q, k, v, beta, g, state)
    backward = functools.partial(gpu_backward.backward, resets=None, scale=1.0, chunk=128)
    found = [
        *pallas_calls(jax.make_jaxpr(lambda *x: forward(*x[:5], initial_state=x[5]))(q, k, v, beta, g, state).jaxpr),
        *pallas_calls(
            jax.make_jaxpr(lambda *x: backward(*x[:5], states=x[5], do=x[6], dfinal=x[7]))(
                q, k, v, beta, g, states, do, state
            ).jaxpr
        ),
    ]
    assert len(found) == 7
    for call in found:
        assert_costs_are_declared(call)


def compiles(compile_for_h200, gate="head", **options):
    text = compile_for_h200(trained, *operands_of_shape(gate=gate, **options)).as_text()
    assert set(re.findall(r'name = "(\w+)"', text)) >= names(gate)
    assert not re.findall(r"= \S+ (?:copy|transpose)\(", text)  # heads are not moved


def test_compiles_for_h200(compile_for_h200):
    compiles(compile_for_h200)


@pytest.mark.long
@pytest.mark.parametrize("gate", ("none", "head", "channel"))
@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float32))
@pytest.mark.parametrize(("width", "length"), [(64, 4096), (96, 1000), (128, 4096), (256, 512), (16, 1)])
def test_compiles_for_h200_in_every_width(compile_for_h200, gate, dtype, width, length):
    compiles(compile_for_h200, gate, dtype=dtype, width=width, length=length)
