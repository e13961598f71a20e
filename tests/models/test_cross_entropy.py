"""Cross-entropy's own gradient against autodiff of log_softmax, in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from lab.models.cross_entropy import cross_entropy


def naive(logits, targets):
    log_z = jax.scipy.special.logsumexp(logits, axis=-1)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=-1)[:, 0], log_z


def test_values_and_gradients_equal_autodiff():
    noise = np.random.default_rng(0)
    logits, targets = 8 * noise.normal(size=(50, 17)), noise.integers(0, 17, 50)
    cotangents = noise.normal(size=50), noise.normal(size=50)
    with jax.enable_x64(True):
        results = []
        for function in (cross_entropy, naive):
            out, back = jax.vjp(lambda x, f=function: f(x, targets), logits)
            results.append((out, back(cotangents)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12), *results)


def test_large_logits_do_not_overflow():
    logits = jnp.array([[1e4, -1e4, 0.0], [3e4, 3e4, 3e4]], jnp.float32)
    targets = jnp.array([1, 0])
    nats, log_z = cross_entropy(logits, targets)
    np.testing.assert_allclose(nats, [2e4, np.log(3)], rtol=1e-3)
    np.testing.assert_allclose(log_z, [1e4, 3e4], rtol=1e-3)
    slope = jax.grad(lambda x: cross_entropy(x, targets)[0].sum())(logits)
    np.testing.assert_allclose(slope, [[1, -1, 0], [-2 / 3, 1 / 3, 1 / 3]], atol=1e-6)
