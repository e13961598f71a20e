"""Gated linear attention on GPUs: Pallas kernels for Triton, tokens before heads.

A GPU runs the programs of a grid at once and hands nothing from one to the next, so the work is cut as in GLA
(arXiv:2312.06635, section 4): `_walk` alone goes over the sequence chunk by chunk, with a tile of the state in
registers, and writes the state before each chunk; `_outputs` and `_gradients` then take all chunks at once. Backward,
states are made again from those that the forward pass saved, one in `chunk` tokens, and the same walk in reverse makes
their gradients. No program adds to what another writes: results do not depend on the order of programs.

The mathematics is that of `chunk`, in operations that Triton has (no slices, no shuffled rows; widths are padded to
powers of two by masks): sums over halves of a chunk are products with matrices of zeros and ones. float32 operands are
multiplied in full float32 (on CUDA cores: tensor cores would round them to 11 bits).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels_pallas.gated_linear_attention.chunk import GRID, NT, TN, clamped, dot, indices, ones_dot
from kernels_pallas.gpu_chunks import Plan

OPERATION = "gated_linear_attention"
# Tokens of a chunk, and channels of a tile of the state: what fits in registers and, in float32, compiles in seconds.
TILES = {"bfloat16": {"scalar": (64, 64), "vector": (32, 64)}, "float32": {"scalar": (32, 32), "vector": (16, 32)}}


def forward(q, k, v, g, state, *, scale: float, chunk: int, save: bool = True, interpret: bool = False):
    """See `tpu.forward`; `chunk` is how many tokens apart states are saved."""
    q, k, v, g = (jnp.swapaxes(x, 1, 2) for x in (q, k, v, g))
    plan = _plan(q, v, g, chunk, interpret)
    states, (final, *saved) = _walk(plan, k, v, g, state[:, :, None], scale, save=save)
    o = _outputs(plan, q, k, v, g, states, scale)
    return jnp.swapaxes(o, 1, 2), final, saved[0] if save else None


def backward(q, k, v, g, states, do, dfinal, *, scale: float, chunk: int, interpret: bool = False):
    """See `tpu.backward`."""
    q, k, v, g, do = (jnp.swapaxes(x, 1, 2) for x in (q, k, v, g, do))
    plan = _plan(q, v, g, chunk, interpret)
    states, _ = _walk(plan, k, v, g, states, scale)
    dstates, (dstate,) = _walk(plan, q, do, g, dfinal[:, :, None], scale, reverse=True)
    dq, dk, dv, dg = _gradients(plan, q, k, v, g, do, states, dstates, scale)
    if plan.share > 1:
        dq, dk = (x.reshape(*q.shape[:3], plan.share, -1).sum(3).astype(q.dtype) for x in (dq, dk))
    return *(jnp.swapaxes(x, 1, 2) for x in (dq, dk, dv, dg)), dstate


def _plan(q, v, g, chunk: int, interpret: bool):
    kind = "vector" if g.ndim == 4 else "scalar"
    warps = 4 if v.dtype == jnp.bfloat16 else 8  # as few as spill no registers
    return Plan(OPERATION, q, v, kind, TILES[v.dtype.name][kind], chunk, warps, interpret)


def upto(g, dtype):
    """Decays from the chunk's start up to and with each token: of gates [C] as [C, 1], of [C, K] as [C, K]."""
    if g.ndim == 1:
        return jnp.exp(sum(sums for sums, _ in running(g)))[:, None]
    t, s = indices(len(g))
    return jnp.exp(ones_dot(t >= s, g, dtype))


def after(g, dtype):
    """Decays from behind each token to the chunk's end."""
    if g.ndim == 1:
        return jnp.exp(sum(total - sums for sums, total in running(g)))[:, None]
    t, s = indices(len(g))
    return jnp.exp(ones_dot(t < s, g, dtype))


def whole(g):
    """Decay over the chunk, [] or [K]."""
    return jnp.exp(jnp.sum(g, axis=0))


def between(g):
    """Decays of gates [C] from s to t [C, C], zero for t < s."""
    t, s = indices(len(g))
    sums = sum(sums[:, None] - sums[None, :] for sums, _ in running(g))
    return jnp.exp(jnp.where(t >= s, sums, -jnp.inf))


def running(g):
    """(sums up to each token, their last) of the coarse and of the fine part of gates [C]: see `chunk.split`."""
    coarse = jnp.floor(g / GRID + 0.5) * GRID
    return [(jnp.cumsum(x), jnp.sum(x)) for x in (coarse, g - coarse)]


def halves(g, level, dtype):
    """Of level `level` of the tree of `chunk.vector`, halves of 2^level tokens: whether a token lies in a second half
    [C, 1], the decays [C, K] between it and where the halves meet, and which pairs meet there [C, C]."""
    t, s = indices(g.shape[0])
    second = ((t >> level) & 1) == 1
    between = ((t >> level) == (s >> level)) & ((second & (s <= t)) | (~second & (s > t)))
    row = jax.lax.broadcasted_iota(jnp.int32, (g.shape[0], 1), 0)
    return ((row >> level) & 1) == 1, jnp.exp(ones_dot(between, g, dtype)), ((t ^ s) >> level) == 1


def weights(q, k, g):
    """p [C, C] of `chunk.vector`."""
    t, s = indices(len(q))
    queries, keys = q.astype(g.dtype), k.astype(g.dtype)

    def meet(level, p):
        second, weight, pairs = halves(g, level, q.dtype)
        z = (jnp.where(second, queries, keys) * weight).astype(q.dtype)
        return p + jnp.where(pairs & (t > s), dot(z, z, NT), 0)

    own = jnp.where(t == s, jnp.sum(queries * keys, axis=1)[:, None], 0)
    return jax.lax.fori_loop(0, len(q).bit_length() - 1, meet, own)


def _walk(plan, x, y, g, first, scale: float, *, save: bool = False, reverse: bool = False):
    """States before each chunk [B, N, chunks, K, V] in the operands' dtype, of x = k, y = v; or in reverse, of x = q,
    y = do, the gradients of the states after each chunk.

    Args:
      first: [B, N, S, K, V], the state before (reverse: after) each of S equal spans of the sequence.

    Returns:
      the states; and of a single span, the state at its other end [B, N, K, V], with `save` also one in `every` states,
      float32.
    """
    spans = first.shape[2]
    steps = plan.chunks if spans == 1 else plan.every
    k_tiles, v_tiles = plan.k_padded // plan.k_tile, plan.v_padded // plan.v_tile
    out = [(plan.states(spans * steps, x.dtype), plan.of_states(steps, lambda b, n, s, _: (b, n, s, 0, 0)))]
    if spans == 1:
        out.append((plan.states(1, first.dtype), plan.of_states()))
    if save:
        out.append((plan.states(plan.spans, first.dtype), plan.of_states(plan.spans)))

    def kernel(plan, x_ref, y_ref, g_ref, first_ref, states_ref, *rest):
        span, tile = pl.program_id(2), pl.program_id(3)
        k_at, v_at = (
            jax.lax.div(tile, jnp.int32(v_tiles)) * plan.k_tile,
            jax.lax.rem(tile, jnp.int32(v_tiles)) * plan.v_tile,
        )
        at = functools.partial(plan.part_of_state, shape=(plan.k_tile, plan.v_tile), k_at=k_at, v_at=v_at)

        def step(i, state):
            c = steps - 1 - i if reverse else i
            start = (span * steps + c) * plan.size
            ref, inside = at(states_ref, c)
            plgpu.store(ref, state.astype(ref.dtype), mask=inside)
            if save:
                ref, inside = at(rest[1], jax.lax.div(c, jnp.asarray(plan.every, c.dtype)))
                plgpu.store(ref, state, mask=inside & (jax.lax.rem(c, jnp.asarray(plan.every, c.dtype)) == 0))
            x = plan.load(x_ref, start, plan.k_width, plan.k_tile, k_at)
            y = plan.load(y_ref, start, plan.v_width, plan.v_tile, v_at)
            g = clamped(plan.load_g(g_ref, start, plan.k_tile, k_at))
            y = (scale * y).astype(y.dtype) if reverse else y
            x = (x * (upto if reverse else after)(g, x.dtype)).astype(x.dtype)
            return (whole(g) if g.ndim == 1 else whole(g)[:, None]) * state + dot(x, y, TN)

        ref, inside = at(first_ref)
        state = jax.lax.fori_loop(0, steps, step, plgpu.load(ref, mask=inside, other=0))
        if spans == 1:
            ref, inside = at(rest[0])
            plgpu.store(ref, state, mask=inside)

    of_first = plan.of_states(None, lambda b, n, s, _: (b, n, s, 0, 0))
    of_x = plan.tokens(plan.k_padded, 1 if x.shape[2] == plan.heads else plan.share)
    c, k, v = plan.sides()
    by_key = plan.kind == "vector"
    states, *rest = plan.call(
        kernel,
        "gradients_of_states" if reverse else "states",
        (spans, k_tiles * v_tiles),
        [of_x, plan.of_v(), plan.of_g(), of_first],
        [spec for _, spec in out],
        [shape for shape, _ in out],
        (x, y, g, first),
        chunks=spans * steps,
        products=c * k * v + by_key * v_tiles * plan.parts * c * c * k,
        exponentials=v_tiles * ((c + 1) * k if by_key else k_tiles * (c + 1)),
    )
    return states, [rest[0][:, :, 0], *rest[1:]] if rest else []


def _outputs(plan, q, k, v, g, states, scale: float):
    """o [B, T, N, V]."""

    def kernel(plan, q_ref, k_ref, v_ref, g_ref, states_ref, o_ref):
        c, v_at = pl.program_id(2), pl.program_id(3) * plan.v_tile
        start = c * plan.size
        q, k = (plan.load_q(ref, start) for ref in (q_ref, k_ref))
        v = plan.load(v_ref, start, plan.v_width, plan.v_tile, v_at)
        g = clamped(plan.load_g(g_ref, start))
        p = dot(q, k, NT) * between(g) if g.ndim == 1 else weights(q, k, g)
        ref, inside = plan.part_of_state(states_ref, shape=(plan.k_padded, plan.v_tile), v_at=v_at)
        state = plgpu.load(ref, mask=inside, other=0)
        o = scale * (dot(p.astype(v.dtype), v) + dot((q * upto(g, q.dtype)).astype(q.dtype), state))
        plan.store(o_ref, o, start, plan.v_width, v_at)

    tiles = plan.v_padded // plan.v_tile
    c, k_padded, v_padded = plan.sides()
    pairs = plan.levels * (plan.parts + 1) + plan.parts if plan.kind == "vector" else 1
    of_states = plan.of_states(None, lambda b, n, c, _: (b, n, c, 0, 0))
    (o,) = plan.call(
        kernel,
        "outputs",
        (plan.chunks, tiles),
        [plan.of_q(), plan.of_q(), plan.of_v(), plan.of_g(), of_states],
        [plan.of_v()],
        [jax.ShapeDtypeStruct(v.shape, v.dtype)],
        (q, k, v, g, states),
        chunks=plan.chunks,
        products=tiles * pairs * c * c * k_padded + c * (c + k_padded) * v_padded,
        exponentials=tiles * c * ((plan.levels + 1) * k_padded if plan.kind == "vector" else c + 1),
    )
    return o


def _gradients(plan, q, k, v, g, do, states, dstates, scale: float):
    """Gradients of q and k (of each head apart where heads share them), of v and of the gates."""

    def kernel(plan, q_ref, k_ref, v_ref, g_ref, do_ref, states_ref, dstates_ref, dq_ref, dk_ref, dv_ref, dg_ref):
        start = pl.program_id(2) * plan.size
        q, k = (plan.load_q(ref, start) for ref in (q_ref, k_ref))
        g = clamped(plan.load_g(g_ref, start))
        into, out = upto(g, q.dtype), after(g, q.dtype)
        if g.ndim == 1:
            of_pairs = dot(q, k, NT), between(g)
            p = (of_pairs[0] * of_pairs[1]).astype(q.dtype)
        else:
            p = weights(q, k, g).astype(q.dtype)
        k_out = (k * out).astype(q.dtype)

        def of_tile(i, sums):
            at = i * plan.v_tile
            v, do = (plan.load(ref, start, plan.v_width, plan.v_tile, at) for ref in (v_ref, do_ref))
            do = (scale * do).astype(v.dtype)
            part = functools.partial(plan.part_of_state, shape=(plan.k_padded, plan.v_tile), v_at=at)
            parts = part(states_ref), part(dstates_ref)
            state, dstate = (plgpu.load(ref, mask=inside, other=0) for ref, inside in parts)
            plan.store(dv_ref, dot(p, do, TN) + dot(k_out, dstate), start, plan.v_width, at)
            both = state.astype(jnp.float32) * dstate.astype(jnp.float32)
            found = dot(do, v, NT), dot(do, state, NT), dot(v, dstate, NT), jnp.sum(both, axis=1)
            return tuple(x + y for x, y in zip(sums, found))

        shapes = (plan.size,) * 2, q.shape, q.shape, q.shape[1:]
        none = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
        dp, dq_in, dk_out, dtotal = jax.lax.fori_loop(0, plan.v_padded // plan.v_tile, of_tile, none)
        rest = dp, dq_in * into, dk_out * out, whole(g) * dtotal
        dq, dk, dg = _pull_scalar(q, k, *of_pairs, *rest) if g.ndim == 1 else _pull_vector(q, k, g, *rest)
        plan.store(dq_ref, dq, start, plan.k_width)
        plan.store(dk_ref, dk, start, plan.k_width)
        plan.store(dg_ref, dg, start, plan.k_width)

    like_q = (*v.shape[:3], q.shape[3])
    of_states = plan.of_states(None, lambda b, n, c: (b, n, c, 0, 0))
    c, k_padded, v_padded = plan.sides()
    if plan.kind == "vector":
        products = c * c * k_padded * (plan.levels * (2 * plan.parts + 2) + 4 * plan.parts)
        exponentials = k_padded * (2 * c * (plan.levels + 1) + 1)
    else:
        products, exponentials = 3 * c * c * k_padded + plan.parts * c**3, c * (c + 2) + 1
    return plan.call(
        kernel,
        "gradients",
        (plan.chunks,),
        [plan.of_q(), plan.of_q(), plan.of_v(), plan.of_g(), plan.of_v(), of_states, of_states],
        [*[plan.tokens(plan.k_padded)] * 2, plan.of_v(), plan.of_g()],
        [
            *[jax.ShapeDtypeStruct(like_q, q.dtype if plan.share == 1 else jnp.float32)] * 2,
            jax.ShapeDtypeStruct(v.shape, v.dtype),
            jax.ShapeDtypeStruct(g.shape, g.dtype),
        ],
        (q, k, v, g, do, states, dstates),
        chunks=plan.chunks,
        products=products + 2 * c * c * v_padded + 3 * c * k_padded * v_padded,
        exponentials=exponentials,
    )


def _pull_scalar(q, k, scores, decay, dp, dq_in, dk_out, dtotal):
    """Gradients of q, k [C, K] and the gates [C], as `chunk.scalar`'s of scores and decays [C, C]."""
    m = dp * decay
    dq, dk = dot(m.astype(q.dtype), k) + dq_in, dot(m.astype(q.dtype), q, TN) + dk_out
    dg = gradient_of_gates(m * scores, q * dq_in, k * dk_out, q.dtype) + jnp.sum(dtotal)
    return dq, dk, dg


def gradient_of_gates(pairs, ends, begins, dtype):
    """[C], of each gate the gradients of the paths that cross it; nothing has to cancel (see `chunk.scalar`).

    Args:
      pairs: [C, C], of paths from s to t > s; what it holds elsewhere is left out.
      ends, begins: [C, K], summed over K: of those that enter the chunk and end at a token, and that begin and leave.
    """
    t, s = indices(len(pairs))
    crossing = ones_dot(jnp.where(t > s, pairs, 0), t < s, dtype) + jnp.sum(ends, axis=1)[:, None]
    return jnp.sum(jnp.where(t >= s, crossing, jnp.sum(begins, axis=1)[:, None]), axis=0)


def _pull_vector(q, k, g, dp, dq_in, dk_out, dtotal):
    """As `_pull_scalar` of gates [C, K], as `chunk.vector`'s."""
    t, s = indices(len(q))
    queries, keys = q.astype(g.dtype), k.astype(g.dtype)
    own = jnp.sum(jnp.where(t == s, dp, 0), axis=1)[:, None]
    rest = jnp.where(t > s, dp, 0)
    rest = rest + jnp.transpose(rest)

    def meet(level, sums):
        second, weight, pairs = halves(g, level, q.dtype)
        z = (jnp.where(second, queries, keys) * weight).astype(q.dtype)
        dz = dot(jnp.where(pairs, rest, 0).astype(q.dtype), z)
        change, crossed = weight * dz, z * dz
        found = jnp.where(second, change, 0), jnp.where(second, 0, change), jnp.where(second, crossed, -crossed)
        return tuple(x + y for x, y in zip(sums, found))

    first = own * keys, own * queries, jnp.zeros_like(g)
    dq, dk, crossing = jax.lax.fori_loop(0, len(q).bit_length() - 1, meet, first)
    dg = ones_dot(t <= s, crossing + queries * dq_in, q.dtype) + ones_dot(t > s, keys * dk_out, q.dtype)
    return dq + dq_in, dk + dk_out, dg + dtotal[None, :]
