"""The chunked form in plain XLA operations: the WY representation of Yang et al. 2024 (arXiv:2406.06484, section 3).

In a chunk of C steps that begins with state S, with decays E_ij of the state from step j to step i,

    u = (I + A)^-1 beta (v - Kd S),   o = Qd S + P u,   S' = decay S + Kr^T u,

A_ij = beta_i E_ij k_i.k_j (j < i), P_ij = scale E_ij q_i.k_j (j <= i); Kd and Qd are keys and queries times the decay
since the chunk's start, Kr keys times the decay until its end. No exponent is ever positive.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

LEAST_GATE = -100.0  # exp of it is below the least float32: smaller gates change nothing but the sums' rounding
FEWER = 32  # steps of a chunk with a decay per channel: its levels cost more than the states of more chunks
BASE = 16  # rows of the blocks in which the first levels of a decay per channel are computed


def _einsum(spec, *arrays):
    return jnp.einsum(spec, *arrays, precision="highest")


def chunked(x, chunk):
    """[B, T, N, ...] -> [T / chunk, B, N, chunk, ...], zeros behind the last step."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % chunk)) + ((0, 0),) * (x.ndim - 2))
    x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
    return jnp.moveaxis(x, (1, 3), (0, 2))


def flat(x, length):
    """The way back from `chunked`."""
    x = jnp.moveaxis(x, (0, 2), (1, 3))
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _sums_of_gates(g):
    """Sums of scalar gates g [..., C]: from the start to i, from behind j to the end, and [..., C, C] from j to i.

    Differences of running sums lose what one strong gate has swallowed. The gates are split in multiples of 1/256,
    whose sums are exact, and a rest whose sums are small.
    """
    coarse = jax.lax.stop_gradient(jnp.round(g * 256) / 256)
    up_to = jnp.asarray(np.triu(np.ones((g.shape[-1],) * 2)), g.dtype)
    parts = [_einsum("...t,ti->...i", part, up_to) for part in (coarse, g - coarse)]
    between = sum(part[..., :, None] - part[..., None, :] for part in parts)
    return sum(parts), sum(part[..., -1:] - part for part in parts), between


def _levels(g):
    """Halving levels of gates per channel g [..., C, K]: ([(s, z)], from the start, to the end).

    Level s pairs the blocks of s rows. z is a second block's sum from its start to the row, inclusive, and a first
    block's from behind the row to its end: each pair of steps has one level, where its decay is exp(z_i + z_j).
    """
    upto, after, found = g, jnp.zeros_like(g), []
    size = g.shape[-2]
    second = np.arange(size)[:, None]
    for s in (1 << n for n in range(size.bit_length() - 1)):
        is_second = second // s % 2 == 1
        found.append((s, jnp.where(is_second, upto, after)))
        blocks = upto.reshape(*upto.shape[:-2], -1, 2, s, upto.shape[-1])
        other = jnp.broadcast_to(blocks[..., ::-1, -1:, :], blocks.shape).reshape(upto.shape)
        upto, after = jnp.where(is_second, upto + other, upto), jnp.where(is_second, after, after + other)
    return found, upto, after


def _products_by_level(rows, columns, levels):
    """sum_c rows_ic columns_jc exp(sum of g_c from j to i) for j < i, else 0: [..., R, C, C]; rows [..., R, C, K]."""

    def blocks_of(x, size):
        return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])

    at, blocks = np.arange(BASE), 0
    for s, z in levels:
        decay = jnp.exp(z)
        block = max(2 * s, BASE)
        ours, theirs = blocks_of(columns * decay, block), blocks_of(rows * decay[..., None, :, :], block)
        if s < BASE:
            pairs = (at[:, None] // (2 * s) == at // (2 * s)) & (at[:, None] // s > at // s)
            blocks += jnp.where(pairs, _einsum("...rmik,...mjk->...rmij", theirs, ours), 0)
        else:
            lower = _einsum("...rmik,...mjk->...rmij", theirs[..., s:, :], ours[..., :s, :])
            first, second = blocks[..., ::2, :, :], blocks[..., 1::2, :, :]
            upper = jnp.concatenate([first, jnp.zeros_like(first)], -1)
            blocks = jnp.concatenate([upper, jnp.concatenate([lower, second], -1)], -2)
    return blocks[..., 0, :, :]


def _within(q, k, beta, g, counts, scale):
    """What a chunk's steps do to each other and to the state: A, P [..., C, C], Kd, Qd, Kr [..., C, K], decay [..., K].

    Args: q, k [..., C, K]; beta [..., C]; g [..., C], [..., C, K] or None; counts [..., C] of the resets in the chunk
    up to each step, or None.
    """
    size = k.shape[-2]
    causal = np.tril(np.ones((size, size), bool))
    carried = passed = True
    if counts is not None:
        causal = causal & (counts[..., :, None] == counts[..., None, :])
        carried, passed = (counts == 0)[..., None], (counts == counts[..., -1:])[..., None]
    earlier = causal & ~np.eye(size, dtype=bool)
    if g is not None and g.ndim == k.ndim:
        levels, upto, after = _levels(jnp.maximum(g, LEAST_GATE))
        products = _products_by_level(jnp.stack([k, q], -3), k, levels)
        diagonal = jnp.sum(q * k, -1)[..., None] * np.eye(size, dtype=k.dtype)
        kk, qk = products[..., 0, :, :], products[..., 1, :, :] + diagonal
    else:
        kk, qk = _einsum("...ik,...jk->...ij", k, k), _einsum("...ik,...jk->...ij", q, k)
        if g is None:
            upto = after = jnp.zeros_like(beta)[..., None]
        else:
            upto, after, between = _sums_of_gates(jnp.maximum(g, LEAST_GATE))
            upto, after = upto[..., None], after[..., None]
            decay = jnp.exp(jnp.where(causal, between, 0))
            kk, qk = kk * decay, qk * decay
    start, rest = jnp.exp(upto) * carried, jnp.exp(after) * passed
    a = jnp.where(earlier, beta[..., None] * kk, 0)
    p = jnp.where(causal, scale * qk, 0)
    return a, p, k * start, scale * q * start, k * rest, jnp.broadcast_to(start[..., -1, :], k[..., 0, :].shape)


def _inverse(a):
    """(I + A)^-1 of strictly lower triangular A [..., C, C], C a power of two (powers of A explode where it does not).

    Block doubling: below the inverses X and Y of two blocks on the diagonal comes -Y A' X. No `triangular_solve`: two
    of them at once wait for each other for ever where a CPU has two threads (jaxlib 0.10.2, `ParallelBatchMap`).
    """
    size, block = a.shape[-1], 1
    x = jnp.ones((*a.shape[:-2], size, 1, 1), a.dtype)
    while block < size:
        pairs = a.reshape(*a.shape[:-2], size // (2 * block), 2, block, size // (2 * block), 2, block)
        below = jnp.einsum("...nink->...nik", pairs[..., :, 1, :, :, 0, :])
        first, second = x[..., 0::2, :, :], x[..., 1::2, :, :]
        corner = -_einsum("...ij,...jk->...ik", _einsum("...ij,...jk->...ik", second, below), first)
        upper, lower = jnp.concatenate([first, jnp.zeros_like(first)], -1), jnp.concatenate([corner, second], -1)
        x, block = jnp.concatenate([upper, lower], -2), 2 * block
    return x[..., 0, :, :]


def _operands(q, k, v, beta, g, resets, chunk):
    """In chunks and in the dtype of statistics; `counts` as `_within` takes them."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    q, k, v, beta, g = (None if x is None else chunked(x.astype(dtype), chunk) for x in (q, k, v, beta, g))
    counts = None if resets is None else jnp.cumsum(chunked(resets[..., None].astype(jnp.int32), chunk), -1)
    return q, k, v, beta, g, counts


def _steps(g, chunk):
    """Of the chunks computed with; states are kept for every `chunk` steps on all platforms."""
    return min(chunk, FEWER) if g is not None and g.ndim == 4 else chunk


def _all_states(states, each, w, u, kr, decay):
    """States before every chunk, of those before every `each`-th."""
    count = w.shape[0]
    operands = (jnp.pad(x, ((0, -count % each), *[(0, 0)] * (x.ndim - 1))) for x in (w, u, kr, decay))
    operands = [x.reshape(-1, each, *x.shape[1:]) for x in operands]
    found = [states]
    for j in range(each - 1):
        found.append(_next(found[-1], *(x[:, j] for x in operands))[0])
    return jnp.stack(found, 1).reshape(-1, *states.shape[1:])[:count]


def _next(state, w, u, kr, decay):
    """The state after a chunk, and its u, of u without that state."""
    u = u - _einsum("...ck,...kv->...cv", w, state)
    return decay[..., None] * state + _einsum("...ck,...cv->...kv", kr, u), u


def forward(q, k, v, beta, g, resets, initial_state, *, scale, chunk):
    """(o [B, T, N, V], final state [B, N, K, V], states [B, N, T / chunk, K, V] at the chunks' starts)."""
    length, like, steps = q.shape[1], q.dtype, _steps(g, chunk)
    q, k, v, beta, g, counts = _operands(q, k, v, beta, g, resets, steps)
    a, p, kd, qd, kr, decay = _within(q, k, beta, g, counts, scale)
    inverse = _inverse(a) * beta[..., None, :]
    w, u = _einsum("...ij,...jk->...ik", inverse, kd), _einsum("...ij,...jv->...iv", inverse, v)

    def body(state, x):
        w, u, p, qd, kr, decay = x
        after, u = _next(state, w, u, kr, decay)
        o = _einsum("...ck,...kv->...cv", qd, state) + _einsum("...ij,...jv->...iv", p, u)
        return after, (o, state.astype(like))

    final, (o, states) = jax.lax.scan(body, initial_state.astype(q.dtype), (w, u, p, qd, kr, decay))
    return flat(o, length).astype(like), final, jnp.moveaxis(states[:: chunk // steps], 0, 2)


def backward(q, k, v, beta, g, resets, states, do, dfinal, *, scale, chunk):
    """Gradients of q, k, v, beta, g (None without) and the initial state."""
    inputs, length, steps = (q, k, v, beta, g), q.shape[1], _steps(g, chunk)
    q, k, v, beta, g, counts = _operands(q, k, v, beta, g, resets, steps)
    do, states = chunked(do.astype(q.dtype), steps), jnp.moveaxis(states, 2, 0).astype(q.dtype)
    (a, p, kd, qd, kr, decay), of_within = jax.vjp(
        lambda q, k, beta, g: _within(q, k, beta, g, counts, scale), q, k, beta, g
    )
    inverse = _inverse(a)
    w = _einsum("...ij,...jk->...ik", inverse, beta[..., None] * kd)
    if steps < chunk:
        u = _einsum("...ij,...jv->...iv", inverse, beta[..., None] * v)
        states = _all_states(states, chunk // steps, w, u, kr, decay)
    error = v - _einsum("...ck,...kv->...cv", kd, states)
    u = _einsum("...ij,...jv->...iv", inverse, beta[..., None] * error)
    by_p = _einsum("...ij,...iv->...jv", p, do)
    entering = _einsum("...ck,...cv->...kv", qd, do) - _einsum("...ck,...cv->...kv", w, by_p)

    def body(dstate, x):
        w, kr, decay, entering = x
        by_u = _einsum("...ck,...kv->...cv", kr, dstate)
        return decay[..., None] * dstate + entering - _einsum("...ck,...cv->...kv", w, by_u), (dstate, by_u)

    dinitial, (dstates, by_u) = jax.lax.scan(body, dfinal.astype(q.dtype), (w, kr, decay, entering), reverse=True)
    dr = _einsum("...ij,...iv->...jv", inverse, by_p + by_u)
    dv = beta[..., None] * dr
    grads = of_within(
        (
            -_einsum("...iv,...jv->...ij", dr, u),
            _einsum("...iv,...jv->...ij", do, u),
            -_einsum("...cv,...kv->...ck", dv, states),
            _einsum("...cv,...kv->...ck", do, states),
            _einsum("...cv,...kv->...ck", u, dstates),
            jnp.sum(states * dstates, -1),
        )
    )
    dq, dk, dbeta, dg = grads
    dbeta = dbeta + jnp.sum(dr * error, -1)
    grads = (dq, dk, dv, dbeta, dg)
    grads = (None if x is None else flat(d, length).astype(x.dtype) for d, x in zip(grads, inputs))
    return *grads, dinitial
