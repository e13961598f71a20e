"""Values and gradients of both forms against the definition in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selective_problem import TOKENS, TRAINED, no_worse, problem, results

from kernels_pallas import dispatch
from kernels_pallas.selective_scan import reference, selective_scan, step

ours = functools.partial(selective_scan, output_final_state=True)
SMALL = {"rows": 128, "width": 128}


def kernel_here(patch, mode=True):
    """The public function with the TPU kernel, interpreted, on this CPU."""
    patch.setattr(dispatch, "by_platform", lambda *args, tpu, **_: tpu(*args, interpret=mode))


@pytest.fixture(params=["cpu", pytest.param("kernel", marks=pytest.mark.long)])  # 15 s each to compile, interpreted
def form(request, monkeypatch):
    if request.param == "kernel":
        kernel_here(monkeypatch)
    return request.param


def gold(made):
    with jax.enable_x64(True):
        return results(reference.selective_scan, made, jnp.float64)


def check(made, **options):
    float32 = results(reference.selective_scan, made, jnp.float32)
    no_worse(results(ours, made, jnp.float32, **options), float32, gold(made))


DRAWN = {
    "seed": st.integers(0, 99),
    "length": st.sampled_from((1, 2, 127, 128, 129, 270)),
    "width": st.sampled_from((1, 12, 128)),
    "n": st.sampled_from((1, 4, 16)),
    "time": st.sampled_from((0.001, 0.1, 5.0)),
    "extras": st.booleans(),
    "segments": st.booleans(),
}


@settings(max_examples=5, derandomize=True, deadline=None)
@given(**DRAWN)
def test_the_cpu_form_errs_no_more_than_the_definition(**drawn):
    check(problem(**drawn))


@pytest.mark.long
@settings(max_examples=60, derandomize=True, deadline=None)
@given(**DRAWN, wide=st.sampled_from((128, 256)))
def test_both_forms_over_many_shapes(wide, **drawn):
    check(problem(**drawn))
    with pytest.MonkeyPatch.context() as patch:
        kernel_here(patch)
        check(problem(**drawn), block_sizes={"rows": 128, "width": wide})


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 1, "length": 200, "width": 256, "n": 12, "segments": True},
        pytest.param({"batch": 2, "length": 256, "width": 256, "n": 16}, marks=pytest.mark.long),
        pytest.param({"length": 140, "width": 12, "n": 4, "extras": False}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_the_kernel_joins_blocks_of_time_and_of_channels(monkeypatch, options):
    kernel_here(monkeypatch)
    check(problem(**options), block_sizes=SMALL)


def test_bfloat16_costs_no_more_than_its_own_rounding(form):
    """Between the kernel and D and z stands a rounding more than in the definition."""
    made = problem(segments=True)
    made |= {n: np.asarray(jnp.asarray(made[n], jnp.bfloat16), float) for n in (*TOKENS, "dy")}
    found = results(ours, made, jnp.bfloat16, block_sizes=SMALL)
    no_worse(found, results(reference.selective_scan, made, jnp.bfloat16), gold(made), ulps=1, epsilon=2.0**-8)


def test_the_strongest_decays_give_no_nan(form):
    made = problem(extras=False)
    made["A"][:] = -50.0
    made["dt"][:] = 1.0
    check(made, block_sizes=SMALL)


def test_gradients_are_finite_differences():
    made = problem(length=20, width=3, n=2, segments=True)
    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(made[name]) for name in TRAINED}

        @jax.jit
        def loss(arrays):
            y, last = ours(**arrays, dt_softplus=True, segment_ids=made["segment_ids"])
            return jnp.sum(y * made["dy"]) + jnp.sum(last * made["dlast"])

        gradients = jax.grad(loss)(arrays)
        rng = np.random.default_rng(1)
        for name, x in arrays.items():
            towards = rng.normal(size=x.shape)
            towards *= 1e-4 / np.abs(towards).max()
            up, down = (loss(arrays | {name: x + way * towards}) for way in (1, -1))
            np.testing.assert_allclose(np.sum(gradients[name] * towards), (up - down) / 2, rtol=1e-6)


def test_one_state_of_constant_time_is_an_average():
    """B = C = 1 and dt constant: the sum of decaying inputs, in closed form for a step."""
    y = selective_scan(jnp.ones((1, 30, 1)), jnp.full((1, 30, 1), 0.1), -jnp.ones((1, 1)), *[jnp.ones((1, 30, 1))] * 2)
    t = np.arange(1, 31)
    np.testing.assert_allclose(y[0, :, 0], 0.1 * (1 - np.exp(-0.1 * t)) / (1 - np.exp(-0.1)), rtol=1e-5)


def test_steps_agree():
    made = problem(length=30)
    arrays = {name: jnp.asarray(made[name], jnp.float32) for name in TRAINED}
    state = arrays.pop("initial_state")
    y, last = ours(**arrays, dt_softplus=True, initial_state=state)
    for t in range(30):
        now = {name: a[:, t] if name in TOKENS else a for name, a in arrays.items()}
        y_t, state = step(**now, dt_softplus=True, state=state)
        np.testing.assert_allclose(y_t, y[:, t], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state, last, rtol=1e-5, atol=1e-5)


def test_a_sequence_in_two_calls_is_one():
    made = problem(length=150)
    arrays = {name: jnp.asarray(made[name], jnp.float32) for name in TRAINED}
    first = arrays.pop("initial_state")
    whole, last = ours(**arrays, initial_state=first)

    def part(where, state):
        return ours(**{n: a[:, where] if n in TOKENS else a for n, a in arrays.items()}, initial_state=state)

    arrays["dt"] = jnp.abs(arrays["dt"])
    whole, last = part(slice(None), first)
    a, between = part(slice(0, 70), first)
    b, end = part(slice(70, None), between)
    np.testing.assert_allclose(jnp.concatenate([a, b], 1), whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(end, last, rtol=1e-4, atol=1e-4)


def test_vmap_is_a_loop_over_runs(form):
    runs = [problem(seed, length=130, extras=False) for seed in range(2)]
    names = ("x", "dt", "A", "B", "C")
    arrays = [jnp.stack([jnp.asarray(run[n], jnp.float32) for run in runs]) for n in names]

    def loss(*arrays):
        return jnp.sum(selective_scan(*arrays, block_sizes=SMALL) ** 2)

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=range(5)))
    packed = jax.jit(jax.vmap(value_and_grad))(*arrays)
    for run in range(2):
        alone = value_and_grad(*(a[run] for a in arrays))
        jax.tree.map(lambda p, q, run=run: np.testing.assert_allclose(p[run], q, rtol=2e-5, atol=1e-3), packed, alone)


def test_ambient_precision_changes_nothing():
    made = problem(length=40)
    before = results(ours, made, jnp.float32)
    with jax.default_matmul_precision("highest"):
        again = results(ours, made, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, before, again)


X, N = jnp.zeros((2, 5, 3)), jnp.zeros((2, 5, 4))
A = -jnp.ones((3, 4))
REFUSED = {
    "x: found shape": lambda: selective_scan(X[0], X, A, N, N),
    "x: found int32": lambda: selective_scan(X.astype(int), X, A, N, N),
    "dt: found shape": lambda: selective_scan(X, N, A, N, N),
    "A: found shape": lambda: selective_scan(X, X, A.T, N, N),
    "A: found 1, expected numbers of at most 0": lambda: selective_scan(X, X, -A, N, N),
    "B: found shape": lambda: selective_scan(X, X, A, X, N),
    "C: found shape": lambda: selective_scan(X, X, A, N, X),
    "D: found shape": lambda: selective_scan(X, X, A, N, N, D=A),
    "z: found shape": lambda: selective_scan(X, X, A, N, N, z=N),
    "dt_bias: found shape": lambda: selective_scan(X, X, A, N, N, dt_bias=A),
    "initial_state: found": lambda: selective_scan(X, X, A, N, N, initial_state=jnp.zeros((2, 4, 3))),
    "segment_ids: found float32": lambda: selective_scan(X, X, A, N, N, segment_ids=X[..., 0]),
    "block_sizes: found heads": lambda: selective_scan(X, X, A, N, N, block_sizes={"heads": 8}),
    "block_sizes: found rows 100": lambda: selective_scan(X, X, A, N, N, block_sizes={"rows": 100}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_named(message):
    with pytest.raises((ValueError, TypeError), match=message):
        REFUSED[message]()


def test_nothing_comes_of_nothing():
    y, last = ours(X[:, :0], X[:, :0], A, N[:, :0], N[:, :0])
    assert y.shape == (2, 0, 3) and last.shape == (2, 3, 4) and not last.any()
