"""The GPU kernels: interpreted against the definition in float64, chosen for CUDA, compiled for an H200. No speed."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diagonal_problem import no_worse, problem, results
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_pallas import dispatch
from kernels_pallas.aot_gpu import lower_for_cuda
from kernels_pallas.diagonal_recurrence import diagonal_recurrence, gpu, reference, wkv

ours = functools.partial(diagonal_recurrence, output_final_state=True)


def gpu_here(patch, **options):
    """The public function with the GPU kernels, interpreted, on this CPU; few tokens a turn, so that it starts soon."""
    options = {"turn": 2, "parts": 1} | options
    patch.setattr(dispatch, "by_platform", lambda *args, gpu, **_: gpu(*args, interpret=True, **options))


def check(made):
    with jax.enable_x64(True):
        gold = results(reference.diagonal_recurrence, made, jnp.float64)
    float32 = results(reference.diagonal_recurrence, made, jnp.float32)
    no_worse(results(ours, made, jnp.float32), float32, gold)


@pytest.mark.parametrize(
    ("options", "parts"),
    [({"segments": True}, 3), ({"constant": True, "batch": 1}, 1)],
    ids=str,
)
def test_the_kernel_errs_no_more_than_the_definition(monkeypatch, options, parts):
    """41 tokens are no multiple of a turn, nor 21 turns of the parts; 40 channels none of a program's 32."""
    gpu_here(monkeypatch, parts=parts)
    check(problem(**{"length": 41, "width": 40} | options))


@pytest.mark.long
@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 99),
    length=st.sampled_from((1, 2, 15, 16, 17, 64, 130)),
    width=st.sampled_from((1, 32, 33, 100)),
    decay=st.sampled_from(("mixed", 0.001, 1.0, 20.0)),
    constant=st.booleans(),
    segments=st.booleans(),
    turn=st.sampled_from((1, 4, 16)),
    parts=st.sampled_from((1, 2, 5)),
)
def test_many_shapes(turn, parts, **drawn):
    with pytest.MonkeyPatch.context() as patch:
        gpu_here(patch, turn=turn, parts=parts)
        check(problem(**drawn))


def test_bfloat16_costs_no_more_than_its_own_rounding(monkeypatch):
    gpu_here(monkeypatch, parts=2)
    made = problem(length=50, decay=0.1, segments=True)
    made |= {n: np.asarray(jnp.asarray(made[n], jnp.bfloat16), float) for n in ("x", "log_a", "dh")}
    found = results(ours, made, jnp.bfloat16, jnp.bfloat16)
    with jax.enable_x64(True):
        gold = results(reference.diagonal_recurrence, made, jnp.float64)
    rounded = results(reference.diagonal_recurrence, made, jnp.bfloat16, jnp.bfloat16)
    no_worse(found[:3], rounded[:3], gold[:3], ulps=0.5, epsilon=2.0**-8)
    # The gradient of log_a is made of the rounded h: half an ulp of each product, and its own rounding.
    no_worse(found[3:], rounded[3:], gold[3:], ulps=1, epsilon=2.0**-8)
    assert np.abs(found[1] - gold[1]).max() < 1e-5 * np.abs(gold[1]).max()  # the carry is float32


def test_the_strongest_decays_give_no_nan(monkeypatch):
    gpu_here(monkeypatch, parts=2)
    made = problem(length=20)
    made["log_a"][:] = -50.0
    made["log_a"][:, ::3] = -np.inf
    check(made)


def test_runs_share_a_gate(monkeypatch):
    gpu_here(monkeypatch)
    runs = [problem(seed, length=9, decay=0.1) for seed in range(2)]
    x, log_a = (jnp.stack([jnp.asarray(run[n], jnp.float32) for run in runs]) for n in ("x", "log_a"))

    def loss(x, log_a):
        return jnp.sum(diagonal_recurrence(x, log_a) ** 2)

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    packed = jax.jit(jax.vmap(value_and_grad, in_axes=(0, None)))(x, log_a[0])
    for run in range(2):
        alone = value_and_grad(x[run], log_a[0])
        jax.tree.map(lambda p, q, run=run: np.testing.assert_allclose(p[run], q, rtol=2e-5, atol=1e-5), packed, alone)


def test_few_programs_are_made_many():
    """One sequence of 64 channels in parts of 256 tokens at least; with a thousand programs at hand in one."""
    cut = gpu._Cut((1, 4100, 64), jnp.zeros((1, 1, 64)), None, gpu.TURN)
    assert cut.grid == (1, 2, 16) and 16 * cut.turns * gpu.TURN >= 4100 > 15 * cut.turns * gpu.TURN
    assert gpu._Cut((64, 4096, 1024), jnp.zeros((1, 1, 64)), None, gpu.TURN).grid == (64, 32, 1)


def test_what_the_calls_declare():
    """Every array read or written once; in two parts their ends are found by a kernel of its own."""
    x, state = jax.ShapeDtypeStruct((3, 512, 64), jnp.float32), jax.ShapeDtypeStruct((3, 64), jnp.float32)
    for function, arguments in ((gpu.forward, (x, x, state)), (gpu.backward, (x, state, x, x, state))):
        jaxpr = jax.make_jaxpr(functools.partial(function, parts=2))(*arguments)
        calls = [e for e in jaxpr.eqns if e.primitive.name == "pallas_call"]
        for call, flops in zip(calls, (3, 2 if function is gpu.forward else 3), strict=True):
            cost = call.params["cost_estimate"]
            moved = sum(v.aval.size * v.aval.dtype.itemsize for v in (*call.invars, *call.outvars))
            assert (cost.flops, cost.transcendentals) == (flops * 3 * 512 * 64, 3 * 512 * 64)
            assert cost.bytes_accessed == moved


def train(x, log_a):
    return jax.value_and_grad(lambda x, g: jnp.sum(diagonal_recurrence(x, g).astype(jnp.float32) ** 2), (0, 1))(
        x, log_a
    )


def train_wkv(k, v):
    w, u = jnp.full(k.shape[2], -0.1), jnp.zeros(k.shape[2])
    return jax.grad(lambda k, v: jnp.sum(wkv(k, v, w, u).astype(jnp.float32) ** 2), (0, 1))(k, v)


@pytest.mark.parametrize("step", [train, train_wkv])
def test_cuda_takes_the_kernels_and_float64_the_plain_form(step):
    text = lower_for_cuda(step, *[jax.ShapeDtypeStruct((2, 300, 40), jnp.float32)] * 2)
    assert "diagonal_recurrence_forward" in text and "diagonal_recurrence_backward" in text
    with jax.enable_x64(True):
        text = lower_for_cuda(step, *[jax.ShapeDtypeStruct((2, 300, 40), jnp.float64)] * 2)
    assert "triton" not in text


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.long)])
@pytest.mark.parametrize("shape", [(2, 4096, 1024), pytest.param((64, 1000, 1000), marks=pytest.mark.long)], ids=str)
def test_a_training_step_compiles_for_an_h200(compile_for_h200, shape, dtype):
    text = compile_for_h200(train, *[jax.ShapeDtypeStruct(shape, dtype)] * 2).as_text()
    assert 'name = "diagonal_recurrence_forward"' in text and 'name = "diagonal_recurrence_backward"' in text
    assert ('name = "diagonal_recurrence_ends"' in text) == (shape[0] == 2)
