"""What the report compiles of the selective scan: both directions, both dtypes; bias, D and z are beside the kernel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels_pallas.cases import Case, Tuned, size_of
from kernels_pallas.selective_scan import tpu

NOTE = {
    "spills": "backward eight tokens of eight states go together, so that additions need not wait for one another: more"
    " numbers are alive than there are registers, and spills go by slots that the arithmetic does not use",
    "bytes": "the compiler brings operands into VMEM before the call (tpu7x has room for them) and counts them again",
    "floor": "the arithmetic bounds it: a register of states takes six operations a token forward and some 19 backward,"
    " four a bundle at most, which is 1.9 (bfloat16 on v5e) and 3.8 times the floor; loads of B and C share its slots",
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

    sizes = [{"rows": 128, "width": width} for width in (1024, 512)]
    assert sizes[0] == tpu.DEFAULT
    return Tuned("selective_scan", "both", jnp.dtype(dtype).name, 2048, lambda chip: sizes, of, "selective_scan")


TUNED = (_tuned(jnp.bfloat16), _tuned(jnp.float32))
