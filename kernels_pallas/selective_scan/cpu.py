"""Plain XLA form: a loop over tokens inside a loop over chunks; of states it keeps one a chunk."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def forward(x, dt, A, B, C, state, *keep, rows):
    """(y [B, T, D] in x's dtype, last state [B, N, D], states before each chunk [B, T / rows, N, D]).

    Args:
      x, dt: [B, T, D]; B, C: [B, N, T]; A: [G, N, D], row g serves B / G sequences; state: [B, N, D].
      keep: nothing, or [B, T]: zero where the state is forgotten, else one.
      rows: tokens of a chunk.
    """
    A = jnp.repeat(A.astype(state.dtype), x.shape[0] // A.shape[0], axis=0)

    def chunk(h, now):
        last, y = _chunk(A, h, *now)
        return last, (y, h)

    last, (y, states) = jax.lax.scan(chunk, state, _cut(x, dt, B, C, keep, rows))
    return _joined(y, x.shape[1]).astype(x.dtype), last, jnp.swapaxes(states, 0, 1)


def backward(x, dt, A, B, C, states, dy, dlast, *keep, rows):
    """Gradients of x, dt, A (float32 [B, N, D]), B, C and the state."""
    wide = jnp.repeat(A.astype(states.dtype), x.shape[0] // A.shape[0], axis=0)

    def chunk(carry, now):
        dh, dA = carry
        h, dy, keep, now = now[0], now[1], now[-1], now[2:-1]
        _, pull = jax.vjp(lambda A, h, *now: _chunk(A, h, *now, keep), wide, h, *now)
        more, dh, *rest = pull((dh, dy))
        return (dh, dA + more), rest

    tokens = _cut(x, dt, B, C, keep, rows)
    (dy,) = _chunks((dy,), rows)
    scanned = (jnp.swapaxes(states, 0, 1), dy.astype(states.dtype), *tokens)
    (dstate, dA), (dx, ddt, dB, dC) = jax.lax.scan(chunk, (dlast, jnp.zeros_like(wide)), scanned, reverse=True)
    length = x.shape[1]
    dx, ddt = (_joined(g, length).astype(y.dtype) for g, y in ((dx, x), (ddt, dt)))
    dB, dC = (jnp.swapaxes(_joined(g, length), 1, 2).astype(y.dtype) for g, y in ((dB, B), (dC, C)))
    return dx, ddt, dA, dB, dC, dstate


def _chunk(A, h, x, dt, B, C, keep):
    """(last state, y [rows, B, D]) of tokens [rows, B, ...]."""

    def token(h, now):
        x, dt, B, C, keep = now
        a = jnp.exp(dt[:, None] * A) * keep[:, None, None]
        h = a * h + (dt * x)[:, None] * B[:, :, None]
        return h, jnp.sum(h * C[:, :, None], axis=1)

    return jax.lax.scan(token, h, (x, dt, B, C, keep))


def _cut(x, dt, B, C, keep, rows):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    keep = keep[0] if keep else jnp.ones(x.shape[:2], wide)
    tokens = (x, dt, jnp.swapaxes(B, 1, 2), jnp.swapaxes(C, 1, 2), keep)
    pad = -x.shape[1] % rows  # tokens of no time, which change no state
    keep = jnp.pad(keep, ((0, 0), (0, pad)), constant_values=1)
    return (*(y.astype(wide) for y in _chunks(tokens[:-1], rows)), *_chunks((keep,), rows))


def _chunks(tokens, rows):
    """Each [B, T, ...] as [chunks, rows, B, ...]."""
    cut = []
    for y in tokens:
        y = jnp.pad(y, ((0, 0), (0, -y.shape[1] % rows), *[(0, 0)] * (y.ndim - 2)))
        cut.append(jnp.moveaxis(y.reshape(y.shape[0], -1, rows, *y.shape[2:]), 0, 2))
    return tuple(cut)


def _joined(y, length):
    y = jnp.moveaxis(y, 2, 0)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :length]
