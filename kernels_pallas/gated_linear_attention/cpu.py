"""Chunks as batched matrix products in plain XLA: the form of CPUs, and of platforms without a kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels_pallas.gated_linear_attention import chunk as math

CHUNK = 64


def _chunks(x: jax.Array, size: int) -> jax.Array:
    """[B, N, T, ...] -> [B, N, chunks, size, ...]; what is missing of the last chunk is zero."""
    x = jnp.pad(x, [(0, 0), (0, 0), (0, -x.shape[2] % size), *[(0, 0)] * (x.ndim - 3)])
    return x.reshape(*x.shape[:2], -1, size, *x.shape[3:])


def _whole(x: jax.Array, length: int) -> jax.Array:
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :length]


def _each(function):
    """`function` of one chunk of one head, over [B, N, chunks]."""
    return jax.vmap(jax.vmap(jax.vmap(function)))


def _gated(g: jax.Array):
    """(`chunk.scalar` or `chunk.vector`, the gates as it takes them) of chunks of gates."""
    if g.ndim == 5:
        return math.vector, g
    rows = [jnp.cumsum(x, axis=-1)[..., None, :] for x in math.split(math.clamped(g))]
    return math.scalar, (tuple(rows), tuple(jnp.swapaxes(x, -1, -2) for x in rows))


def _mm(subscripts: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, *operands, precision=jax.lax.Precision.HIGHEST)


def _columns(total: jax.Array) -> jax.Array:
    """The decay of a chunk, [.., 1, K or 1], as a factor of states [.., K, V]."""
    return jnp.swapaxes(total, -1, -2)


def _starts(k_out, v, total, state):
    """States before each chunk [B, N, chunks, K, V], and after the last."""
    added = _mm("bnmck,bnmcv->mbnkv", k_out, v)

    def step(state, now):
        total, added = now
        return total * state + added, state

    final, starts = jax.lax.scan(step, state, (jnp.moveaxis(_columns(total), 2, 0), added))
    return jnp.moveaxis(starts, 0, 2), final


def _prepared(q, k, v, g):
    dtype = jnp.promote_types(v.dtype, jnp.float32)
    q, k = (jnp.repeat(x.astype(dtype), v.shape[1] // x.shape[1], axis=1) for x in (q, k))
    return [_chunks(x, CHUNK) for x in (q, k, v.astype(dtype), g)]


def forward(q, k, v, g, state, *, scale: float, chunk: int, save: bool = True):
    """See `tpu.forward`."""
    length, dtype = v.shape[2], v.dtype
    q, k, v, g = _prepared(q, k, v, g)
    one, gates = _gated(g)
    p, q_in, k_out, total = _each(one)(q, k, gates)
    starts, final = _starts(k_out, v, total, state)
    o = scale * (_mm("bnmts,bnmsv->bnmtv", p, v) + _mm("bnmck,bnmkv->bnmcv", q_in, starts))
    return _whole(o, length).astype(dtype), final, starts[:, :, :: chunk // CHUNK] if save else None


def backward(q, k, v, g, states, do, dfinal, *, scale: float, chunk: int):
    """See `tpu.backward`."""
    inputs, length = (q, k, v), v.shape[2]
    groups = v.shape[1] // q.shape[1]
    q, k, v, g = _prepared(q, k, v, g)
    do = scale * _chunks(do.astype(v.dtype), CHUNK)
    one, gates = _gated(g)
    dp = _mm("bnmtv,bnmsv->bnmts", do, v)

    p, q_in, k_out, total = _each(one)(q, k, gates)
    starts, _ = _starts(k_out, v, total, states[:, :, 0])
    read = _mm("bnmck,bnmcv->mbnkv", q_in, do)

    def step(dstate, now):
        total, read = now
        return total * dstate + read, dstate

    totals = jnp.moveaxis(_columns(total), 2, 0)
    dstate, dends = jax.lax.scan(step, dfinal, (totals, read), reverse=True)
    dends = jnp.moveaxis(dends, 0, 2)

    dv = _mm("bnmts,bnmtv->bnmsv", p, do) + _mm("bnmck,bnmkv->bnmcv", k_out, dends)
    dq_in, dk_out = _mm("bnmcv,bnmkv->bnmck", do, starts), _mm("bnmcv,bnmkv->bnmck", v, dends)
    dtotal = jnp.sum(starts * dends, axis=-1)[..., None, :]
    if g.ndim == 4:
        dtotal = jnp.sum(dtotal, axis=-1, keepdims=True)

    def pulled(q, k, gates, dp, *rest):
        return one(q, k, gates, dp)[-1](*rest)

    dq, dk, dg = _each(pulled)(q, k, gates, dp, dq_in, dk_out, dtotal)
    dg = dg if g.ndim == 5 else dg[..., 0, :]
    dq, dk, dv, dg = (_whole(x, length) for x in (dq, dk, dv, dg))
    dq, dk = (x.reshape(x.shape[0], -1, groups, *x.shape[2:]).sum(2) for x in (dq, dk))
    return *(d.astype(x.dtype) for d, x in zip((dq, dk, dv), inputs)), dg, dstate
