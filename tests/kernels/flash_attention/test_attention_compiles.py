"""Compiled for TPUs that are not there: every option, memory of the gradient, moves, VMEM."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas.chips import CHIPS
from kernels_pallas.flash_attention import flash_attention

SMALL = {"queries": 256, "keys": 256}
OPTIONS = {
    "full": {},
    "causal": {"is_causal": True},
    "window": {"is_causal": True, "local_window_size": 200, "first_tokens": 4},
    "two sides": {"local_window_size": (100, 30)},
    "soft cap": {"is_causal": True, "logits_soft_cap": 30.0},
}


def shape(*axes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(axes, dtype)


def value_and_gradients(found, g, ids=None, **options):
    out, back = jax.vjp(lambda found: flash_attention(**found, segment_ids=ids, **options), found)
    return out, back(g)


def arguments(batch, length, heads, kv_heads, width, dtype=jnp.bfloat16, bias=None, sinks=False, segments=False):
    found = {name: shape(batch, length, kv_heads, width, dtype=dtype) for name in ("key", "value")}
    found["query"] = shape(batch, length, heads, width, dtype=dtype)
    if bias:
        found["bias"] = shape(*bias, length, length, dtype=dtype)
    if sinks:
        found["sinks"] = shape(heads, dtype=jnp.float32)
    return (found, found["query"], *([shape(batch, length, dtype=jnp.int32)] if segments else []))


def compile_small(compile_for, chip, options, **of):
    made = compile_for(chip, functools.partial(value_and_gradients, block_sizes=SMALL, **options), *arguments(**of))
    names = {kernel.name.split(".")[0] for kernel in made.kernels}
    assert names >= {"flash_attention_forward", "flash_attention_backward"}
    assert ("flash_attention_backward_bias" in names) == (of.get("bias") is not None)
    limit = CHIPS[chip].vmem_most_bytes
    assert all(0 < kernel.vmem_bytes <= limit for kernel in made.kernels)


@pytest.mark.parametrize("chip", CHIPS)
def test_everything_at_once_compiles_on_every_chip(compile_for, chip):
    of = {"batch": 2, "length": 500, "heads": 4, "kv_heads": 2, "width": 64}
    options = {"is_causal": True, "local_window_size": 200, "first_tokens": 4, "logits_soft_cap": 30.0}
    with jax.default_matmul_precision("highest"):
        compile_small(compile_for, chip, options, **of, bias=(1, 4), sinks=True, segments=True)


@pytest.mark.long
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("width", [64, 96, 128, 192, 256])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("segments", [False, True])
def test_matrix(compile_for, chip, dtype, width, option, segments):
    of = {"batch": 1, "length": 512, "heads": 2, "kv_heads": 1, "width": width, "dtype": dtype, "segments": segments}
    compile_small(compile_for, chip, OPTIONS[option], **of)
    compile_small(compile_for, chip, OPTIONS[option], **of | {"length": 500, "bias": (1, 1), "sinks": True})


@pytest.mark.long
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_default_blocks_fit(compile_for, chip, dtype, width):
    """Value and gradient with the blocks that are taken where none are asked for."""
    program = functools.partial(value_and_gradients, is_causal=True)
    made = compile_for(chip, program, *arguments(1, 4096, 4, 2, width, dtype))
    assert all(kernel.vmem_bytes <= CHIPS[chip].vmem_most_bytes for kernel in made.kernels)


def memory(compile_for, length):
    program = functools.partial(value_and_gradients, is_causal=True)
    found, g = arguments(1, length, 8, 8, 128)
    made = compile_for("v5e", program, found, g, free_layouts=True)
    operand = 2 * math.prod(g.shape)
    assert not [move for move in made.moves(operand) if move[0] != "copy-start"]  # which brings an operand into VMEM
    return made.temp_bytes, 3 * operand


@pytest.mark.parametrize("length", [32768, pytest.param(8192, marks=pytest.mark.long)])
def test_memory_of_the_gradient_is_linear(compile_for, length):
    (short, _), (long, operands) = memory(compile_for, length), memory(compile_for, 4 * length)
    assert long <= 4.2 * short and long < operands


def test_what_only_the_plain_form_keeps_costs_a_tpu_nothing(compile_for):
    """Short sequences in a scan over layers: no buffer of exponentials survives."""
    length, layers, width = 512, 4, 64

    def loss(weights, x):
        def layer(x, w):
            heads = (x @ w).reshape(8, length, 8, width)
            return x + flash_attention(heads, heads, heads, is_causal=True).reshape(x.shape), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0].astype(jnp.float32))

    features = 8 * width
    made = compile_for(
        "v5e", jax.grad(loss), shape(layers, features, features), shape(8, length, features), free_layouts=True
    )
    exponentials = (
        2 * layers * 8 * 8 * length * length * 5 // 8
    )  # four blocks of queries, each with the keys up to its end
    assert made.temp_bytes < exponentials / 2
