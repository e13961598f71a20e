"""What the report compiles: causal attention of one example with eight heads in bfloat16, and grouped and windowed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from kernels_pallas.cases import Case, Tuned, size_of
from kernels_pallas.chips import MIB
from kernels_pallas.flash_attention import mask, tiles, tpu, tpu_backward
from kernels_pallas.flash_attention.mask import Mask

HEADS = 8
NOTE = {
    "spills": "forward the tile of scores stays in registers from one product to the other and has more than the 64"
    " there are, while on v5e the matrix unit has work in three quarters of the bundles; backward it goes through"
    " scratch, which leaves a tenth on v6e and tpu7x (with a window, more masked tiles, a quarter)",
    "bytes": "in the 16 MiB of v4 no head stays in VMEM backward: arrays pass once for each block that meets them, in"
    " each of two kernels; the products take several times longer than these bytes",
}


NO_SIZES: Mapping[str, int] = MappingProxyType({})


def _pairs(seen: Mask) -> int:
    """Pairs of a query and a key that it sees."""
    if seen.right is None:
        return seen.queries * seen.keys
    return sum(min(t + 1, (seen.left or t) + 1) for t in range(seen.queries))


def _cases(
    length: int, width: int, kv_heads: int = HEADS, window: int | None = None, block_sizes: Mapping[str, int] = NO_SIZES
) -> tuple[Case, Case]:
    seen = Mask(length, length, window, 0, 0, True, 0)
    options = {"mask": seen, "scale": width**-0.5, "logits_soft_cap": None, "block_sizes": block_sizes}
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
        made = tiles.plan(shape, turned, None, None, None, direction, **options)
        return kv_heads * made.turns * over(made.mask, made.queries, made.keys).worked

    flops = 4 * HEADS * width * _pairs(seen)
    label = f"causal T{length} N{HEADS} K{kv_heads} H{width} bfloat16" + (f" window {window}" if window else "")
    make = functools.partial(Case, "flash_attention", label=label, note=NOTE)
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


CASES = (
    *_cases(4096, 128),
    *_cases(8192, 128),
    *_cases(4096, 64),
    *_cases(8192, 64),
    *_cases(8192, 128, kv_heads=2),
    *_cases(8192, 128, window=1024),
)


def _tuned(direction: str, width: int) -> Tuned:
    """Keys only: blocks of queries follow from how many heads share a key, which the table does not know."""

    def candidates(chip):
        sides = (1024, 512, 2048) if width <= 128 and chip.vmem_most_bytes > 16 * MIB else (512, 1024)
        return [{"keys": side} for side in sides]

    def of(sizes):
        return [case for case in _cases(4096, width, block_sizes=sizes) if case.direction == direction]

    return Tuned("flash_attention", direction, "bfloat16", width, candidates, of, f"flash_attention_{direction}")


TUNED = tuple(_tuned(direction, width) for direction in ("forward", "backward") for width in (128, 256))
