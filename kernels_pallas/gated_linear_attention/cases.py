"""What the report and the ledger compile."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels_pallas import aot
from kernels_pallas.cases import Case, Tuned, size_of
from kernels_pallas.gated_linear_attention import tpu

BATCH, LENGTH, HEADS = 2, 4096, 8
SPILLS = (
    "a chunk's matrices of 128 x 128 float32 are 16 registers each of 64 (of 256 x 256 all), and several live at once"
    " beside the state; on v5e the matrix unit has work in 68 to 93 % of the bundles"
)


def _note(direction: str, kind: str, width: int, dtype) -> dict[str, str]:
    reasons = {
        "the gates per channel make the chunk's products a tree of seven levels": kind == "vector",
        "a product of float32 is six passes of the matrix unit": dtype == jnp.float32,
        f"a head of {width} channels leaves half of registers and matrix unit idle": width < 128,
        "backward has three times the products for less than twice the bytes": direction == "backward",
    }
    given = [reason for reason, holds in reasons.items() if holds] or ["products of the chunk with itself, their gates"]
    return {"spills": SPILLS, "floor": "arithmetic, not bytes, bounds it: " + "; ".join(given)}


def _case(direction: str, kind: str, width: int, dtype, chunk: int, heads: int | None = None) -> Case:
    shape = jax.ShapeDtypeStruct
    q = shape((BATCH, HEADS, LENGTH, width), dtype)
    g = shape(q.shape if kind == "vector" else q.shape[:3], jnp.float32)
    state = shape((BATCH, HEADS, width, width), jnp.float32)
    saved = shape((BATCH, HEADS, LENGTH // chunk, width, width), jnp.float32)
    sizes = {"chunk": chunk, "heads": heads or tpu.default_sizes(kind, dtype, width)["heads"]}
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
        note=_note(direction, kind, width, dtype),
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


def _tuned(kind: str, dtype, width: int) -> Tuned:
    chunks = {"scalar": (128, 256), "vector": (128,)}[kind]

    def candidates(chip):
        with aot.traced_for(chip):
            default = tpu.default_sizes(kind, dtype, width)
        found = [{"chunk": chunk, "heads": n} for n in (4, 8) for chunk in chunks]
        return [default, *(sizes for sizes in found if sizes != default)]

    def of(sizes):
        return [_case(direction, kind, width, dtype, **sizes) for direction in ("forward", "backward")]

    return Tuned("gated_linear_attention", kind, jnp.dtype(dtype).name, width, candidates, of, "gated_linear_attention")


TUNED = tuple(_tuned(kind, jnp.bfloat16, width) for kind in ("scalar", "vector") for width in (64, 128))
