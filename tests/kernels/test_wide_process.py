"""Where a process computes in 64 bits, operands of 32 are traced for every platform, and stay what they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.delta_rule import delta_rule
from kernels_pallas.diagonal_recurrence import diagonal_recurrence
from kernels_pallas.flash_attention import flash_attention
from kernels_pallas.gated_linear_attention import gated_linear_attention
from kernels_pallas.selective_scan import selective_scan

T, N, H = 40, 2, 16
HEADS, CHANNELS = (1, T, N, H), (1, T, H)
TRACED = {
    "flash_attention": (
        lambda q, k, v, sinks, ids: flash_attention(q, k, v, is_causal=True, sinks=sinks, segment_ids=ids),
        (HEADS, HEADS, HEADS, (N,)),
    ),
    "gated_linear_attention": (
        lambda q, k, v, g, ids: gated_linear_attention(q, k, v, -jnp.abs(g), segment_ids=ids),
        (HEADS, HEADS, HEADS, HEADS),
    ),
    "delta_rule": (
        lambda q, k, v, beta, ids: delta_rule(q, k, v, jax.nn.sigmoid(beta), segment_ids=ids),
        (HEADS, HEADS, HEADS, (1, T, N)),
    ),
    "diagonal_recurrence": (
        lambda x, a, ids: diagonal_recurrence(x, -jnp.abs(a), segment_ids=ids),
        (CHANNELS, CHANNELS),
    ),
    "selective_scan": (
        lambda x, dt, A, B, C, ids: selective_scan(x, jnp.abs(dt), -jnp.abs(A), B, C, segment_ids=ids),
        (CHANNELS, CHANNELS, (H, 4), (1, T, 4), (1, T, 4)),
    ),
}


@pytest.mark.parametrize("operation", TRACED)
def test_float32_stays_float32(operation):
    function, shapes = TRACED[operation]
    ids = jax.ShapeDtypeStruct((1, T), np.int32)
    with jax.enable_x64(True):
        given = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
        gradients = jax.grad(lambda *x: jnp.sum(function(*x)), argnums=tuple(range(len(shapes))))
        made = jax.eval_shape(gradients, *given, ids)
    assert [(x.shape, x.dtype) for x in made] == [(shape, np.float32) for shape in shapes]
