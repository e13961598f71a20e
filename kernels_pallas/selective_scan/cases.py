"""What the report compiles of the selective scan: both directions, both dtypes; bias, D and z are beside the kernel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels_pallas.cases import Case, Tuned, size_of
from kernels_pallas.selective_scan import tpu

NOTE = {
    "spills": "a turn keeps the state of 512 channels, 8 registers, beside rows and columns of 16 tokens and the sums"
    " over states; on v5e the vector unit has work in 53 % (forward) and 68 % (backward) of the bundles",
    "bytes": "the compiler brings operands into VMEM before the call (tpu7x has room for them) and counts them again",
    "floor": "the arithmetic bounds it: each token updates 16 states a channel, each with an exponential and some six"
    " operations (backward twice that and more), for the 6 to 20 bytes that a channel's token moves",
}


def case(direction, dtype, batch=2, length=2048, width=2048, n=16, segments=False, sizes=tpu.DEFAULT) -> Case:
    """`steps` are turns of the kernel's loop."""
    rows, channels = sizes["rows"], tpu.widest(width, sizes["width"])
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
        function=functools.partial(function, **sizes),
        arguments=arguments,
        flops=0,  # no matrix products
        floor_bytes=size_of(*arguments, *results),
        steps={f"selective_scan_{direction}": batch * (width // channels) * blocks * (rows // tpu.TURN)},
        note=NOTE,
    )


CASES = tuple(case(direction, dtype) for direction in ("forward", "backward") for dtype in (jnp.bfloat16, jnp.float32))


def _tuned(dtype) -> Tuned:
    def of(sizes):
        return [case(direction, dtype, sizes=sizes) for direction in ("forward", "backward")]

    sizes = [{"rows": rows, "width": width} for width in (512, 256, 1024) for rows in (128, 256)]
    assert sizes[0] == tpu.DEFAULT
    return Tuned("selective_scan", "both", jnp.dtype(dtype).name, 2048, lambda chip: sizes, of, "selective_scan")


TUNED = (_tuned(jnp.bfloat16), _tuned(jnp.float32))
