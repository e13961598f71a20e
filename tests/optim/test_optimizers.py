"""Our update rule with traced numbers against optax's own optimizers with constants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lab.config import default_config, override
from lab.models.weight import Record
from lab.optim import optimizers

RATES = (0.1, 0.03, 0.02, 0.05, 0.01, 0.2)
BETA1, BETA2, EPSILON, DECAY, MOMENTUM = 0.8, 0.95, 1e-6, 0.3, 0.7


def weights():
    rng = np.random.default_rng(0)
    return {
        "a": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        "b": {"c": jnp.asarray(rng.normal(size=5), jnp.float32)},
    }


def gradients():
    """Some above the clipping norm and some below it."""
    rng = np.random.default_rng(1)
    for size in (0.01, 1, 3, 0.1, 10, 0.3):
        yield jax.tree.map(lambda w, s=size: jnp.asarray(s * rng.normal(size=w.shape), jnp.float32), weights())


def ours(name, clip_norm, decay, scale=1.0):
    changes = {
        "optimizer.name": name,
        "optimizer.beta1": BETA1,
        "optimizer.beta2": BETA2,
        "optimizer.clip_norm": clip_norm,
    }
    changes |= {"optimizer.epsilon": EPSILON, "optimizer.momentum": MOMENTUM}
    hyper = jax.tree.map(jnp.float32, optimizers.hyperparameters(override(default_config(), changes)))
    found, compilations = weights(), 0
    scales = {key: jax.tree.map(lambda _: jnp.float32(scale), found) for key in ("learning_rate", "weight_decay")}
    scales["epsilon"] = jax.tree.map(lambda _: jnp.float32(1), found)
    records = jax.tree.map(lambda w: Record(w.shape, ("x",) * w.ndim, (), (), (), None, "hidden"), found)
    state = optimizers.init(name, found)

    @jax.jit
    def update(hyper, row, gradient, state, weights):
        nonlocal compilations
        compilations += 1
        return optimizers.update(name, hyper, row, scales, records, gradient, state, weights)

    for rate, gradient in zip(RATES, gradients(), strict=True):
        row = {"learning_rate": jnp.float32(rate), "weight_decay": jnp.float32(decay)}
        found, state = update(hyper, row, gradient, state, found)
    assert compilations == 1
    return found


def reference(rule, clip_norm):
    transformation = optax.chain(optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(), rule)
    found = weights()
    state = transformation.init(found)
    for gradient in gradients():
        updates, state = transformation.update(gradient, state, found)
        found = optax.apply_updates(found, updates)
    return found


@pytest.mark.parametrize("clip_norm", [0.0, 2.0])
@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_equals_optax(name, clip_norm):
    rate = lambda count: jnp.asarray(RATES)[count]  # noqa: E731
    rule = {
        "adamw": optax.adamw(rate, BETA1, BETA2, EPSILON, weight_decay=DECAY),
        "lion": optax.lion(rate, BETA1, BETA2, weight_decay=DECAY),
        "sgd": optax.sgd(rate, MOMENTUM),
    }[name]
    found, expected = ours(name, clip_norm, 0.0 if name == "sgd" else DECAY), reference(rule, clip_norm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, expected)
    other = reference(rule, 2.0 - clip_norm)
    assert name == "lion" or not np.allclose(found["a"], other["a"], rtol=1e-3)


def test_multipliers_of_rate_and_decay():
    """Learning-rate and decay multipliers of s: as lr * s and wd * s."""
    found, expected = (
        ours("adamw", 2.0, DECAY, scale=0.5),
        reference(
            optax.adamw(lambda count: 0.5 * jnp.asarray(RATES)[count], BETA1, BETA2, EPSILON, weight_decay=0.5 * DECAY),
            2.0,
        ),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, expected)


def test_state_holds_fresh_buffers():
    """Donation of a state fails where two leaves share a buffer."""
    state = optimizers.init("adamw", weights())
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(pointers) == len(set(pointers))


def scaled(name, weights, records, gradients, epsilon=EPSILON, decay=0.0, scales=()):
    """Our update after every gradient, with `scales` (by name, 1 where not given) for each weight."""
    changes = {"name": name, "beta1": BETA1, "beta2": BETA2, "epsilon": epsilon, "clip_norm": 0.0}
    cfg = override(default_config(), {f"optimizer.{key}": value for key, value in changes.items()})
    ones = jax.tree.map(lambda _: 1.0, weights)
    trees = {key: dict(scales).get(key, ones) for key in ("learning_rate", "weight_decay", "epsilon")}
    hyper, trees = jax.tree.map(jnp.float32, (optimizers.hyperparameters(cfg), trees))

    @jax.jit
    def update(row, gradient, state, weights):
        return optimizers.update(name, hyper, row, trees, records, gradient, state, weights)

    state = optimizers.init(name, weights)
    for rate, gradient in zip(RATES, gradients, strict=True):
        row = {"learning_rate": jnp.float32(rate), "weight_decay": jnp.float32(decay)}
        weights, state = update(row, gradient, state, weights)
    return weights


def record(w, depth=None):
    return Record(w.shape, ("x",) * w.ndim, (), (), (), depth, "hidden")


def test_lamb_against_its_definition_in_float64():
    """Algorithm 2 of arXiv:1904.00962 with phi the identity, in plain NumPy: each layer of a stack has its own ratio
    of norms, whichever axis is stacked; a weight of zeros starts with a ratio of 1."""
    rng = np.random.default_rng(3)
    start = {"matrix": rng.normal(size=(4, 3)), "stack": rng.normal(size=(2, 3, 5)), "bias": np.zeros(4)}
    start["stack"][1] *= 10
    start["turned"] = start["stack"].transpose(1, 0, 2).copy()
    depths = {"matrix": None, "stack": 0, "bias": None, "turned": 1}
    gradients = [{key: rng.normal(size=w.shape) * size for key, w in start.items()} for size in (1, 5, 0.1, 2, 1, 3)]

    def layer(w, gradients):
        m = v = np.zeros_like(w)
        for t, (rate, g) in enumerate(zip(RATES, gradients, strict=True), 1):
            m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g**2
            u = (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + EPSILON) + DECAY * w
            norms = np.linalg.norm(w), np.linalg.norm(u)
            w = w - rate * (norms[0] / norms[1] if all(norms) else 1.0) * u
        return w

    def whole(key, depth):
        if depth is None:
            return layer(start[key], [g[key] for g in gradients])
        pieces = [
            layer(np.take(start[key], i, depth), [np.take(g[key], i, depth) for g in gradients])
            for i in range(start[key].shape[depth])
        ]
        return np.stack(pieces, depth)

    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (start, gradients))
    records = {key: record(w, depths[key]) for key, w in start.items()}
    found = scaled("lamb", single[0], records, single[1], decay=DECAY)
    for key, depth in depths.items():
        np.testing.assert_allclose(found[key], whole(key, depth), rtol=1e-4, atol=1e-5, err_msg=key)
    unstacked = scaled("lamb", single[0], {**records, "stack": record(start["stack"])}, single[1], decay=DECAY)
    assert not np.allclose(unstacked["stack"], found["stack"], rtol=1e-2)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_an_epsilon_multiplier_is_that_epsilon(name):
    """Beside gradients of its size, where it matters; one weight's does not touch the other's."""
    small = [jax.tree.map(lambda g: 1e-3 * g, g) for g in gradients()]
    records = jax.tree.map(record, weights())
    multipliers = {"a": 7.0, "b": {"c": 1.0}}
    found = scaled(name, weights(), records, small, 1e-3, scales={"epsilon": multipliers})
    plain, sevenfold = (scaled(name, weights(), records, small, epsilon) for epsilon in (1e-3, 7e-3))
    np.testing.assert_allclose(found["a"], sevenfold["a"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["b"]["c"], plain["b"]["c"], rtol=1e-6)
    assert not np.allclose(found["a"], plain["a"], rtol=1e-2)
