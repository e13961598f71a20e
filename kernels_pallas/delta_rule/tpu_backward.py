"""The backward TPU kernel: chunks from the last to the first, the gradient of the state in VMEM.

With u = (I + A)^-1 r, the gradient of r is dr = (I + A)^-T du and that of A is -dr u^T: the inverse needs no gradient.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels_pallas.delta_rule import tpu_chunk
from kernels_pallas.delta_rule.cpu import LEAST_GATE
from kernels_pallas.delta_rule.tpu_chunk import CHUNK, F32, NT, TN, causal, dot, iota, parts
from kernels_pallas.delta_rule.tpu_program import OPTIONAL, decay_of_state, decayed, load, prepare, scaled


def backward_kernel(*refs, names, scale, heads, narrow, length):
    refs = dict.fromkeys(OPTIONAL) | dict(zip(names, refs))
    step, chunks, dstate_ref = pl.program_id(2), pl.num_programs(2), refs["state"]
    rows_left = None if length % CHUNK == 0 else length - (chunks - 1 - step) * CHUNK

    @pl.when(step == 0)
    def _():
        dstate_ref[...] = refs["dfinal"][0]

    rows, columns = prepare(refs, scale=scale, heads=heads, narrow=narrow, rows_left=rows_left)
    sums, by_column, by_later = jnp.zeros((CHUNK, 128), F32), [], []
    for h in range(heads):
        of_write, late, column, later = one_head(h, refs, rows, columns, rows_left, scale=scale, narrow=narrow)
        by_column.append(column)
        by_later.append(later)
        sums = with_column(with_column(sums, h, of_write), heads + h, late)
    sums = sums.T
    of_writes, late = sums[:heads], sums[heads : 2 * heads]
    of_beta = (jnp.concatenate(by_column, 0) + of_writes) / rows["beta"]
    refs["dbeta"][0, 0] = of_beta.astype(refs["dbeta"].dtype)
    if refs["g"] is not None and refs["e"] is None:
        dg = dot(late - jnp.concatenate(by_later, 0), jnp.where(causal(), 1.0, 0.0), False)
        dg = dg + dot(of_writes, jnp.where(causal(strict=True), 1.0, 0.0), False, NT)
        refs["dg"][0, 0] = dg.astype(refs["dg"].dtype)

    @pl.when(step == chunks - 1)
    def _():
        refs["dinitial"][0] = dstate_ref[...]


def one_head(h, refs, rows, columns, rows_left, *, scale, narrow):
    """Writes the head's gradients of q, k, v and gates per channel.

    Returns [C, 1] of the writes at the chunk's end, times their gradient; with gates per head [C, 1] of all that
    decays up to each step; and [1, C] of the pairs in which each step is the earlier one, with and without itself.
    """
    e_ref = refs["e"]
    qd, kd, kr = decayed(refs, h, rows_left)
    state, dstate = refs["states"][0, h, 0].astype(F32), refs["state"][h]
    error = load(refs["v"], h, rows_left, F32) - scaled(dot(kd, state, narrow), columns, "start", h)
    w = tpu_chunk.solve(refs["a"], refs["x"], h, error, narrow)
    do = load(refs["do"], h, rows_left, F32)
    written = dot(kr, dstate, narrow)
    of_write = scaled(jnp.sum(written * w, 1, keepdims=True), columns, "write", h)
    dw = dot(refs["p"][h], do, narrow, TN) + scaled(written, columns, "write", h)
    de = tpu_chunk.solve_transposed(refs["a"], refs["x"], h, dw, narrow)
    refs["dv"][0, h] = de.astype(refs["dv"].dtype)
    pairs = dot(jnp.concatenate([do, -de], 0), w, narrow, NT)
    dp, da = pairs[:CHUNK], pairs[CHUNK:]
    of_pairs = dp * refs["p"][h].astype(F32) + jnp.where(causal(strict=True), da * refs["a"][0, h].astype(F32), 0.0)
    before = jnp.where(causal(strict=True), of_pairs, 0.0)
    dread = jnp.concatenate([scaled(x, columns, "start", h) for x in (scale * do, -de)], 0)
    from_state = dot(dread, state, narrow, NT)
    dkr = dot(scaled(w, columns, "write", h), dstate, narrow, NT)
    decay, of_decay = decay_of_state(rows, e_ref, h), state * dstate
    refs["state"][h] = decay * dstate + dot(jnp.concatenate([qd, kd], 0), dread, narrow, TN)
    dqd, dkd, late = from_state[:CHUNK], from_state[CHUNK:], jnp.zeros((CHUNK, 1), F32)
    d = refs["d"][h]
    dp, da = scale * dp * d, jnp.where(causal(strict=True), da * d, 0.0)
    if e_ref is None:
        both = jnp.concatenate([dp, da], 0)
        towards = dot(both, kd, narrow)
        dq, dk = dqd + towards[:CHUNK], dkd + dkr + towards[CHUNK:]
        dk = dk + dot(both, jnp.concatenate([qd, kd], 0), narrow, TN)
        if refs["g"] is not None:
            late = jnp.sum(dqd * qd + dkd * kd, 1, keepdims=True) + jnp.sum(before, 1, keepdims=True)
            last = iota((CHUNK, 1), 0) == CHUNK - 1
            late = late + jnp.where(last, jnp.sum(of_decay * decay, keepdims=True), 0.0)
    else:
        q, k = (load(refs[x], h, rows_left, F32) for x in "qk")
        g = jnp.maximum(load(refs["g"], h, rows_left, F32), LEAST_GATE)
        own = jnp.sum(do * w, 1, keepdims=True) * scale * columns["beta", h]
        dq, dk, since = of_levels(q, k, g, dp, da, narrow)
        since = since + dqd * qd + dkd * kd
        whole = jnp.sum(of_decay * decay, 1, keepdims=True)
        dg = sums_around(since, dkr * kr, narrow) + jnp.broadcast_to(whole, (len(whole), CHUNK)).T
        refs["dg"][0, h] = dg.astype(refs["dg"].dtype)
        dq, dk = dq + dqd * e_ref[h, 0] + own * k, dk + dkd * e_ref[h, 0] + dkr * e_ref[h, 1] + own * q
    refs["dq"][0, h], refs["dk"][0, h] = dq.astype(refs["dq"].dtype), dk.astype(refs["dk"].dtype)
    return of_write, late, jnp.sum(of_pairs, 0, keepdims=True), jnp.sum(before, 0, keepdims=True)


def with_column(columns, at, column):
    return jnp.where(iota(columns.shape, 1) == at, column, columns)


def sums_around(since, before, narrow):
    """[C, K]: for each step t the sum of `since` from t on and of `before` up to t, without it."""
    ones = jnp.where(causal(), 0.0, 1.0) + jnp.where(causal() & ~causal(strict=True), 1.0, 0.0)
    ones = jnp.concatenate([ones, jnp.where(causal(strict=True), 1.0, 0.0)], 1)
    return sum(dot(ones, part, narrow) for part in parts(jnp.concatenate([since, before], 0), narrow))


def of_levels(q, k, g, dqk, dkk, narrow):
    """dq, dk [C, K] from gradients of `tpu_chunk.products` with gates per channel, the diagonal left out; and those of

    the running sums of gates, of which each step takes the sum from itself on.
    """
    dq = dk = dsum = jnp.zeros_like(q)
    for size, z, *end in tpu_chunk.levels(g):
        if end:
            return dq, dk, dsum
        decay, pairs = jnp.exp(z), tpu_chunk.of_level(size)
        both = jnp.concatenate([jnp.where(pairs, dqk, 0.0), jnp.where(pairs, dkk, 0.0)], 0)
        q_here, k_here = q * decay, k * decay
        towards = dot(both, k_here, narrow)
        back = dot(both, jnp.concatenate([q_here, k_here], 0), narrow, TN)
        dq, dk = dq + towards[:CHUNK] * decay, dk + (towards[CHUNK:] + back) * decay
        dsum = dsum + q_here * towards[:CHUNK] + k_here * (towards[CHUNK:] - back)
