"""What the report compiles of the delta rule: gates per head and per channel, both directions, both dtypes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels_pallas.cases import Case, Tuned, size_of
from kernels_pallas.delta_rule import tpu
from kernels_pallas.delta_rule.tpu_chunk import CHUNK
from kernels_pallas.delta_rule.tpu_program import heads_of

HEADS = 8  # of a program at most, as by default
NOTE = {
    "spills": "the inverse of a chunk, its factors and the state are matrices of 128 x 128 float32, 16 registers each"
    " of 64; on v5e the matrix unit has work in 57 to 84 % of the bundles",
    "bytes": "the compiler brings operands into VMEM before the call (tpu7x has room for them) and counts them again",
    "floor": "products bound it, not bytes: the inverse of a chunk grows from blocks of 16 rows by doubling, each step"
    " waiting for the one before, beside products of the chunk with itself and with the state",
}


def _case(direction, dtype, gate, batch=2, length=4096, heads=8, keys=128, values=128, together=HEADS) -> Case:
    shape = jax.ShapeDtypeStruct
    q, v = shape((batch, length, heads, keys), dtype), shape((batch, length, heads, values), dtype)
    beta = shape(q.shape[:3], jnp.float32)
    g = {"none": None, "head": beta, "channel": shape(q.shape, jnp.float32)}[gate]
    state = shape((batch, heads, keys, values), jnp.float32)
    states = shape((batch, heads, length // CHUNK, keys, values), dtype)
    inputs = (q, q, v, beta, *(() if g is None else (g,)))
    # A chunk's products of keys with keys and queries, of both with the state, of P and the inverse with values and of
    # keys with what is written; backward these once more, and two for each.
    chunk = 2 * CHUNK * CHUNK * (keys + values) + 6 * CHUNK * keys * values
    flops = chunk * batch * heads * (length // CHUNK)
    settings = {"scale": keys**-0.5, "heads": together}
    if direction == "forward":
        function = functools.partial(_forward, settings)
        arguments = (q, q, v, beta, g, state)
        moved = size_of(*inputs, v, states, state, state)
    else:
        function = functools.partial(_backward, settings)
        arguments = (q, q, v, beta, g, states, v, state)
        moved = size_of(*inputs, *inputs, v, states, state, state)
        flops *= 3
    programs = heads // heads_of(q, v, g, together, backward=direction == "backward")
    return Case(
        operation="delta_rule",
        direction=direction,
        label=f"{jnp.dtype(dtype).name} decay {gate} B{batch} N{heads} T{length} K{keys} V{values}",
        function=function,
        arguments=arguments,
        flops=flops,
        floor_bytes=moved,
        steps={f"delta_rule_{direction}": batch * programs * (length // CHUNK)},
        note=NOTE,
    )


def _forward(settings, q, k, v, beta, g, initial_state):
    return tpu.forward(q, k, v, beta, g, None, initial_state, **settings)


def _backward(settings, q, k, v, beta, g, states, do, dfinal):
    return tpu.backward(q, k, v, beta, g, None, states, do, dfinal, **settings)


CASES = tuple(
    _case(direction, dtype, gate)
    for direction in ("forward", "backward")
    for dtype in (jnp.bfloat16, jnp.float32)
    for gate in ("head", "channel")
)


def _tuned(dtype, width: int) -> Tuned:
    """Heads of a program, over both directions and kinds of gates; the kernels' chunk is fixed."""

    def of(sizes):
        made = functools.partial(_case, dtype=dtype, keys=width, values=width, length=1024, together=sizes["heads"])
        return [made(direction, gate=gate) for direction in ("forward", "backward") for gate in ("head", "channel")]

    return Tuned(
        "delta_rule",
        "forward",
        jnp.dtype(dtype).name,
        width,
        lambda chip: [{"heads": n} for n in (HEADS, 4, 2)],
        of,
        "delta_rule",
    )


TUNED = (_tuned(jnp.bfloat16, 128),)
