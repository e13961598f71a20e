"""The GPU kernels: interpreted against the definition in float64, lowered for CUDA, and compiled for an H200."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gla_problem import no_worse, problem, results, rounded

from kernels_pallas import dispatch
from kernels_pallas.aot_gpu import SHARED_BYTES, lower_for_cuda
from kernels_pallas.gated_linear_attention import gated_linear_attention, gpu, reference
from kernels_pallas.gpu_chunks import WIDEST
from tests.kernels.jaxprs import assert_costs_are_declared, pallas_calls

ours = functools.partial(gated_linear_attention, output_final_state=True)


@pytest.fixture
def interpreted(monkeypatch):
    """The public function with the GPU kernels, interpreted, on this CPU."""
    monkeypatch.setattr(dispatch, "by_platform", lambda *args, gpu, **_: gpu(*args, interpret=True))


def gold(made):
    with jax.enable_x64(True):
        return results(reference.gated_linear_attention, made, jnp.float64)


def long(*values):
    return pytest.param(*values, marks=pytest.mark.long, id=str(values))


@pytest.mark.parametrize(
    "more",
    [
        {"length": 150, "gate": "vector", "k": 24, "segments": True},
        long({"length": 200, "heads": 4, "shared": 2, "k": 24, "v": 40, "segments": True}),
        long({"length": 300, "gate": "vector", "k": 100, "v": 96, "decay": 1.0}),  # tiles of the state
        long({"length": 300, "k": 100, "v": 96, "decay": 20.0}),
        long({"length": 256, "gate": "head", "heads": 3, "shared": 3, "decay": 0.5}),
        long({"length": 130, "gate": "none"}),
        long({"length": 1, "gate": "vector"}),
        long({"length": 32, "k": 7, "v": 1}),
    ],
    ids=str,
)
def test_the_kernels_err_no_more_than_the_definition(interpreted, more):
    made = problem(**more)
    float32 = results(reference.gated_linear_attention, made, jnp.float32)
    no_worse(results(ours, made, jnp.float32), float32, gold(made))


@pytest.mark.long
@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_bfloat16_operands_cost_no_more_than_their_own_rounding(interpreted, gate):
    made = rounded(problem(length=256, gate=gate, decay=0.1), jnp.bfloat16)
    found = results(ours, made, jnp.bfloat16)
    float32 = results(reference.gated_linear_attention, made, jnp.bfloat16)
    no_worse(found, float32, gold(made), ulps=2, epsilon=2.0**-8)


@pytest.mark.long
@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_the_strongest_gates_give_no_nan(interpreted, gate):
    made = problem(length=130, gate=gate)
    made["g"] = np.full_like(made["g"], -50.0)
    made["g"][:, ::3] = -np.inf
    assert all(np.isfinite(x).all() for x in results(ours, made, jnp.float32))


def shapes(length=4096, gate="scalar", width=128, dtype=jnp.bfloat16, heads=8):
    """Arguments of the public function and their gradient's cotangent."""
    x = jax.ShapeDtypeStruct((1, length, heads, width), dtype)
    g = {"scalar": x.shape[:3], "vector": x.shape}[gate]
    return x, x, x, jax.ShapeDtypeStruct(g, jnp.float32), x


def trained(q, k, v, g, do):
    o, pull = jax.vjp(gated_linear_attention, q, k, v, g)
    return o, pull(do)


def names(kind):
    parts = ("states", "outputs", "gradients_of_states", "gradients")
    return {f"gated_linear_attention_{kind}_{part}" for part in parts}


@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_a_program_for_cuda_has_the_kernels_and_what_they_do_not_serve_the_plain_form(gate):
    def kernels(*arguments):
        return set(re.findall(rf"gated_linear_attention_{gate}_\w+", lower_for_cuda(trained, *arguments)))

    assert kernels(*shapes(300, gate)) == names(gate)
    assert not kernels(*shapes(300, gate, width=WIDEST + 1))
    with jax.enable_x64(True):
        assert not kernels(*shapes(300, gate, dtype=jnp.float64))


@pytest.mark.parametrize("gate", ["scalar", "vector"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_declared_cost_is_that_of_the_programs_and_every_dot_pins_its_precision(gate, dtype):
    q, k, v, g, do = (
        jax.ShapeDtypeStruct((1, x.shape[2], x.shape[1], *x.shape[3:]), x.dtype) for x in shapes(512, gate, dtype=dtype)
    )
    state = jax.ShapeDtypeStruct((1, 8, 128, 128), jnp.float32)
    forward = functools.partial(gpu.forward, scale=1.0, chunk=128)
    backward = functools.partial(gpu.backward, scale=1.0, chunk=128)
    _, _, saved = jax.eval_shape(forward, q, k, v, g, state)
    found = [
        *pallas_calls(jax.make_jaxpr(forward)(q, k, v, g, state).jaxpr),
        *pallas_calls(jax.make_jaxpr(backward)(q, k, v, g, saved, do, state).jaxpr),
    ]
    assert len(found) == 5
    for call in found:
        assert_costs_are_declared(call)


def compiles(compile_for_h200, *arguments):
    made = compile_for_h200(trained, *arguments)
    text = made.as_text()
    assert set(re.findall(r'name = "(\w+)"', text)) >= names("vector" if arguments[3].ndim == 4 else "scalar")
    assert not re.findall(r"= \S+ (?:copy|transpose)\(", text)  # heads are not moved
    return made


def test_compiles_for_h200(compile_for_h200):
    compiles(compile_for_h200, *shapes())


@pytest.mark.long
@pytest.mark.parametrize("gate", ["scalar", "vector"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(("width", "length"), [(64, 4096), (96, 1000), (128, 4096), (256, 512), (16, 1)])
def test_compiles_for_h200_in_every_width(compile_for_h200, gate, dtype, width, length):
    compiles(compile_for_h200, *shapes(length, gate, width, dtype))


@pytest.mark.long
def test_tiles_too_large_for_shared_memory_are_refused_by_the_compiler(compile_for_h200, monkeypatch):
    monkeypatch.setitem(gpu.TILES["bfloat16"], "scalar", (128, 256))
    with pytest.raises(Exception, match=rf"[Ss]hared memory.*{SHARED_BYTES}"):
        compile_for_h200(trained, *shapes(256, width=256))
