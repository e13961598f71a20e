"""Compiling for an H200 that is not there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu


def product(x, y, block=128):
    """bfloat16 matrix product [256, 256] x [256, 256], all of the inner axis at once."""

    def kernel(x_ref, y_ref, z_ref):
        z_ref[...] = jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32).astype(z_ref.dtype)

    rows, inner = x.shape
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((rows, y.shape[1]), x.dtype),
        grid=(rows // block, y.shape[1] // block),
        in_specs=[pl.BlockSpec((block, inner), lambda i, j: (i, 0)), pl.BlockSpec((inner, block), lambda i, j: (0, j))],
        out_specs=pl.BlockSpec((block, block), lambda i, j: (i, j)),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        name="product",
    )(x, y)


def test_a_kernel_compiles_and_one_too_large_is_refused(compile_for_h200):
    table = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
    made = compile_for_h200(product, table, table)
    assert 'name = "product"' in made.as_text() and made.memory_analysis().temp_size_in_bytes == 0
    large = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)
    with pytest.raises(Exception, match="[Ss]hared memory"):
        compile_for_h200(product, large, large)
