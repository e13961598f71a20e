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
