"""The delta rule on GPUs: Pallas kernels for Triton, cut as those of gated linear attention.

In the notation of `cpu`: `prepare` makes the inverse X of I + A and the weights P of all chunks at once; `walk` alone
goes over the sequence, with all keys and a tile of the values of the state in registers,

    r = beta (v - Kd S),   u = X r,   S' = decay S + Kr^T u

and writes u and the state before each chunk; `_outputs` then takes all chunks at once. The backward pass is in
`gpu_backward`. The start of a segment is a gate that forgets all. No program adds to what another writes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels_pallas.delta_rule.tpu_chunk import dot_of_parts, parts
from kernels_pallas.gated_linear_attention.chunk import NT, TN, clamped, dot, indices, least
from kernels_pallas.gated_linear_attention.gpu import after, between, halves, upto, whole
from kernels_pallas.gpu_chunks import Plan

# Tokens of a chunk, and channels of a tile of the state: what fits in registers and, in float32, compiles in seconds.
TILES = {"bfloat16": {"scalar": (64, 32), "vector": (32, 32)}, "float32": {"scalar": (32, 16), "vector": (16, 32)}}


def forward(q, k, v, beta, g, resets, initial_state, *, scale, chunk, interpret=False):
    """As `cpu.forward`."""
    plan, beta, gates = begin(q, v, beta, g, resets, chunk, interpret)
    x, p = prepare(plan, q, k, beta, gates, scale)
    states, u, final, saved = walk(plan, k, v, beta, gates, x, initial_state[:, :, None])
    return _outputs(plan, q, u, gates, p, states, scale), final[:, :, 0], saved


def begin(q, v, beta, g, resets, chunk, interpret):
    """The plan, beta, and gates [B, T, N] or [B, T, N, K] that hold the starts of segments too; float32."""
    kind = "vector" if g is not None and g.ndim == 4 else "scalar"
    gates = jnp.zeros(q.shape[:3], jnp.float32) if g is None else g.astype(jnp.float32)
    if resets is not None:
        starts = resets.reshape(*resets.shape, *[1] * (gates.ndim - 2))
        gates = jnp.where(starts, least(gates.dtype), gates)
    plan = Plan("delta_rule", q, v, kind, TILES[q.dtype.name][kind], chunk, 8, interpret)
    return plan, beta.astype(jnp.float32), gates


def inverse(a):
    """(I + a)^-1 of strictly lower triangular a [C, C], float32, from the inverses X of its diagonal blocks of 1, 2, 4
    .. rows to those of twice as many, X - X L X where L is what lies below in each pair: no power of a is formed.

    A bfloat16 kernel passes a in two parts of bfloat16 and multiplies such parts.
    """
    t, s = indices(len(a[0]))

    def double(level, x):
        mine, below = ((t ^ s) >> level) == 1, parts(x, len(a) == 2)
        lower = tuple(jnp.where(mine, part, 0) for part in a)
        return x - dot_of_parts(below, parts(dot_of_parts(lower, below), len(a) == 2))

    return jax.lax.fori_loop(0, len(a[0]).bit_length() - 1, double, jnp.where(t == s, 1.0, 0.0))


def products(q, k, g):
    """sum_c q_ic k_jc E_ijc for j <= i, and of keys with keys for j < i; zero elsewhere, [C, C]."""
    t, s = indices(len(q))
    if g.ndim == 1:
        decay = between(g)
        return dot(q, k, NT) * decay, jnp.where(t > s, dot(k, k, NT) * decay, 0)
    queries, keys = q.astype(g.dtype), k.astype(g.dtype)

    def meet(level, found):
        _, weight, pairs = halves(g, level, q.dtype)
        here = (keys * weight).astype(q.dtype)
        both = dot((queries * weight).astype(q.dtype), here, NT), dot(here, here, NT)
        return tuple(x + jnp.where(pairs & (t > s), y, 0) for x, y in zip(found, both))

    own = jnp.where(t == s, jnp.sum(queries * keys, axis=1)[:, None], 0)
    return jax.lax.fori_loop(0, len(q).bit_length() - 1, meet, (own, jnp.zeros_like(own)))


def squares(plan, count=None, index=lambda b, n, c, *_: (b, n, c, 0, 0)):
    """`count` successive matrices [C, C] of one head, or that of a program's chunk."""
    return pl.BlockSpec((None, None, count, plan.size, plan.size), index)


def prepare(plan, q, k, beta, g, scale):
    """The inverses of I + A and P of each chunk, [B, N, chunks, C, C]; whole spans of chunks."""

    def kernel(plan, q_ref, k_ref, beta_ref, g_ref, x_ref, p_ref):
        start = pl.program_id(2) * plan.size
        q, k = (plan.load_q(ref, start) for ref in (q_ref, k_ref))
        qk, kk = products(q, k, clamped(plan.load_g(g_ref, start)))
        a = plan.load(beta_ref, start)[:, None] * kk
        x_ref[...] = inverse(parts(a, q.dtype == jnp.bfloat16)).astype(x_ref.dtype)
        p_ref[...] = (scale * qk).astype(p_ref.dtype)

    c, keys, _ = plan.sides()
    count = plan.spans * plan.every
    square = jax.ShapeDtypeStruct((plan.batch, plan.heads, count, c, c), q.dtype)
    by_key = plan.kind == "vector"
    return plan.call(
        kernel,
        "prepare",
        (count,),
        [plan.of_q(), plan.of_q(), plan.tokens(None), plan.of_g()],
        [squares(plan)] * 2,
        [square] * 2,
        (q, k, beta, g),
        chunks=count,
        products=(plan.levels * (plan.parts + 2) if by_key else 2) * c * c * keys
        + plan.levels * 2 * (2 * plan.parts - 1) * c**3,
        exponentials=plan.levels * c * keys if by_key else c * c,
    )


def walk(plan, k, v, beta, g, x, first):
    """Through each of S equal spans of the sequence from the states `first` [B, N, S, K, V].

    Returns states before each chunk [B, N, chunks, K, V] and u [B, T, N, V] in the operands' dtype; and of a single
    span the state behind it [B, N, 1, K, V] and one in `every` of the states.
    """
    spans = first.shape[2]
    steps = plan.chunks if spans == 1 else plan.every
    by_span = lambda b, n, s, *_: (b, n, s, 0, 0)  # noqa: E731
    out = [
        (plan.states(spans * steps, k.dtype), plan.of_states(steps, by_span)),
        (jax.ShapeDtypeStruct(v.shape, v.dtype), plan.of_v()),
    ]
    if spans == 1:
        out.append((plan.states(1, jnp.float32), plan.of_states()))
        out.append((plan.states(plan.spans, k.dtype), plan.of_states(plan.spans)))

    def kernel(plan, k_ref, v_ref, beta_ref, g_ref, x_ref, first_ref, states_ref, u_ref, *rest):
        span, v_at = pl.program_id(2), pl.program_id(3) * plan.v_tile
        at = functools.partial(plan.part_of_state, shape=(plan.k_padded, plan.v_tile), v_at=v_at)

        def step(c, state):
            start = (span * steps + c) * plan.size
            narrow = state.astype(k_ref.dtype)
            ref, inside = at(states_ref, c)
            plgpu.store(ref, narrow, mask=inside)
            if rest:
                ref, inside = at(rest[1], jax.lax.div(c, plan.every))
                plgpu.store(ref, narrow, mask=inside & (jax.lax.rem(c, plan.every) == 0))
            k, g = plan.load_q(k_ref, start), clamped(plan.load_g(g_ref, start))
            v = plan.load(v_ref, start, plan.v_width, plan.v_tile, v_at)
            error = v - dot((k * upto(g, k.dtype)).astype(k.dtype), narrow)
            r = plan.load(beta_ref, start)[:, None] * error
            u = dot(x_ref[c], r.astype(k.dtype)).astype(k.dtype)
            plan.store(u_ref, u, start, plan.v_width, v_at)
            return decayed(g, state) + dot((k * after(g, k.dtype)).astype(k.dtype), u, TN)

        ref, inside = at(first_ref)
        state = plgpu.load(ref, mask=inside, other=0).astype(jnp.float32)
        state = jax.lax.fori_loop(0, steps, step, state)
        if rest:
            ref, inside = at(rest[0])
            plgpu.store(ref, state, mask=inside)

    tiles = plan.v_padded // plan.v_tile
    c, keys, values = plan.sides()
    by_key = plan.kind == "vector"
    made = plan.call(
        kernel,
        "walk",
        (spans, tiles),
        [
            *[plan.of_q(), plan.of_v(), plan.tokens(None), plan.of_g()],
            *[squares(plan, steps, by_span), plan.of_states(None, by_span)],
        ],
        [spec for _, spec in out],
        [shape for shape, _ in out],
        (k, v, beta, g, x, first),
        chunks=spans * steps,
        products=c * (2 * keys + c) * values + by_key * tiles * 2 * plan.parts * c * c * keys,
        exponentials=tiles * ((2 * c + 1) * keys if by_key else 2 * c + 1),
    )
    return *made, *[None] * (4 - len(made))


def decayed(g, state):
    """`state` [K, V] behind a chunk of gates [C] or [C, K]."""
    return (whole(g) if g.ndim == 1 else whole(g)[:, None]) * state


def _outputs(plan, q, u, g, p, states, scale):
    """o [B, T, N, V]."""

    def kernel(plan, q_ref, u_ref, g_ref, p_ref, states_ref, o_ref):
        start, v_at = pl.program_id(2) * plan.size, pl.program_id(3) * plan.v_tile
        q, g = plan.load_q(q_ref, start), clamped(plan.load_g(g_ref, start))
        u = plan.load(u_ref, start, plan.v_width, plan.v_tile, v_at)
        ref, inside = plan.part_of_state(states_ref, shape=(plan.k_padded, plan.v_tile), v_at=v_at)
        state = plgpu.load(ref, mask=inside, other=0)
        o = scale * dot((q * upto(g, q.dtype)).astype(q.dtype), state) + dot(p_ref[...], u)
        plan.store(o_ref, o, start, plan.v_width, v_at)

    tiles = plan.v_padded // plan.v_tile
    c, keys, values = plan.sides()
    by_key = plan.kind == "vector"
    (o,) = plan.call(
        kernel,
        "outputs",
        (plan.chunks, tiles),
        [
            plan.of_q(),
            plan.of_v(),
            plan.of_g(),
            squares(plan),
            plan.of_states(None, lambda b, n, c, _: (b, n, c, 0, 0)),
        ],
        [plan.of_v()],
        [jax.ShapeDtypeStruct(u.shape, u.dtype)],
        (q, u, g, p, states),
        chunks=plan.chunks,
        products=c * (keys + c) * values + by_key * tiles * plan.parts * c * c * keys,
        exponentials=tiles * c * (keys if by_key else 1),
    )
    return o
