"""What the report compiles of the diagonal recurrence: both directions, both dtypes, decays by token and constant."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels_pallas.cases import Case, Tuned, size_of
from kernels_pallas.diagonal_recurrence import tpu

NOTE = {
    "spills": "with a decay that is constant in time, what depends on it alone is made once and kept, spilled, for the"
    " whole block; v4's scheduler spills more of everything",
    "floor": "bfloat16 halves the bytes, not the arithmetic, which is in float32: some seven cycles for 1,024 elements",
}


def case(direction, dtype, decay="token", batch=4, length=2048, width=2048, segments=False, sizes=tpu.DEFAULT) -> Case:
    """`decay`: "token" [B, T, D] or "channel" [D]."""
    shape = jax.ShapeDtypeStruct
    x, state = shape((batch, length, width), dtype), shape((batch, width), jnp.float32)
    g = x if decay == "token" else shape((1, 1, width), jnp.float32)
    dg = x if decay == "token" else shape((batch, 1, width), jnp.float32)
    keep = (shape((batch, length), jnp.float32),) if segments else ()
    if direction == "forward":
        function, arguments = tpu.forward, (x, g, state, *keep)
        moved = size_of(*arguments, x, state)
    else:
        function, arguments = tpu.backward, (g, state, x, x, state, *keep)
        moved = size_of(*arguments, x, dg, state)
    rows, channels = sizes["rows"], sizes["width"]
    return Case(
        operation="diagonal_recurrence",
        direction=direction,
        label=f"{jnp.dtype(dtype).name} decay {decay} B{batch} T{length} D{width}" + " segments" * segments,
        function=functools.partial(function, **sizes),
        arguments=arguments,
        flops=0,  # no matrix products
        floor_bytes=moved,
        steps={f"diagonal_recurrence_{direction}": batch * -(-width // channels) * -(-length // rows)},
        note=NOTE,
    )


CASES = tuple(
    case(direction, dtype, decay)
    for direction in ("forward", "backward")
    for dtype in (jnp.bfloat16, jnp.float32)
    for decay in ("token", "channel")
)


def _tuned(dtype) -> Tuned:
    def of(sizes):
        return [
            case(direction, dtype, decay, sizes=sizes)
            for direction in ("forward", "backward")
            for decay in ("token", "channel")
        ]

    sizes = [{"rows": rows, "width": width} for width in (1024, 512, 2048) for rows in (128, 256)]
    assert sizes[0] == tpu.DEFAULT
    name = jnp.dtype(dtype).name
    return Tuned("diagonal_recurrence", "both", name, 2048, lambda chip: sizes, of, "diagonal_recurrence")


TUNED = (_tuned(jnp.bfloat16), _tuned(jnp.float32))
