"""The backward TPU kernel: chunks from the last to the first, the gradient of the state in VMEM.

With u = (I + A)^-1 r, the gradient of r is dr = (I + A)^-T du and that of A is -dr u^T: the inverse needs no gradient.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels_pallas.delta_rule import tpu_chunk
from kernels_pallas.delta_rule.cpu import LEAST_GATE
from kernels_pallas.delta_rule.tpu_chunk import CHUNK, F32, NT, TN, causal, connected, dot, dot_of_parts, iota
from kernels_pallas.delta_rule.tpu_program import OPTIONAL, decay_of_state, decayed, load, prepare


def backward_kernel(*refs, names, scale, heads, narrow, length):
    refs = dict.fromkeys(OPTIONAL) | dict(zip(names, refs))
    step, chunks, dstate_ref = pl.program_id(2), pl.num_programs(2), refs["state"]
    rows_left = None if length % CHUNK == 0 else length - (chunks - 1 - step) * CHUNK

    @pl.when(step == 0)
    def _():
        dstate_ref[...] = refs["dfinal"][0]

    rows, columns = prepare(refs, scale=scale, heads=heads, narrow=narrow, rows_left=rows_left)
    mask, sums = connected(rows, columns), jnp.zeros((CHUNK, 128), F32)
    for h in range(heads):
        sums = one_head(h, refs, rows, columns, mask, sums, rows_left, scale=scale, heads=heads, narrow=narrow)
    sums = sums.T
    refs["dbeta"][0, 0] = sums[:heads]
    if refs["g"] is not None and refs["e"] is None:
        since, before = sums[heads : 2 * heads], sums[2 * heads : 3 * heads]
        dg = dot(since, jnp.where(causal(), 1.0, 0.0), False)
        dg = dg + dot(before, jnp.where(causal(strict=True), 1.0, 0.0), False, NT)
        refs["dg"][0, 0] = dg

    @pl.when(step == chunks - 1)
    def _():
        refs["dinitial"][0] = dstate_ref[...]


def one_head(h, refs, rows, columns, mask, sums, rows_left, *, scale, heads, narrow):
    """Writes the head's gradients; returns `sums` [C, 128] with its columns of dbeta and, with gates per head, of

    what later and what earlier steps add to dg.
    """
    a_ref, x_ref, e_ref = (refs[x] for x in "axe")
    q, k, v, do = (load(refs[x], h, rows_left) for x in ("q", "k", "v", "do"))
    beta = columns["beta"][:, h : h + 1]
    qd, kd, kr = decayed(q, k, e_ref, columns, h)
    state, dstate = refs["states"][0, h, 0].astype(F32), refs["state"][h]
    error = v - dot(kd, state, narrow)
    u = tpu_chunk.solve(a_ref[h], x_ref[h], beta * error, narrow)
    du = dot(refs["p"][h], do, narrow, TN) + dot(kr, dstate, narrow)
    dr = tpu_chunk.solve_transposed(a_ref[h], x_ref[h], du, narrow)
    dv = beta * dr
    refs["dv"][0, h] = dv.astype(refs["dv"].dtype)
    pairs = dot(jnp.concatenate([scale * do, -dr], 0), u, narrow, NT)
    dp = jnp.where(mask, pairs[:CHUNK], 0.0)
    da = jnp.where(mask & causal(strict=True), pairs[CHUNK:], 0.0)
    from_state = dot(jnp.concatenate([scale * do, -dv], 0), state, narrow, NT)
    dqd, dkd, dkr = from_state[:CHUNK], from_state[CHUNK:], dot(u, dstate, narrow, NT)
    decay, of_decay = decay_of_state(rows, e_ref, h), state * dstate
    ends = jnp.concatenate([scale * qd, -kd], 0), jnp.concatenate([do, dv], 0)
    refs["state"][h] = decay * dstate + dot(*ends, narrow, TN)
    of_pairs = da * a_ref[h]
    dbeta = jnp.sum(dr * error, 1, keepdims=True) + jnp.sum(of_pairs, 1, keepdims=True) / beta
    sums = with_column(sums, h, dbeta)
    da = beta * da
    start, end = columns["from_start"][:, h : h + 1], columns["to_end"][:, h : h + 1]
    if e_ref is None:
        of_pairs = of_pairs + jnp.where(causal(strict=True), dp * refs["p"][h].astype(F32) / scale, 0.0)
        both = jnp.concatenate([dp * refs["d"][h], da * refs["d"][h]], 0)
        towards = dot(both, k, narrow)
        dq = dqd * start + towards[:CHUNK]
        dk = dkd * start + dkr * end + towards[CHUNK:] + dot(both, jnp.concatenate([q, k], 0), narrow, TN)
        if refs["g"] is not None:
            late = jnp.sum(dqd * qd + dkd * kd, 1, keepdims=True) + jnp.sum(of_pairs, 1, keepdims=True)
            late = late - jnp.sum(of_pairs.T, 1, keepdims=True)
            last = jnp.where(iota((CHUNK, 1), 0) == CHUNK - 1, jnp.sum(of_decay * decay, keepdims=True), 0.0)
            sums = with_column(sums, heads + h, late + last)
            sums = with_column(sums, 2 * heads + h, jnp.sum(dkr * kr, 1, keepdims=True))
    else:
        g = jnp.maximum(load(refs["g"], h, rows_left), LEAST_GATE)
        dq, dk, late = of_levels(q, k, g, dp, da, narrow)
        late = late + dqd * qd + dkd * kd
        whole = jnp.sum(of_decay * decay, 1, keepdims=True)
        dg = sums_around(late, dkr * kr, narrow) + jnp.broadcast_to(whole, (len(whole), CHUNK)).T
        refs["dg"][0, h] = dg.astype(refs["dg"].dtype)
        start, end, own = start * e_ref[h, 0], end * e_ref[h, 1], jnp.sum(scale * do * u, 1, keepdims=True)
        dq, dk = dq + dqd * start + own * k, dk + dkd * start + dkr * end + own * q
    refs["dq"][0, h], refs["dk"][0, h] = dq.astype(refs["dq"].dtype), dk.astype(refs["dk"].dtype)
    return sums


def with_column(columns, at, column):
    return jnp.where(iota(columns.shape, 1) == at, column, columns)


def sums_around(since, before, narrow):
    """[C, K]: for each step t the sum of `since` from t on and of `before` up to t, without it."""
    ones = jnp.where(causal(), 0.0, 1.0) + jnp.where(causal() & ~causal(strict=True), 1.0, 0.0)
    ones = jnp.concatenate([ones, jnp.where(causal(strict=True), 1.0, 0.0)], 1)
    return dot_of_parts(ones, jnp.concatenate([since, before], 0), narrow)


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
