"""The delta rule's gradients on GPUs: a walk in reverse for those of the state, then all chunks at once.

With u = X r, the gradient of r is dr = X^T du and that of A is -dr u^T: the inverse needs no gradient.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels_pallas.delta_rule.gpu import begin, decayed, prepare, squares, walk
from kernels_pallas.gated_linear_attention.chunk import NT, TN, clamped, dot, indices, ones_dot
from kernels_pallas.gated_linear_attention.gpu import after, between, gradient_of_gates, halves, upto, whole


def backward(q, k, v, beta, g, resets, states, do, dfinal, *, scale, chunk, interpret=False):
    """As `cpu.backward`."""
    plan, rates, gates = begin(q, v, beta, g, resets, chunk, interpret)
    x, p = prepare(plan, q, k, rates, gates, scale)
    states, u, *_ = walk(plan, k, v, rates, gates, x, states)
    dstates, dr, dinitial = _walk_back(plan, q, k, rates, gates, x, p, do, dfinal, scale)
    dq, dk, dv, dbeta, dg = _gradients(plan, q, k, v, rates, gates, do, u, dr, states, dstates, scale)
    dg = None if g is None else dg.astype(g.dtype)
    return dq, dk, dv, dbeta.astype(beta.dtype), dg, dinitial


def _walk_back(plan, q, k, beta, g, x, p, do, dfinal, scale):
    """Gradients of the states behind each chunk [B, N, chunks, K, V], of r [B, T, N, V] and of the first state."""

    def kernel(plan, q_ref, k_ref, beta_ref, g_ref, x_ref, p_ref, do_ref, dfinal_ref, dstates_ref, dr_ref, dfirst_ref):
        v_at = pl.program_id(2) * plan.v_tile
        at = functools.partial(plan.part_of_state, shape=(plan.k_padded, plan.v_tile), v_at=v_at)

        def step(i, dstate):
            c = plan.chunks - 1 - i
            start = c * plan.size
            q, k = (plan.load_q(ref, start) for ref in (q_ref, k_ref))
            g = clamped(plan.load_g(g_ref, start))
            do = plan.load(do_ref, start, plan.v_width, plan.v_tile, v_at)
            narrow, into = dstate.astype(q.dtype), upto(g, q.dtype)
            ref, inside = at(dstates_ref, c)
            plgpu.store(ref, narrow, mask=inside)
            du = dot(p_ref[c], do, TN) + dot((k * after(g, k.dtype)).astype(k.dtype), narrow)
            dr = dot(x_ref[c], du.astype(q.dtype), TN)
            plan.store(dr_ref, dr, start, plan.v_width, v_at)
            read = (plan.load(beta_ref, start)[:, None] * dr).astype(q.dtype)
            from_o, from_r = dot((q * into).astype(q.dtype), do, TN), dot((k * into).astype(k.dtype), read, TN)
            return decayed(g, dstate) + (scale * from_o - from_r)

        ref, inside = at(dfinal_ref)
        dstate = jax.lax.fori_loop(0, plan.chunks, step, plgpu.load(ref, mask=inside, other=0))
        ref, inside = at(dfirst_ref)
        plgpu.store(ref, dstate, mask=inside)

    tiles = plan.v_padded // plan.v_tile
    c, keys, values = plan.sides()
    by_key = plan.kind == "vector"
    of_all = lambda b, n, _: (b, n, 0, 0, 0)  # noqa: E731
    dstates, dr, dfirst = plan.call(
        kernel,
        "walk_back",
        (tiles,),
        [
            *[plan.of_q(), plan.of_q(), plan.tokens(None), plan.of_g()],
            *[squares(plan, plan.chunks, of_all)] * 2,
            *[plan.of_v(), plan.of_states()],
        ],
        [plan.of_states(plan.chunks), plan.of_v(), plan.of_states()],
        [plan.states(plan.chunks, q.dtype), jax.ShapeDtypeStruct(do.shape, do.dtype), plan.states(1, dfinal.dtype)],
        (q, k, beta, g, x, p, do, dfinal[:, :, None]),
        chunks=plan.chunks,
        products=c * (3 * keys + 2 * c) * values + by_key * tiles * 2 * plan.parts * c * c * keys,
        exponentials=tiles * ((2 * c + 1) * keys if by_key else 2 * c + 1),
    )
    return dstates, dr, dfirst[:, :, 0]


def _gradients(plan, q, k, v, beta, g, do, u, dr, states, dstates, scale):
    """Gradients of q, k, v, beta and the gates."""

    def kernel(plan, q_ref, k_ref, v_ref, beta_ref, g_ref, do_ref, u_ref, dr_ref, states_ref, dstates_ref, *results):
        dq_ref, dk_ref, dv_ref, dbeta_ref, dg_ref = results
        start = pl.program_id(2) * plan.size
        q, k = (plan.load_q(ref, start) for ref in (q_ref, k_ref))
        beta, g = plan.load(beta_ref, start)[:, None], clamped(plan.load_g(g_ref, start))
        into, out = upto(g, q.dtype), after(g, q.dtype)
        kd = (k * into).astype(k.dtype)

        def of_tile(i, sums):
            at = i * plan.v_tile
            v, do, u, dr = (
                plan.load(ref, start, plan.v_width, plan.v_tile, at) for ref in (v_ref, do_ref, u_ref, dr_ref)
            )
            part = functools.partial(plan.part_of_state, shape=(plan.k_padded, plan.v_tile), v_at=at)
            parts = part(states_ref), part(dstates_ref)
            state, dstate = (plgpu.load(ref, mask=inside, other=0) for ref, inside in parts)
            dv = (beta * dr).astype(v.dtype)
            plan.store(dv_ref, dv, start, plan.v_width, at)
            found = (
                *(dot(do, u, NT), dot(dr, u, NT), dot(do, state, NT), dot(dv, state, NT), dot(u, dstate, NT)),
                jnp.sum(dr * (v - dot(kd, state)), axis=1),
                jnp.sum(state.astype(jnp.float32) * dstate.astype(jnp.float32), axis=1),
            )
            return tuple(x + y for x, y in zip(sums, found))

        square = (plan.size, plan.size)
        shapes = square, square, q.shape, q.shape, q.shape, q.shape[:1], q.shape[1:]
        none = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
        sums = jax.lax.fori_loop(0, plan.v_padded // plan.v_tile, of_tile, none)
        dp, da, dqd, dkd, dkr, dbeta, dwhole = sums
        pull = _pull_scalar if g.ndim == 1 else _pull_vector
        within = pull(q, k, beta, g, scale * dp, -da, scale * dqd * into, -dkd * into, dkr * out, whole(g) * dwhole)
        dq, dk, of_a, dg = within
        plan.store(dq_ref, dq, start, plan.k_width)
        plan.store(dk_ref, dk, start, plan.k_width)
        plan.store(dbeta_ref, dbeta + of_a, start)
        plan.store(dg_ref, dg, start, plan.k_width)

    c, keys, values = plan.sides()
    if plan.kind == "vector":
        products = (plan.levels * (plan.parts + 4) + 4 * plan.parts) * c * c * keys
        exponentials = (c * (plan.levels + 2) + 1) * keys
    else:
        products, exponentials = 6 * c * c * keys + plan.parts * c**3, c * (c + 2) + 1
    of_states = plan.of_states(None, lambda b, n, c: (b, n, c, 0, 0))
    inputs = [plan.of_q(), plan.of_q(), plan.of_v(), plan.tokens(None), plan.of_g()]
    return plan.call(
        kernel,
        "gradients",
        (plan.chunks,),
        [*inputs, *[plan.of_v()] * 3, *[of_states] * 2],
        inputs,
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v, beta, g)],
        (q, k, v, beta, g, do, u, dr, states, dstates),
        chunks=plan.chunks,
        products=products + c * (2 * c + 4 * keys) * values,
        exponentials=exponentials,
    )


def _pull_scalar(q, k, beta, g, dqk, da, dq_in, dk_in, dk_out, dwhole):
    """Gradients of q, k [C, K], of beta by A [C] and of the gates [C].

    Args:
      dqk, da: [C, C], gradients of products of queries with keys and of A; what lies above the diagonal is left out.
      dq_in, dk_in, dk_out: [C, K], gradients of q and k by Qd, Kd and Kr.
      dwhole: the gradient of the decay over the chunk times that decay.
    """
    t, s = indices(len(q))
    decay = between(g)
    qk, kk = dot(q, k, NT), dot(k, k, NT)
    dqk, da = dqk * decay, jnp.where(t > s, da * decay, 0)
    of_q, of_k = dqk.astype(q.dtype), (beta * da).astype(q.dtype)
    dq = dot(of_q, k) + dq_in
    dk = dot(of_q, q, TN) + (dot(of_k, k) + dot(of_k, k, TN)) + (dk_in + dk_out)
    pairs = dqk * qk + beta * da * kk
    dg = gradient_of_gates(pairs, q * dq_in + k * dk_in, k * dk_out, q.dtype) + jnp.sum(dwhole)
    return dq, dk, jnp.sum(da * kk, axis=1), dg


def _pull_vector(q, k, beta, g, dqk, da, dq_in, dk_in, dk_out, dwhole):
    """As `_pull_scalar` of gates [C, K], by levels of the tree of `..gated_linear_attention.chunk.vector`."""
    t, s = indices(len(q))
    queries, keys = q.astype(g.dtype), k.astype(g.dtype)
    own = jnp.sum(jnp.where(t == s, dqk, 0), axis=1)[:, None]

    def meet(level, sums):
        _, weight, pairs = halves(g, level, q.dtype)
        of_q, of_k = (jnp.where(pairs & (t > s), x, 0).astype(q.dtype) for x in (dqk, da))
        q_here, k_here = queries * weight, keys * weight
        narrow, rated = k_here.astype(q.dtype), (beta * k_here).astype(q.dtype)
        to_q, to_k = dot(of_q, narrow), dot(of_k, narrow)
        back = dot(of_q, q_here.astype(q.dtype), TN) + dot(of_k, rated, TN)
        found = (
            *(weight * to_q, weight * (beta * to_k + back), jnp.sum(k_here * to_k, axis=1)),
            q_here * to_q + k_here * (beta * to_k - back),
        )
        return tuple(x + y for x, y in zip(sums, found))

    first = own * keys, own * queries, jnp.zeros(len(q), jnp.float32), jnp.zeros_like(g)
    dq, dk, dbeta, crossing = jax.lax.fori_loop(0, len(q).bit_length() - 1, meet, first)
    ends = crossing + (queries * dq_in + keys * dk_in)
    dg = ones_dot(t <= s, ends, q.dtype) + ones_dot(t > s, keys * dk_out, q.dtype) + dwhole[None, :]
    return dq + dq_in, dk + (dk_in + dk_out), dbeta, dg
