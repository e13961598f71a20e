"""The GPU kernels: interpreted against the definition in float64, chosen for CUDA, compiled for an H200. No speed."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selective_problem import TOKENS, no_worse, problem, results

from kernels_pallas import dispatch
from kernels_pallas.aot_gpu import lower_for_cuda
from kernels_pallas.selective_scan import gpu, reference, selective_scan

ours = functools.partial(selective_scan, output_final_state=True)


def gpu_here(patch, **options):
    """The public function with the GPU kernels, interpreted, on this CPU, in blocks of few tokens."""
    options = {"rows": 8, "parts": 1, "turn": 2} | options
    patch.setattr(dispatch, "by_platform", lambda *args, gpu, **_: gpu(*args, interpret=True, **options))


def gold(made):
    with jax.enable_x64(True):
        return results(reference.selective_scan, made, jnp.float64)


def check(made):
    float32 = results(reference.selective_scan, made, jnp.float32)
    no_worse(results(ours, made, jnp.float32), float32, gold(made))


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.long), 2])
def test_the_kernel_errs_no_more_than_the_definition(monkeypatch, parts):
    """21 tokens are no multiple of a block, nor three blocks of the parts; 40 channels and five states fill no tile."""
    gpu_here(monkeypatch, parts=parts)
    check(problem(length=21, width=40, n=5, batch=parts, segments=True))


@pytest.mark.long
@settings(max_examples=15, derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 99),
    length=st.sampled_from((1, 2, 7, 8, 9, 30)),
    width=st.sampled_from((1, 12, 32, 70)),
    n=st.sampled_from((1, 4, 16, 20)),
    time=st.sampled_from((0.001, 0.1, 5.0)),
    extras=st.booleans(),
    segments=st.booleans(),
    rows=st.sampled_from((4, 8, 128)),
    parts=st.sampled_from((1, 2, 5)),
)
def test_many_shapes(rows, parts, **drawn):
    with pytest.MonkeyPatch.context() as patch:
        gpu_here(patch, rows=rows, parts=parts)
        check(problem(**drawn))


@pytest.mark.long  # as long to trace and compile, interpreted, as the one above
def test_bfloat16_costs_no_more_than_its_own_rounding(monkeypatch):
    """Between the kernel and D and z stands a rounding more than in the definition."""
    gpu_here(monkeypatch)
    made = problem(length=20, segments=True)
    made |= {n: np.asarray(jnp.asarray(made[n], jnp.bfloat16), float) for n in (*TOKENS, "dy")}
    found, rounded = results(ours, made, jnp.bfloat16), results(reference.selective_scan, made, jnp.bfloat16)
    no_worse(found, rounded, gold(made), ulps=1, epsilon=2.0**-8)


@pytest.mark.long  # as long to trace and compile, interpreted, as the one above
def test_the_strongest_decays_give_no_nan(monkeypatch):
    gpu_here(monkeypatch, parts=2)
    made = problem(length=20, extras=False)
    made["A"][:] = -50.0
    made["dt"][:] = 1.0
    check(made)


@pytest.mark.long  # as long to trace and compile, interpreted, as the one above
def test_runs_share_what_is_not_mapped(monkeypatch):
    gpu_here(monkeypatch)
    runs = [problem(seed, length=9, extras=False) for seed in range(2)]
    names = ("x", "dt", "A", "B", "C")
    x, *rest = (jnp.stack([jnp.asarray(run[n], jnp.float32) for run in runs]) for n in names)
    rest = [y[0] for y in rest]
    value_and_grad = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(selective_scan(*a) ** 2), argnums=range(5)))
    packed = jax.jit(jax.vmap(value_and_grad, in_axes=(0, *[None] * 4)))(x, *rest)
    for run in range(2):
        alone = value_and_grad(x[run], *rest)
        jax.tree.map(lambda p, q, run=run: np.testing.assert_allclose(p[run], q, rtol=2e-5, atol=1e-4), packed, alone)


def test_what_the_calls_declare():
    """Every array read or written once; every exponential once forward, twice where states are made again."""
    shape = jax.ShapeDtypeStruct
    x, A, columns = shape((2, 512, 64), jnp.float32), shape((1, 16, 64), jnp.float32), shape((2, 16, 512), jnp.float32)
    state, states = shape((2, 16, 64), jnp.float32), shape((2, 4, 16, 64), jnp.float32)
    for function, last in ((gpu.forward, (state,)), (gpu.backward, (states, x, state))):
        made = functools.partial(function, rows=128, parts=2)
        calls = [e for e in jax.make_jaxpr(made)(x, x, A, columns, columns, *last).eqns if "call" in e.primitive.name]
        calls = [call for call in calls if call.primitive.name == "pallas_call"]
        for call, exponentials in zip(calls, (1, 1 if function is gpu.forward else 2), strict=True):
            cost = call.params["cost_estimate"]
            assert cost.transcendentals == exponentials * 2 * 512 * 64 * 16
            moved = sum(v.aval.size * v.aval.dtype.itemsize for v in (*call.invars, *call.outvars))
            assert cost.bytes_accessed == moved


def shapes(batch, length, width, n, dtype=jnp.float32):
    x, columns = ((batch, length, k) for k in (width, n))
    return [jax.ShapeDtypeStruct(s, dtype) for s in (x, x, (width, n), columns, columns)]


def train(*arrays):
    return jax.value_and_grad(lambda *a: jnp.sum(selective_scan(*a).astype(jnp.float32) ** 2), argnums=range(5))(
        *arrays
    )


def test_cuda_takes_the_kernels_or_by_its_rule_the_plain_form():
    text = lower_for_cuda(train, *shapes(2, 300, 40, 16))
    assert "selective_scan_forward" in text and "selective_scan_backward" in text
    assert "triton" not in lower_for_cuda(train, *shapes(2, 300, 40, gpu.MOST + 1))
    with jax.enable_x64(True):
        assert "triton" not in lower_for_cuda(train, *shapes(2, 300, 40, 16, jnp.float64))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 4096, 1024, 16), jnp.float32),
        *(
            pytest.param(shape, dtype, marks=pytest.mark.long)
            for shape in ((2, 4096, 1024, 16), (64, 300, 1000, 5), (2, 1000, 512, gpu.MOST))
            for dtype in (jnp.bfloat16, jnp.float32)
        ),
    ],
    ids=str,
)
def test_a_training_step_compiles_for_an_h200(compile_for_h200, shape, dtype):
    """No state of every token: gradients of B and C for each tile, states for each block, the gradient of y."""
    made = compile_for_h200(train, *shapes(*shape, dtype))
    text, (batch, length, width, n) = made.as_text(), shape
    assert 'name = "selective_scan_forward"' in text and 'name = "selective_scan_backward"' in text
    assert made.memory_analysis().temp_size_in_bytes < 0.3 * batch * length * width * n * 4
