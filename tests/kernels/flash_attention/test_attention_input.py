"""Each refusal names the argument and its limit."""

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas.flash_attention import flash_attention

Q, K = jnp.zeros((2, 6, 4, 8)), jnp.zeros((2, 5, 2, 8))


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((Q[0], K, K), {}, r"query: found shape \(6, 4, 8\), expected four axes \[B, T, N, H\]"),
        ((Q, K, K[:, :3]), {}, r"value: found shape \(2, 3, 2, 8\), expected that of key"),
        ((Q, K[:1], K[:1]), {}, r"key: found shape \(1, 5, 2, 8\), expected batch 2 and width 8"),
        ((Q, K.astype(jnp.bfloat16), K), {}, "key: found bfloat16, expected one of"),
        ((Q.astype(int),) * 3, {}, "query: found int32, expected one of bfloat16, float32, float64"),
        ((Q[:, :, :3], K, K), {}, "key: found 2 heads, expected a divisor of the 3 heads"),
        ((jnp.zeros((1, 4, 1, 257)),) * 3, {}, "query: found head width 257, expected 1 to 256"),
        (
            (Q, K, K, jnp.zeros((2, 4, 6, 4))),
            {},
            r"bias: found shape \(2, 4, 6, 4\), expected \[1 or 2, 1 or 4, 6, 5\]",
        ),
        ((Q, K, K, jnp.zeros((1, 1, 6, 5), bool)), {}, "bias: found bool.*a mask of booleans is no bias"),
        ((Q, K, K), {"local_window_size": 0}, "local_window_size: found 0, expected at least one side above 0"),
        ((Q, K, K), {"local_window_size": (0, 0)}, "local_window_size: found"),
        ((Q, K, K), {"local_window_size": (-1, 3)}, "local_window_size: found"),
        ((Q, K, K), {"local_window_size": (1, 2, 3)}, "local_window_size: found"),
        ((Q, K, K), {"first_tokens": 4}, "first_tokens: found 4 with local_window_size None"),
        ((Q, K, K), {"logits_soft_cap": 0.0}, "logits_soft_cap: found 0.0, expected a finite number above 0"),
        ((Q, K, K), {"scale": float("nan")}, "scale: found nan, expected a finite number"),
        ((Q, K, K), {"is_causal": jnp.ones((6, 5), bool)}, "is_causal: found .*other masks go by bias"),
        ((Q, K, K), {"sinks": jnp.zeros(3)}, r"sinks: found float32 \(3,\), expected floats of shape \(4,\)"),
        ((Q, K, K), {"segment_ids": jnp.zeros((2, 6), int)}, r"segment_ids: found shapes .*\(2, 5\) for key"),
        ((Q, K, K), {"segment_ids": (jnp.zeros((2, 6)), jnp.zeros((2, 5)))}, "segment_ids: found float32"),
        ((Q, K, K), {"block_sizes": {"queries": 100}}, "block_sizes: found queries=100, expected .*multiple of 128"),
        ((Q, K, K), {"block_sizes": {"heads": 128}}, "block_sizes: found heads=128"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        flash_attention(*arguments, **options)


def test_a_traced_scale_is_refused():
    with pytest.raises(TypeError, match="scale: found a traced array"):
        jax.jit(lambda scale: flash_attention(Q, K, K, scale=scale))(0.5)
