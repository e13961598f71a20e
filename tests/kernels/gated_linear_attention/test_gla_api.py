"""What the public functions refuse, and what they make of nearly nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.gated_linear_attention import gated_linear_attention, step

X, G = np.zeros((2, 8, 4, 16), np.float32), np.zeros((2, 8, 4), np.float32)


@pytest.mark.parametrize(
    "change, error, says",
    [
        ({"q": X[0]}, ValueError, r"q: found shape \(8, 4, 16\), expected four axes"),
        ({"v": X.astype(np.float16)}, TypeError, "v: found float16, expected one of bfloat16, float32, float64"),
        ({"k": jnp.asarray(X, jnp.bfloat16)}, TypeError, "k: found bfloat16"),
        ({"k": X[..., :8]}, ValueError, r"k: found shape \(2, 8, 4, 8\), expected q's"),
        ({"v": X[:, :4]}, ValueError, r"v: found shape \(2, 4, 4, 16\)"),
        ({"q": X[:, :, :3], "k": X[:, :, :3]}, ValueError, "q: found 3 heads, expected a divisor of v's 4"),
        ({"g": G[:, :, :2]}, ValueError, r"g: found shape \(2, 8, 2\), expected None or one of \(4,\)"),
        ({"g": G.astype(int)}, TypeError, "g: found int64, expected a floating dtype"),
        ({"g": G + 0.5}, ValueError, "g: found 0.5, expected log-gates of at most 0"),
        ({"scale": jnp.ones(())}, TypeError, "scale: found .*, expected a finite Python number"),
        ({"initial_state": X}, ValueError, r"initial_state: found float32\[2, 8, 4, 16\], expected float32\[2, 4, 16"),
        ({"segment_ids": np.zeros((2, 7), int)}, ValueError, r"segment_ids: found int64\[2, 7\], expected integers"),
        ({"segment_ids": np.zeros((2, 8))}, ValueError, r"segment_ids: found float64\[2, 8\], expected integers"),
        ({"block_sizes": {"block": 1}}, ValueError, "block_sizes: found block, expected some of chunk, heads"),
        ({"block_sizes": {"chunk": 96}}, ValueError, "found chunk 96, expected 128, 256 or 512"),
        ({"block_sizes": {"heads": 0}}, ValueError, "found heads 0, expected at least 1"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_bad_arguments_are_named(change, error, says):
    with pytest.raises(error, match=says):
        gated_linear_attention(**({"q": X, "k": X, "v": X, "g": G} | change))


def test_step_names_a_wrong_state():
    with pytest.raises(ValueError, match=r"state: found float32\[2, 8, 4, 16\], expected float32\[2, 4, 16, 16\]"):
        step(X[:, 0], X[:, 0], X[:, 0], state=X)


def test_nothing_and_one_token():
    state = jnp.ones((2, 4, 16, 16))
    o, final = gated_linear_attention(X[:, :0], X[:, :0], X[:, :0], initial_state=state, output_final_state=True)
    assert o.shape == (2, 0, 4, 16) and (final == state).all()
    one = jax.random.normal(jax.random.key(0), (2, 1, 4, 16))
    o = gated_linear_attention(one, one, one, G[:, :1] - 3, scale=2)
    np.testing.assert_allclose(o, 2 * jnp.sum(one * one, -1, keepdims=True) * one, rtol=1e-5)


def test_a_segment_of_one_token_reads_itself_alone():
    x = jax.random.normal(jax.random.key(0), (2, 8, 4, 16))
    o = gated_linear_attention(x, x, x, segment_ids=np.tile(np.arange(8), (2, 1)), scale=1)
    np.testing.assert_allclose(o, jnp.sum(x * x, -1, keepdims=True) * x, rtol=1e-5)


def test_zeros_have_zero_gradients():
    gradient = jax.grad(lambda q: jnp.sum(gated_linear_attention(q, X, X, G)))(jnp.asarray(X))
    assert (gradient == 0).all()
