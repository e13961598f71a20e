"""Values and gradients of both forms against the definition in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diagonal_problem import TRAINED, no_worse, problem, results
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_pallas import dispatch
from kernels_pallas.diagonal_recurrence import diagonal_recurrence, reference, step

ours = functools.partial(diagonal_recurrence, output_final_state=True)
SMALL = {"rows": 128, "width": 128}


def kernel_here(patch, mode=True):
    """The public function with the TPU kernel, interpreted, on this CPU."""
    patch.setattr(dispatch, "by_platform", lambda *args, tpu, **_: tpu(*args, interpret=mode))


@pytest.fixture(params=["cpu", "kernel"])
def form(request, monkeypatch):
    if request.param == "kernel":
        kernel_here(monkeypatch)
    return request.param


def check(made, **options):
    with jax.enable_x64(True):
        gold = results(reference.diagonal_recurrence, made, jnp.float64)
    float32 = results(reference.diagonal_recurrence, made, jnp.float32)
    no_worse(results(ours, made, jnp.float32, **options), float32, gold)


DRAWN = {
    "seed": st.integers(0, 99),
    "length": st.sampled_from((1, 2, 7, 8, 127, 128, 129, 300)),
    "width": st.sampled_from((1, 40, 128, 200)),
    "decay": st.sampled_from(("mixed", 0.001, 1.0, 20.0)),
    "constant": st.booleans(),
    "segments": st.booleans(),
}


@settings(max_examples=6, derandomize=True, deadline=None)
@given(**DRAWN)
def test_the_cpu_form_errs_no_more_than_the_definition(**drawn):
    check(problem(**drawn))


@settings(max_examples=3, derandomize=True, deadline=None)
@given(**DRAWN)
def test_the_kernel_errs_no_more_than_the_definition(**drawn):
    with pytest.MonkeyPatch.context() as patch:
        kernel_here(patch)
        check(problem(**drawn), block_sizes=SMALL)


@pytest.mark.long
@settings(max_examples=100, derandomize=True, deadline=None)
@given(**DRAWN, rows=st.sampled_from((128, 256)), wide=st.sampled_from((128, 512)))
def test_both_forms_over_many_shapes(rows, wide, **drawn):
    check(problem(**drawn))
    with pytest.MonkeyPatch.context() as patch:
        kernel_here(patch)
        check(problem(**drawn), block_sizes={"rows": rows, "width": wide})


@pytest.mark.parametrize("options", [{}, {"segments": True, "length": 200}, {"constant": True}], ids=str)
def test_blocks_of_time_and_of_channels_join(form, options):
    check(problem(**{"length": 256, "width": 256, "decay": 0.01} | options), block_sizes=SMALL)


@pytest.mark.parametrize("gates", [jnp.bfloat16, jnp.float32])
def test_bfloat16_costs_no_more_than_its_own_rounding(form, gates):
    made = problem(length=200, decay=0.1, segments=True)
    made |= {n: np.asarray(jnp.asarray(made[n], jnp.bfloat16), float) for n in ("x", "log_a", "dh")}
    found = results(ours, made, jnp.bfloat16, gates, block_sizes=SMALL)
    with jax.enable_x64(True):
        gold = results(reference.diagonal_recurrence, made, jnp.float64)
    rounded = results(reference.diagonal_recurrence, made, jnp.bfloat16, gates)
    no_worse(found[:3], rounded[:3], gold[:3], ulps=0.5, epsilon=2.0**-8)
    # The gradient of log_a is made of the rounded h: half an ulp of each product, and its own rounding.
    no_worse(found[3:], rounded[3:], gold[3:], ulps=1, epsilon=2.0**-8)
    assert np.abs(found[1] - gold[1]).max() < 1e-5 * np.abs(gold[1]).max()  # the carry is float32


def test_the_strongest_decays_give_no_nan(form):
    made = problem(length=130)
    made["log_a"][:] = -50.0
    made["log_a"][:, ::3] = -np.inf
    check(made, block_sizes=SMALL)


def test_gradients_are_finite_differences():
    made = problem(length=30, width=3, decay=0.3, segments=True)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(made[n]) for n in TRAINED]

        @jax.jit
        def loss(x, log_a, state):
            h, last = ours(x, log_a, initial_state=state, segment_ids=made["segment_ids"])
            return jnp.sum(h * made["dh"]) + jnp.sum(last * made["dlast"])

        gradients = jax.grad(loss, argnums=range(3))(*arrays)
        rng = np.random.default_rng(1)
        for i, (x, dx) in enumerate(zip(arrays, gradients)):
            towards = rng.normal(size=x.shape)
            towards *= 1e-4 / np.abs(towards).max()
            up, down = (loss(*arrays[:i], x + way * towards, *arrays[i + 1 :]) for way in (1, -1))
            np.testing.assert_allclose(np.sum(dx * towards), (up - down) / 2, rtol=1e-6)


def test_a_constant_decay_has_a_closed_form():
    """An average of a step: 1 - a^t, and with no decay the number of tokens."""
    a = np.array([0.5, 0.99, 1.0], np.float32)
    h = diagonal_recurrence(jnp.ones((1, 50, 3)), jnp.log(a))
    t = np.arange(1, 51)[:, None]
    expected = np.where(a < 1, (1 - a.astype(float) ** t) / np.where(a < 1, 1 - a.astype(float), 1), t)
    np.testing.assert_allclose(h[0], expected, rtol=1e-5)


@pytest.mark.parametrize("constant", [False, True])
def test_steps_agree(constant):
    made = problem(length=40, decay=0.2, constant=constant)
    x, log_a, state = (jnp.asarray(made[n], jnp.float32) for n in TRAINED)
    h, last = ours(x, log_a, initial_state=state)
    for t in range(40):
        h_t, state = step(x[:, t], log_a if constant else log_a[:, t], state=state)
        np.testing.assert_allclose(h_t, h[:, t], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, last, rtol=1e-5, atol=1e-6)


def test_a_sequence_in_two_calls_is_one(form):
    made = problem(length=150, decay=0.2)
    x, log_a, first = (jnp.asarray(made[n], jnp.float32) for n in TRAINED)
    whole, last = ours(x, log_a, initial_state=first)
    a, between = ours(x[:, :70], log_a[:, :70], initial_state=first)
    b, end = ours(x[:, 70:], log_a[:, 70:], initial_state=between)
    np.testing.assert_allclose(jnp.concatenate([a, b], 1), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(end, last, rtol=1e-5, atol=1e-5)


def test_segments_do_not_see_each_other(form):
    made = problem(length=100, decay=0.02)
    ids = np.repeat([[7, 3, 7]] * 2, [40, 1, 59], axis=1)
    x, log_a = (jnp.asarray(made[n], jnp.float32) for n in ("x", "log_a"))
    h = diagonal_recurrence(x, log_a, segment_ids=ids)
    for span in (slice(0, 40), slice(40, 41), slice(41, 100)):
        alone = diagonal_recurrence(x[:, span], log_a[:, span])
        np.testing.assert_allclose(h[:, span], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("constant", [False, pytest.param(True, marks=pytest.mark.long)])
def test_vmap_is_a_loop_over_runs(form, constant):
    runs = [problem(seed, length=130, constant=constant, decay=0.1) for seed in range(3)]
    x, log_a = (jnp.stack([jnp.asarray(run[n], jnp.float32) for run in runs]) for n in ("x", "log_a"))

    def loss(x, log_a):
        return jnp.sum(diagonal_recurrence(x, log_a, block_sizes=SMALL) ** 2)

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    for axes in ((0, 0), (0, None)):
        packed = jax.jit(jax.vmap(value_and_grad, in_axes=axes))(x, log_a[0] if axes[1] is None else log_a)
        for run in range(3):
            alone = value_and_grad(x[run], log_a[0 if axes[1] is None else run])
            jax.tree.map(
                lambda p, q, run=run: np.testing.assert_allclose(p[run], q, rtol=2e-5, atol=1e-4), packed, alone
            )


def test_ambient_precision_changes_nothing():
    made = problem(length=100)
    before = results(ours, made, jnp.float32)
    with jax.default_matmul_precision("highest"):
        again = results(ours, made, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, before, again)


def test_nothing_comes_of_nothing():
    state = jnp.arange(6.0).reshape(2, 3)
    h, last = ours(jnp.zeros((2, 0, 3)), jnp.zeros((2, 0, 3)), initial_state=state)
    assert h.shape == (2, 0, 3)
    np.testing.assert_array_equal(last, state)


X = jnp.zeros((2, 5, 3))
REFUSED = {
    "x: found shape": lambda: diagonal_recurrence(X[0], X[0]),
    "x: found int32": lambda: diagonal_recurrence(X.astype(int), X),
    "log_a: found shape": lambda: diagonal_recurrence(X, X[:, :4]),
    "log_a: found int32": lambda: diagonal_recurrence(X, X.astype(int)),
    "log_a: found 0.5, expected log-decays of at most 0": lambda: diagonal_recurrence(X, X + 0.5),
    r"initial_state: found float32\[3, 2\], expected float32\[2, 3\]": lambda: diagonal_recurrence(
        X, X, initial_state=jnp.zeros((3, 2))
    ),
    "initial_state: found bfloat16": lambda: diagonal_recurrence(X, X, initial_state=jnp.zeros((2, 3), jnp.bfloat16)),
    "segment_ids: found float32": lambda: diagonal_recurrence(X, X, segment_ids=X[..., 0]),
    "segment_ids: found int32": lambda: diagonal_recurrence(X, X, segment_ids=jnp.zeros((2, 4), int)),
    "block_sizes: found chunk": lambda: diagonal_recurrence(X, X, block_sizes={"chunk": 8}),
    "block_sizes: found rows 100": lambda: diagonal_recurrence(X, X, block_sizes={"rows": 100}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_named(message):
    with pytest.raises((ValueError, TypeError), match=message):
        REFUSED[message]()
