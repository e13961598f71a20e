"""What the report compiles: causal attention of one example with eight heads in bfloat16, and grouped and windowed."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels_pallas.cases import Case, size_of
from kernels_pallas.flash_attention import mask, tiles, tpu, tpu_backward
from kernels_pallas.flash_attention.mask import Mask

HEADS = 8


def _pairs(seen: Mask) -> int:
    """Pairs of a query and a key that it sees."""
    if seen.right is None:
        return seen.queries * seen.keys
    return sum(min(t + 1, (seen.left or t) + 1) for t in range(seen.queries))


def _cases(length: int, width: int, kv_heads: int = HEADS, window: int | None = None) -> tuple[Case, Case]:
    seen = Mask(length, length, window, 0, 0, True, 0)
    options = {"mask": seen, "scale": width**-0.5, "logits_soft_cap": None, "block_sizes": {}}
    query = jax.ShapeDtypeStruct((1, length, HEADS, width), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((1, length, kv_heads, width), jnp.bfloat16)
    row = jax.ShapeDtypeStruct((1, length, HEADS), jnp.float32)

    def forward(q, k, v):
        return tpu.forward(q, k, v, None, None, None, None, **options)

    def backward(q, k, v, lse, delta, g):
        return tpu_backward.backward(q, k, v, None, None, None, None, lse, delta, None, g, **options)[:3]

    def steps(direction: str, over) -> int:
        shape = jax.ShapeDtypeStruct((1, kv_heads, HEADS // kv_heads, length, width), query.dtype)
        turned = jax.ShapeDtypeStruct((1, kv_heads, length, width), query.dtype)
        made = tiles.plan(shape, turned, None, None, None, direction, {}, **{k: options[k] for k in _PLANNED})
        return kv_heads * made.turns * over(made.mask, made.queries, made.keys).worked

    flops = 4 * HEADS * width * _pairs(seen)
    label = f"causal T{length} N{HEADS} K{kv_heads} H{width} bfloat16" + (f" window {window}" if window else "")
    make = functools.partial(Case, "flash_attention", label=label)
    return (
        make(
            direction="forward",
            function=forward,
            arguments=(query, key, key),
            flops=flops,
            floor_bytes=size_of(query, key, key, query, row),
            steps={"flash_attention_forward": steps("forward", mask.over_queries)},
        ),
        make(
            direction="backward",
            function=backward,
            arguments=(query, key, key, row, row, query),
            flops=flops * 5 / 2,  # scores again, and four products
            floor_bytes=size_of(query, key, key, row, row, query, query, key, key),
            steps={"flash_attention_backward": steps("backward", mask.over_queries)},
        ),
    )


_PLANNED = ("mask", "scale", "logits_soft_cap")
CASES = (
    *_cases(4096, 128),
    *_cases(8192, 128),
    *_cases(4096, 64),
    *_cases(8192, 64),
    *_cases(8192, 128, kv_heads=2),
    *_cases(8192, 128, window=1024),
)
