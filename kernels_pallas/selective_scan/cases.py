"""What the report compiles of the selective scan: both directions, both dtypes; bias, D and z are beside the kernel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels_pallas.cases import Case, size_of
from kernels_pallas.selective_scan import tpu


def case(direction, dtype, batch=2, length=2048, width=2048, n=16, segments=False) -> Case:
    """`steps` are turns of the kernel's loop, each charged with the bundles of the whole kernel: an upper bound."""
    rows, channels = tpu.DEFAULT["rows"], tpu.widest(width, tpu.DEFAULT["width"])
    blocks = -(-length // rows)
    shape = jax.ShapeDtypeStruct
    x, columns = shape((batch, length, width), dtype), shape((batch, n, length), dtype)
    A, state = shape((1, n, width), jnp.float32), shape((batch, n, width), jnp.float32)
    states = shape((batch, blocks, n, width), jnp.float32)
    keep = (shape((batch, length), jnp.float32),) if segments else ()
    if direction == "forward":
        function, arguments = tpu.forward, (x, x, A, columns, columns, state, *keep)
        results = (x, state, states)
    else:
        function, arguments = tpu.backward, (x, x, A, columns, columns, states, x, state, *keep)
        results = (x, x, state, columns, columns, state)
    return Case(
        operation="selective_scan",
        direction=direction,
        label=f"{jnp.dtype(dtype).name} B{batch} T{length} D{width} N{n}" + " segments" * segments,
        function=functools.partial(function, **tpu.DEFAULT),
        arguments=arguments,
        flops=0,  # no matrix products
        floor_bytes=size_of(*arguments, *results),
        steps={f"selective_scan_{direction}": batch * (width // channels) * blocks * (rows // tpu.TURN)},
    )


CASES = tuple(case(direction, dtype) for direction in ("forward", "backward") for dtype in (jnp.bfloat16, jnp.float32))
