"""The chunked form (`cpu`) as Pallas TPU kernels on [B, N, T, K]: several heads a program, their states in VMEM."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels_pallas.delta_rule import tpu_chunk
from kernels_pallas.delta_rule.tpu_backward import backward_kernel
from kernels_pallas.delta_rule.tpu_chunk import CHUNK, F32, TN, dot
from kernels_pallas.delta_rule.tpu_program import (
    OPTIONAL,
    Layout,
    decay_of_state,
    decayed,
    heads_first,
    load,
    prepare,
    scaled,
)


def forward_kernel(*refs, names, scale, heads, narrow, length):
    refs = dict.fromkeys(OPTIONAL) | dict(zip(names, refs))
    chunk, state_ref = pl.program_id(2), refs["state"]
    rows_left = None if length % CHUNK == 0 else length - chunk * CHUNK

    @pl.when(chunk == 0)
    def _():
        state_ref[...] = refs["initial_state"][0]

    refs["states"][0, :, 0] = state_ref[...].astype(refs["states"].dtype)
    rows, columns = prepare(refs, scale=scale, heads=heads, narrow=narrow, rows_left=rows_left)
    for h in range(heads):
        qd, kd, kr = decayed(refs, h, rows_left)
        state = state_ref[h]
        read = dot(jnp.concatenate([kd, qd], 0), state, narrow)
        error = load(refs["v"], h, rows_left, F32) - scaled(read[:CHUNK], columns, "start", h)
        w = tpu_chunk.solve(refs["a"], refs["x"], h, error, narrow)
        o = scaled(scale * read[CHUNK:], columns, "start", h) + dot(refs["p"][h], w, narrow)
        refs["o"][0, h] = o.astype(refs["o"].dtype)
        decay = decay_of_state(rows, refs["e"], h)
        state_ref[h] = decay * state + dot(kr, scaled(w, columns, "write", h), narrow, TN)

    @pl.when(chunk == pl.num_programs(2) - 1)
    def _():
        refs["final"][0] = state_ref[...]


def forward(q, k, v, beta, g, resets, initial_state, *, scale, heads, interpret=False):
    """As `cpu.forward`."""
    at = Layout(q, v, g, heads, backward=False)
    operands = at.operands(q, k, v, beta, g, resets) | {"initial_state": (initial_state, at.state())}
    length, count = max(at.length, CHUNK), q.shape[2]
    shape = jax.ShapeDtypeStruct
    results = {
        "o": (shape((at.batch, count, length, at.values), v.dtype), at.wide(at.values)),
        "final": (shape(initial_state.shape, F32), at.state()),
        "states": (shape((at.batch, count, at.chunks, at.keys, at.values), q.dtype), at.states()),
    }
    by_head, by_channel = (g is not None and g.ndim == axes for axes in (3, 4))
    scratch = at.scratch(by_channel, backward=False)
    cost = at.cost(operands, results, by_head=by_head, by_channel=by_channel, backward=False)
    made = at.call(forward_kernel, "delta_rule_forward", operands, results, scratch, scale, cost, interpret)
    return jnp.swapaxes(made["o"][:, :, : at.length], 1, 2), made["final"], made["states"]


def backward(q, k, v, beta, g, resets, states, do, dfinal, *, scale, heads, interpret=False):
    """As `cpu.backward`."""
    at = Layout(q, v, g, heads, backward=True)
    by_head, by_channel = (g is not None and g.ndim == axes for axes in (3, 4))
    inputs = at.operands(q, k, v, beta, g, resets)
    operands = inputs | {"states": (states, at.states()), "do": (heads_first(do), at.wide(at.values))}
    operands["dfinal"] = dfinal, at.state()
    results = {f"d{n}": (jax.ShapeDtypeStruct(x.shape, x.dtype), s) for n, (x, s) in inputs.items() if n != "count"}
    results["dinitial"] = jax.ShapeDtypeStruct(dfinal.shape, F32), at.state()
    scratch = at.scratch(by_channel, backward=True)
    cost = at.cost(operands, results, by_head=by_head, by_channel=by_channel, backward=True)
    made = at.call(backward_kernel, "delta_rule_backward", operands, results, scratch, scale, cost, interpret)

    def back(name, like):
        x = made.get(name)
        if x is None:
            return None
        x = x.reshape(at.batch, like.shape[2], -1, *like.shape[3:])[:, :, : at.length]
        return jnp.swapaxes(x, 1, 2)

    grads = (back(f"d{name}", x) for name, x in (("q", q), ("k", k), ("v", v), ("beta", beta), ("g", g)))
    return *grads, made["dinitial"]
