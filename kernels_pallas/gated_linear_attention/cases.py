"""What the report and the ledger compile."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels_pallas.cases import Case, size_of
from kernels_pallas.gated_linear_attention import tpu

BATCH, LENGTH, HEADS = 2, 4096, 8


def _case(direction: str, kind: str, width: int, dtype, chunk: int) -> Case:
    shape = jax.ShapeDtypeStruct
    q = shape((BATCH, HEADS, LENGTH, width), dtype)
    g = shape(q.shape if kind == "vector" else q.shape[:3], jnp.float32)
    state = shape((BATCH, HEADS, width, width), jnp.float32)
    saved = shape((BATCH, HEADS, LENGTH // chunk, width, width), jnp.float32)
    sizes = {"chunk": chunk, "heads": tpu.default_sizes(kind, dtype, width)["heads"]}
    together = sizes["heads"] if direction == "forward" else tpu.backward_heads(kind, sizes["heads"])
    if direction == "forward":
        function, arguments, results = tpu.forward, (q, q, q, g, state), (q, state, saved)
    else:
        function, arguments, results = tpu.backward, (q, q, q, g, saved, q, state), (q, q, q, g, state)
    return Case(
        operation="gated_linear_attention",
        direction=direction,
        label=f"{kind} B{BATCH} N{HEADS} T{LENGTH} K{width} V{width} {jnp.dtype(dtype).name} chunk {chunk}",
        function=functools.partial(function, scale=width**-0.5, **sizes),
        arguments=arguments,
        # The recurrence itself, token by token; its gradient makes the state and its gradient, and reads each twice.
        flops=(4 if direction == "forward" else 12) * BATCH * HEADS * LENGTH * width * width,
        floor_bytes=size_of(*arguments, *results),
        steps={f"gated_linear_attention_{kind}_{direction}": BATCH * HEADS * LENGTH // (chunk * together)},
    )


CASES = tuple(
    _case(direction, *what)
    for direction in ("forward", "backward")
    for what in (
        ("scalar", 128, jnp.bfloat16, 128),
        ("scalar", 128, jnp.bfloat16, 256),
        ("scalar", 64, jnp.bfloat16, 128),
        ("scalar", 128, jnp.float32, 128),
        ("vector", 128, jnp.bfloat16, 128),
        ("vector", 64, jnp.bfloat16, 128),
        ("vector", 128, jnp.float32, 128),
    )
)
