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


def gradients_of(operation):
    function, shapes = TRACED[operation]
    given = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes] + [jax.ShapeDtypeStruct((1, T), np.int32)]
    return jax.grad(lambda *x: jnp.sum(function(*x)), argnums=tuple(range(len(shapes)))), given


@pytest.mark.parametrize("operation", TRACED)
def test_float32_stays_float32(operation):
    with jax.enable_x64(True):
        gradients, given = gradients_of(operation)
        made = jax.eval_shape(gradients, *given)
    assert [(x.shape, x.dtype) for x in made] == [(x.shape, np.float32) for x in given[:-1]]


@pytest.mark.parametrize(
    "operation", ["diagonal_recurrence", *(pytest.param(n, marks=pytest.mark.long) for n in TRACED)]
)
def test_kernels_compile(compile_for, operation):
    with jax.enable_x64(True):
        gradients, given = gradients_of(operation)
        made = compile_for("v5e", gradients, *given, free_layouts=True)
    assert {kernel.name.startswith(operation) for kernel in made.kernels} == {True} and len(made.kernels) > 1


def test_dtypes_that_kernels_do_not_take_are_served_by_plain_operations(compile_for):
    """float16 gates; float64 beside float32."""
    for dtype in (np.float16, np.float64):
        with jax.enable_x64(True):
            x, a = (jax.ShapeDtypeStruct(CHANNELS, kind) for kind in (np.float32, dtype))
            assert not compile_for("v5e", lambda x, a: diagonal_recurrence(x, -jnp.abs(a)), x, a).kernels
