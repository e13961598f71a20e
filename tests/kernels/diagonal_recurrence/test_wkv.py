"""WKV against the weights of all pairs of tokens in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import dispatch
from kernels_pallas.diagonal_recurrence import reference, wkv, wkv_step

TRAINED = ("k", "v", "log_decay", "bonus", "initial_state")


def problem(seed=0, batch=2, length=60, width=6, size=1.0, decay=0.3, segments=True):
    """Float64 arrays; `size` of k's spread, `decay` a mean."""
    rng = np.random.default_rng(seed)
    made = {"k": size * rng.normal(size=(batch, length, width)), "v": rng.normal(size=(batch, length, width))}
    made |= {"log_decay": -decay * rng.exponential(size=width), "bonus": rng.normal(size=width)}
    state = (rng.normal(size=(batch, width)), rng.uniform(0.5, 2, (batch, width)), rng.normal(size=(batch, width)))
    made["initial_state"] = np.stack(state, axis=1)
    ids = np.cumsum(rng.random((batch, length)) < 0.05, axis=1) % 3
    return made | {
        "segment_ids": ids if segments else None,
        "dy": rng.normal(size=(batch, length, width)),
        "dsays": rng.normal(size=(batch, 2, width)),
    }


def says(out):
    """What does not depend on the maximum that a state is kept relative to."""
    y, (num, den, m) = out[0], jnp.moveaxis(out[1], 1, 0)
    return y, jnp.stack([num / den, m + jnp.log(den)], axis=1)


def ours(*args, **options):
    return says(wkv(*args, output_final_state=True, **options))


def results(function, made, dtype):
    """(y, what the last state says, gradients of all) as float64."""
    arrays = [jnp.asarray(made[name], dtype) for name in TRAINED]

    @jax.jit
    def run(arrays):
        def called(*arrays):
            return function(*arrays[:4], initial_state=arrays[4], segment_ids=made["segment_ids"])

        out, pull = jax.vjp(called, *arrays)
        return (*out, *pull((jnp.asarray(made["dy"], dtype), jnp.asarray(made["dsays"], dtype))))

    return [np.asarray(x, float) for x in run(arrays)]


def check(made):
    with jax.enable_x64(True):
        gold = results(reference.wkv, made, jnp.float64)
    float32 = results(reference.wkv, made, jnp.float32)
    for name, x, y, z in zip(("y", "state", *TRAINED), results(ours, made, jnp.float32), float32, gold):
        allowed = 2 * np.abs(y - z).max() + 8 * 2.0**-23 * np.abs(z).max()
        found = np.abs(x - z).max()
        assert np.isfinite(x).all() and found <= allowed, f"{name}: error {found:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("options", [{}, {"segments": False, "decay": 0.01}, {"decay": 50.0}], ids=str)
def test_it_errs_no_more_than_the_weights_of_all_pairs(options):
    check(problem(**options))


@pytest.mark.long
def test_by_the_kernel_and_the_maximum_of_a_tpu(monkeypatch):
    def on_tpu(*args, tpu, what, **_):
        return tpu(*args) if what == "wkv_largest" else tpu(*args, interpret=True)

    monkeypatch.setattr(dispatch, "by_platform", on_tpu)
    check(problem(length=40))


def test_no_key_overflows():
    """exp(1000) is no number; a key of 1000 is all the weight."""
    made = problem(length=20, segments=False)
    k, v, w, u = (jnp.asarray(made[name], jnp.float32) for name in TRAINED[:4])
    k = k.at[:, 7].add(1000.0)
    y, gradient = jax.value_and_grad(lambda k: wkv(k, v, w, u)[:, 12].sum())(k)
    np.testing.assert_allclose(y, v[:, 7].sum(), rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_gradients_are_finite_differences():
    made = problem(length=12, width=2)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(made[name]) for name in TRAINED]

        @jax.jit
        def loss(*arrays):
            y, state = ours(*arrays[:4], initial_state=arrays[4], segment_ids=made["segment_ids"])
            return jnp.sum(y * made["dy"]) + jnp.sum(state * made["dsays"])

        rng = np.random.default_rng(1)
        for i, dx in enumerate(jax.grad(loss, argnums=range(5))(*arrays)):
            towards = rng.normal(size=dx.shape)
            towards *= 1e-4 / np.abs(towards).max()
            up, down = (loss(*arrays[:i], arrays[i] + way * towards, *arrays[i + 1 :]) for way in (1, -1))
            np.testing.assert_allclose(np.sum(dx * towards), (up - down) / 2, rtol=1e-6)


def test_steps_and_parts_agree():
    made = problem(length=30, segments=False)
    k, v, w, u, state = (jnp.asarray(made[name], jnp.float32) for name in TRAINED)
    run = functools.partial(wkv, log_decay=w, bonus=u, output_final_state=True)
    y, last = run(k, v, initial_state=state)
    a, between = run(k[:, :13], v[:, :13], initial_state=state)
    b, end = run(k[:, 13:], v[:, 13:], initial_state=between)
    np.testing.assert_allclose(jnp.concatenate([a, b], 1), y, rtol=1e-4, atol=1e-5)
    for t in range(30):
        y_t, state = wkv_step(k[:, t], v[:, t], w, u, state=state)
        np.testing.assert_allclose(y_t, y[:, t], rtol=1e-4, atol=1e-5)
    for one in (end, state):
        np.testing.assert_allclose(says((0, one))[1], says((0, last))[1], rtol=1e-4, atol=1e-5)


def test_vmap_is_a_loop_over_runs():
    runs = [problem(seed, length=20, segments=False) for seed in range(2)]
    arrays = [jnp.stack([jnp.asarray(run[name], jnp.float32) for run in runs]) for name in TRAINED[:4]]
    value_and_grad = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(wkv(*a) ** 2), argnums=range(4)))
    packed = jax.vmap(value_and_grad)(*arrays)
    for run in range(2):
        alone = value_and_grad(*(x[run] for x in arrays))
        jax.tree.map(lambda p, q, run=run: np.testing.assert_allclose(p[run], q, rtol=1e-4, atol=1e-5), packed, alone)


X, W = jnp.zeros((2, 5, 3)), jnp.zeros(3)
REFUSED = {
    "v: found shape": lambda: wkv(X, X[0], W, W),
    "k: found shape": lambda: wkv(X[:, 1:], X, W, W),
    "k: found int32": lambda: wkv(X.astype(int), X, W, W),
    "log_decay: found shape": lambda: wkv(X, X, X, W),
    "log_decay: found 1, expected log-decays of at most 0": lambda: wkv(X, X, W + 1, W),
    "bonus: found shape": lambda: wkv(X, X, W, X),
    "initial_state: found": lambda: wkv(X, X, W, W, initial_state=X),
    "segment_ids: found float32": lambda: wkv(X, X, W, W, segment_ids=X[..., 0]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_named(message):
    with pytest.raises((ValueError, TypeError), match=message):
        REFUSED[message]()
