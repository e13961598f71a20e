"""Values and gradients of both forms against the definition in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gla_problem import no_worse, problem, results, rounded
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_pallas import dispatch
from kernels_pallas.gated_linear_attention import gated_linear_attention, reference, step

ours = functools.partial(gated_linear_attention, output_final_state=True)
SMALL = {"chunk": 128, "heads": 2}


@pytest.fixture
def interpreted(monkeypatch):
    """The public function with the TPU kernel, interpreted, on this CPU."""
    monkeypatch.setattr(dispatch, "by_platform", lambda *args, tpu, **_: tpu(*args, interpret=True))


def gold(made, **options):
    with jax.enable_x64(True):
        return results(reference.gated_linear_attention, made, jnp.float64, **options)


def check(made, options=None, **more):
    float32 = results(reference.gated_linear_attention, made, jnp.float32, **(options or {}))
    no_worse(results(ours, made, jnp.float32, **(options or {}), **more), float32, gold(made, **(options or {})))


DRAWN = {
    "seed": st.integers(0, 99),
    "length": st.sampled_from((1, 2, 63, 64, 65, 200, 256)),
    "heads": st.sampled_from(((1, 1), (2, 1), (4, 2), (3, 3), (6, 2))),
    "gate": st.sampled_from(("none", "head", "scalar", "vector")),
    "decay": st.sampled_from(("mixed", 0.01, 1.0, 20.0)),
    "segments": st.booleans(),
    "scale": st.sampled_from((None, 0.7)),
}


def drawn(seed, length, heads, gate, decay, segments, **sizes):
    gate = "scalar" if gate == "vector" and heads[1] > 1 else gate
    return problem(seed, 1, length, *heads, gate=gate, decay=decay, segments=segments, **sizes)


@settings(max_examples=2, derandomize=True, deadline=None)
@given(**DRAWN)
def test_the_cpu_form_errs_no_more_than_the_definition(scale, **drawn_from):
    check(drawn(**drawn_from), {"scale": scale})


@pytest.mark.long
@settings(max_examples=100, derandomize=True, deadline=None)
@given(**DRAWN, k=st.sampled_from((8, 64)), v=st.sampled_from((8, 128)))
def test_the_cpu_form_over_many_shapes(scale, **drawn_from):
    check(drawn(**drawn_from), {"scale": scale})


@pytest.mark.parametrize(
    "more, heads",
    [
        ({"gate": "scalar", "length": 200, "segments": True}, 2),
        ({"gate": "vector", "length": 200, "segments": True}, 2),
        ({"gate": "head", "length": 256, "heads": 4, "shared": 4, "decay": 0.5}, 2),  # q and k shared by two programs
        ({"gate": "none", "length": 128, "heads": 4, "shared": 2}, 4),  # and within one
    ],
    ids=str,
)
def test_the_kernel_errs_no_more_than_the_definition(interpreted, more, heads):
    check(problem(**more), block_sizes=SMALL | {"heads": heads})


@pytest.mark.long
@settings(max_examples=40, derandomize=True, deadline=None)
@given(**DRAWN, chunk=st.sampled_from((128, 256)), together=st.sampled_from((1, 2, 4)))
def test_the_kernel_over_many_shapes(scale, chunk, together, **drawn_from):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "by_platform", lambda *args, tpu, **_: tpu(*args, interpret=True))
        check(drawn(**drawn_from), {"scale": scale}, block_sizes={"chunk": chunk, "heads": together})


@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_bfloat16_operands_cost_no_more_than_their_own_rounding(interpreted, gate):
    """The kernel multiplies what it rounded to bfloat16; the float32 reference rounds its results alone."""
    made = rounded(problem(length=256, gate=gate, decay=0.1), jnp.bfloat16)
    found = results(ours, made, jnp.bfloat16, block_sizes=SMALL)
    want = gold(made)
    float32 = results(reference.gated_linear_attention, made, jnp.bfloat16)
    no_worse(found, float32, want, ulps=2, epsilon=2.0**-8)


@pytest.mark.parametrize("form", ["cpu", "kernel"])
@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_the_strongest_gates_give_no_nan(form, gate, request):
    if form == "kernel":
        request.getfixturevalue("interpreted")
    made = problem(length=130, gate=gate)
    made["g"] = np.full_like(made["g"], -50.0)
    if form == "cpu":
        check(made)
    made["g"][:, ::3] = -np.inf
    found = results(ours, made, jnp.float32, block_sizes=SMALL)
    assert all(np.isfinite(x).all() for x in found)


@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_gradients_are_finite_differences(gate):
    made = problem(length=70, heads=1, k=4, v=3, gate=gate, decay=0.3, segments=True)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(made[n]) for n in ("q", "k", "v", "g", "initial_state")]

        @jax.jit
        def loss(q, k, v, g, s):
            o, final = ours(q, k, v, g, initial_state=s, segment_ids=made["segment_ids"])
            return jnp.sum(o * made["do"]) + jnp.sum(final * made["dstate"])

        gradients = jax.grad(loss, argnums=range(5))(*arrays)
        rng = np.random.default_rng(1)
        for i, (x, dx) in enumerate(zip(arrays, gradients)):
            towards = rng.normal(size=x.shape)
            towards *= 1e-4 / np.abs(towards).max()
            up, down = (loss(*arrays[:i], x + way * towards, *arrays[i + 1 :]) for way in (1, -1))
            np.testing.assert_allclose(np.sum(dx * towards), (up - down) / 2, rtol=1e-6)


@pytest.mark.parametrize("gate", ["none", "head", "scalar", "vector"])
def test_steps_agree_with_chunks(gate):
    made = problem(length=70, gate=gate, decay=0.2)
    x = {n: jnp.asarray(made[n], jnp.float32) for n in ("q", "k", "v", "g", "initial_state") if made[n] is not None}
    state = x.pop("initial_state")
    o, final = ours(**x, initial_state=state)
    one = jax.jit(lambda now, state: step(**now, state=state))
    for t in range(70):
        now = {n: a if a.ndim == 1 else a[:, t] for n, a in x.items()}
        o_t, state = one(now, state)
        np.testing.assert_allclose(o_t, o[:, t], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(state, final, rtol=2e-5, atol=2e-5)


def test_a_sequence_in_two_calls_is_one():
    made = problem(length=150, gate="vector", decay=0.2, segments=True)
    x = {n: jnp.asarray(made[n], jnp.float32) for n in ("q", "k", "v", "g")}
    ids, first = made["segment_ids"], jnp.asarray(made["initial_state"], jnp.float32)
    whole, last = ours(**x, initial_state=first, segment_ids=ids)
    cut = int(np.flatnonzero(ids[0, 1:] == ids[0, :-1])[60]) + 1  # inside a segment
    a, between = ours(**{n: y[:, :cut] for n, y in x.items()}, initial_state=first, segment_ids=ids[:, :cut])
    b, end = ours(**{n: y[:, cut:] for n, y in x.items()}, initial_state=between, segment_ids=ids[:, cut:])
    np.testing.assert_allclose(jnp.concatenate([a, b], 1), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(end, last, rtol=1e-5, atol=1e-5)


def test_segments_do_not_see_each_other():
    made = problem(length=100, gate="scalar", decay=0.2)
    ids = np.repeat([[7, 3, 7]], [40, 1, 59], axis=1)
    x = {n: jnp.asarray(made[n], jnp.float32) for n in ("q", "k", "v", "g")}
    o = gated_linear_attention(**x, segment_ids=ids)
    for span in (slice(0, 40), slice(40, 41), slice(41, 100)):
        alone = gated_linear_attention(**{n: y[:, span] for n, y in x.items()})
        np.testing.assert_allclose(o[:, span], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form, gate", [("cpu", "vector"), ("kernel", "scalar")])
def test_vmap_is_a_loop_over_runs(form, gate, request):
    if form == "kernel":
        request.getfixturevalue("interpreted")
    runs = [problem(seed, length=130, gate=gate) for seed in range(2)]
    names = ("q", "k", "v", "g")
    q, k, v, g = (jnp.stack([jnp.asarray(run[n], jnp.float32) for run in runs]) for n in names)

    def loss(q, k, v, g):
        return jnp.sum(gated_linear_attention(q, k, v, g, block_sizes=SMALL) ** 2)

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
    shared = jax.vmap(value_and_grad, in_axes=(0, 0, 0, None))(q, k, v, g[0])
    for run in range(2):
        alone = value_and_grad(q[run], k[run], v[run], g[0])
        for x, y in zip(jax.tree.leaves(shared), jax.tree.leaves(alone)):
            np.testing.assert_allclose(x[run], y, rtol=1e-5, atol=1e-4)


def test_ambient_precision_changes_nothing():
    made = problem(length=100)
    before = results(ours, made, jnp.float32)
    with jax.default_matmul_precision("highest"):
        again = results(ours, made, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, before, again)
