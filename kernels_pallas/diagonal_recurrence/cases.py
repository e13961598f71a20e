"""What the report compiles of the diagonal recurrence: both directions, both dtypes, decays by token and constant."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels_pallas.cases import Case, size_of
from kernels_pallas.diagonal_recurrence import tpu


def case(direction, dtype, decay="token", batch=4, length=2048, width=2048, segments=False) -> Case:
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
    rows, channels = tpu.DEFAULT["rows"], tpu.DEFAULT["width"]
    return Case(
        operation="diagonal_recurrence",
        direction=direction,
        label=f"{jnp.dtype(dtype).name} decay {decay} B{batch} T{length} D{width}" + " segments" * segments,
        function=functools.partial(function, **tpu.DEFAULT),
        arguments=arguments,
        flops=0,  # no matrix products
        floor_bytes=moved,
        steps={f"diagonal_recurrence_{direction}": batch * -(-width // channels) * -(-length // rows)},
    )


CASES = tuple(
    case(direction, dtype, decay)
    for direction in ("forward", "backward")
    for dtype in (jnp.bfloat16, jnp.float32)
    for decay in ("token", "channel")
)
