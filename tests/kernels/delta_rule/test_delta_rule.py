"""The delta rule's plain XLA form, its one-token step and its refusals."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from delta_rule_problems import FLOATS, cast, close, errors, problem, value_and_grads, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_pallas.delta_rule import cpu, delta_rule, step

GATES = ("none", "head", "channel")


@functools.cache
def ours(chunk=64):
    return functools.partial(delta_rule, output_final_state=True, block_sizes={"chunk": chunk})


def anything(examples):
    def decorate(test):
        options = st.tuples(
            st.integers(0, 10**6), st.sampled_from(GATES), st.integers(1, 200), st.booleans(), st.sampled_from((16, 64))
        )
        return settings(max_examples=examples, derandomize=True, deadline=None)(given(options)(test))

    return decorate


def check_anything(options):
    seed, gate, length, segments, chunk = options
    close(ours(chunk), problem(seed, T=length, gate=gate, strongest=4.0, segments=segments))


@anything(3)
def test_value_and_gradients_against_float64(options):
    check_anything(options)


@pytest.mark.long
def test_states_kept_more_rarely_than_the_chunks_computed_with():
    """With a gate per channel a chunk of 128 is four; 300 steps end in the second of the third."""
    check_anything((0, "channel", 300, True, 128))


@pytest.mark.long
@anything(60)
def test_value_and_gradients_against_float64_long(options):
    check_anything(options)


@pytest.mark.parametrize("gate", (*(pytest.param(g, marks=pytest.mark.long) for g in GATES[:2]), "channel"))
def test_bfloat16(gate):
    close(ours(), problem(gate=gate, T=100), jnp.bfloat16)


@pytest.mark.parametrize("gate", ("head", "channel"))
def test_finite_differences(gate):
    with jax.enable_x64(True):
        operands = problem(B=1, T=20, N=1, K=4, V=3, gate=gate)
        do, dfinal = weights(operands)

        @jax.jit
        def loss(operands):
            o, final = ours(16)(**operands)
            return jnp.sum(o * do) + jnp.sum(final * dfinal)

        _, grads = value_and_grads(ours(16), operands, (do, dfinal))
        for name in FLOATS:
            direction = np.random.default_rng(3).normal(size=operands[name].shape)
            ends = [loss(operands | {name: operands[name] + h * direction}) for h in (1e-6, -1e-6)]
            slope = float(ends[0] - ends[1]) / 2e-6
            assert slope == pytest.approx(float(np.sum(grads[name] * direction)), rel=1e-6), name


def test_the_inverse_is_exact_where_sums_of_powers_explode():
    k = problem(T=64, K=64, alike=0.9)["k"][0, :, 0]
    a = np.tril(2 * k @ k.T, -1)
    true = np.linalg.inv(np.eye(64) + a)
    assert np.mean(k @ k.T) > 0.85
    assert errors(cpu._inverse(jnp.asarray(a, jnp.float32)), true) < 1e-4
    power, total = np.eye(64, dtype=np.float32), np.zeros((64, 64), np.float32)
    for _ in range(64):
        total, power = total + power, power @ -a.astype(np.float32)
    assert errors(total, true) > 1e4


@pytest.mark.parametrize("gate", ("head", "channel"))
def test_strong_gates_leave_no_nan_and_lose_nothing(gate):
    operands = problem(gate=gate, strongest=0.1)
    shape = operands["g"].shape
    rng = np.random.default_rng(5)
    close(ours(), operands | {"g": np.where(rng.uniform(size=shape) < 0.2, -50.0, operands["g"])})
    for gate_everywhere in (-50.0, -np.inf):
        strong = cast(operands | {"g": np.full(shape, gate_everywhere)}, np.float32)
        made = value_and_grads(ours(), strong, weights(strong))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize("gate", GATES)
def test_step_agrees_with_the_chunked_form(gate):
    operands = cast(problem(gate=gate, T=40, segments=False), np.float32)
    o, final = ours(16)(**operands)
    state, found = operands["initial_state"], []
    one = jax.jit(step)
    for t in range(40):
        token = [None if operands[n] is None else operands[n][:, t] for n in ("q", "k", "v", "beta", "g")]
        y, state = one(*token, state=state)
        found.append(y)
    assert errors((np.stack(found, 1), state), (o, final)) == (pytest.approx(0, abs=3e-6),) * 2


def test_a_segment_knows_nothing_of_others():
    whole = cast(problem(T=90, segments=False), np.float32)
    ids = np.repeat([4, 7, 4], [20, 37, 33])[None]  # a number that returns is another segment
    o, final = ours(16)(**whole | {"segment_ids": ids})
    at, expected = 0, []
    for length in (20, 37, 33):
        part = {n: x[:, at : at + length] for n, x in whole.items() if n in FLOATS and n != "initial_state"}
        first = whole["initial_state"] if at == 0 else np.zeros_like(whole["initial_state"])
        y, end = ours(16)(**part, initial_state=first)
        expected.append(y)
        at += length
    assert errors((o, final), (np.concatenate(expected, 1), np.asarray(end)))[0] < 3e-6
    np.testing.assert_allclose(final, end, atol=3e-6)


def test_no_steps_and_one():
    none = cast(problem(T=0, segments=False), np.float32)
    o, final = ours()(**none)
    assert o.shape == none["v"].shape
    np.testing.assert_array_equal(final, none["initial_state"])
    close(ours(), problem(T=1, segments=False))


def test_vmap_equals_a_loop_over_runs():
    runs = [cast(problem(seed, T=40), np.float32) for seed in range(2)]
    together = jax.tree.map(lambda *x: np.stack(x), *runs)
    cotangents = weights(runs[0])
    mapped = jax.vmap(lambda x: value_and_grads(ours(16), x, cotangents))(together)
    for i, run in enumerate(runs):
        alone = value_and_grads(ours(16), run, cotangents)
        one = jax.tree.map(lambda x: x[i], mapped)  # noqa: B023
        assert max(jax.tree.leaves(errors(one, jax.tree.map(np.asarray, alone)))) < 1e-6


def test_ambient_precision_changes_nothing():
    operands = cast(problem(T=70), np.float32)
    plain = value_and_grads(ours(16), operands, weights(operands))
    with jax.default_matmul_precision("highest"):
        highest = value_and_grads(ours(16), operands, weights(operands))
    jax.tree.map(np.testing.assert_array_equal, plain, highest)


def test_no_buffer_of_all_pairs_of_steps():
    operands = cast(problem(T=4096, N=1, segments=False), np.float32)
    jaxpr = jax.make_jaxpr(lambda x: value_and_grads(ours(), x, weights(operands)))(operands)
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"f32\[([\d,]+)\]", str(jaxpr))]
    assert 4096 * 64 <= max(sizes) < 4096 * 4096 / 4


BAD = {
    "q: found shape (1, 8, 2), expected [B, T, N, K]": {"q": np.zeros((1, 8, 2), np.float32)},
    "k: found shape (1, 8, 2, 5), expected that of q": {"k": np.zeros((1, 8, 2, 5), np.float32)},
    "v: found shape (1, 9, 2, 3), expected [B, T, N, V]": {"v": np.zeros((1, 9, 2, 3), np.float32)},
    "q: found dtype int32, expected bfloat16 or float32": {"q": np.zeros((1, 8, 2, 4), np.int32)},
    "v: found dtype float16, expected that of q": {"v": np.zeros((1, 8, 2, 3), np.float16)},
    "beta: found shape (1, 8), expected [B, T, N]": {"beta": np.ones((1, 8), np.float32)},
    "beta: found values from 0.0 to 2.5, expected 0 to 2": {
        "beta": np.linspace(0, 2.5, 16, dtype=np.float32).reshape(1, 8, 2)
    },
    "g: found shape (1, 8, 3), expected [B, T, N]": {"g": np.zeros((1, 8, 3), np.float32)},
    "g: found a largest value of 0.5, expected logarithms": {"g": np.full((1, 8, 2), 0.5, np.float32)},
    "segment_ids: found shape (1, 7), expected [B, T]": {"segment_ids": np.zeros((1, 7), int)},
    "segment_ids: found dtype float32, expected integers": {"segment_ids": np.zeros((1, 8), np.float32)},
    "initial_state: found float32[1, 2, 4, 4], expected float32[1, 2, 4, 3]": {
        "initial_state": np.zeros((1, 2, 4, 4), np.float32)
    },
    "block_sizes: found 'rows', expected chunk or heads": {"block_sizes": {"rows": 8}},
    "block_sizes: found chunk 48, expected one of": {"block_sizes": {"chunk": 48}},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_names_argument_and_limit(message):
    good = cast(problem(T=8, K=4, V=3), np.float32)
    with pytest.raises(ValueError) as error:
        delta_rule(**good | BAD[message])
    assert message in str(error.value)


@pytest.mark.parametrize("gate", ("head", "channel"))
def test_gates_and_beta_may_be_as_narrow_as_keys(gate):
    """Every platform's form is traced, so this holds for all of them."""
    narrow = {n: x.astype(jnp.bfloat16) for n, x in problem(T=40, gate=gate, segments=False).items() if n in FLOATS[:5]}
    gradients = jax.jit(jax.grad(lambda x: jnp.sum(delta_rule(**x)).astype(jnp.float32)))(narrow)
    assert {n: g.dtype for n, g in gradients.items()} == dict.fromkeys(narrow, jnp.bfloat16)
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients.values())
