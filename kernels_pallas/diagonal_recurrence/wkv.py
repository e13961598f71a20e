"""RWKV-4's WKV: a softmax-like average with a decay a channel, as two diagonal recurrences of bounded numbers."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch
from kernels_pallas.diagonal_recurrence.api import DTYPES, scanned
from kernels_pallas.segments import kept

EMPTY = -1e30  # the logarithm of nothing, with which sums and differences stay finite


def wkv(
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    bonus: jax.Array,
    *,
    initial_state: jax.Array | None = None,
    output_final_state: bool = False,
    segment_ids: jax.Array | None = None,
    block_sizes: Mapping[str, int] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """The mean of values before and at a token, with weights exp(k) that decay.

        y_t = (sum_{i<t} exp((t-1-i) w + k_i) v_i + exp(u + k_t) v_t) / (the same with v left out)

    Equation 16 of RWKV (arXiv:2305.13048), w = `log_decay`, u = `bonus`. As its appendix does, sums are kept relative
    to the largest exponent m_t among their terms: num_t exp(m_t). That is found first, by operations without a
    gradient, since no result depends on it; the sums are then `diagonal_recurrence`s with log-decays
    m_{t-1} + w - m_t <= 0, by its kernels, forward and backward.

    Args:
      k, v: [B, T, D], bfloat16, float32, or where no kernel is used float64. No k is too large or too small.
      log_decay: [D], at most zero (RWKV's code: -exp(time_decay)); checked where the values are known, outside of
        `jax.jit` and of its transformations. A traced value cannot be checked. bonus: [D] (time_first).
      initial_state: [B, 3, D], float32 (float64): numerator, denominator and m before the first token.
      output_final_state: return (y, state).
      segment_ids: integers [B, T]; where they change between two tokens, the sums start from nothing.
      block_sizes: as of `diagonal_recurrence`.

    Returns:
      y [B, T, D] in v's dtype, and on request the state; gradients for every float argument. With T = 0, y is empty.

    Raises:
      ValueError, TypeError: name the argument and its limit.
    """
    _check(k, v, log_decay, bonus, initial_state, segment_ids)
    batch, length, width = v.shape
    wide = jnp.promote_types(v.dtype, jnp.float32)
    if initial_state is None:
        initial_state = jnp.zeros((batch, 3, width), wide).at[:, 2].set(EMPTY)
    if v.size == 0:
        return (jnp.zeros_like(v), initial_state) if output_final_state else jnp.zeros_like(v)
    k, values, w, u = (x.astype(wide) for x in (k, v, log_decay, bonus))
    keep = kept(segment_ids, wide)
    starts = keep[0][:, :, None] == 0 if keep else jnp.zeros((1, 1, 1), bool)
    first = initial_state[:, 2]

    decays = jnp.where(starts, EMPTY, jnp.broadcast_to(w, k.shape))
    m = jax.lax.stop_gradient(_largest(*jax.lax.stop_gradient((k, decays, first))))
    before = jnp.where(starts, EMPTY, jnp.concatenate([first[:, None], m[:, :-1]], axis=1))
    weight, log_a = jnp.exp(k - m), before + w - m
    num, last_num = scanned(weight * values, log_a, initial_state[:, 0], keep, block_sizes)
    den, last_den = scanned(weight, log_a, initial_state[:, 1], keep, block_sizes)
    num, den = (jnp.concatenate([initial_state[:, i, None], x[:, :-1]], axis=1) for i, x in enumerate((num, den)))
    y = _mean(num, den, before, u + k, values).astype(v.dtype)
    return (y, jnp.stack([last_num, last_den, m[:, -1]], axis=1)) if output_final_state else y


def wkv_step(k, v, log_decay, bonus, *, state) -> tuple[jax.Array, jax.Array]:
    """One token of `wkv`, for decoding: k, v [B, D], state [B, 3, D]; returns y [B, D] and the next state."""
    _check(k[:, None], v[:, None], log_decay, bonus, state, None)
    k, values, w, u = (x.astype(state.dtype) for x in (k, v, log_decay, bonus))
    num, den, m = jnp.moveaxis(state, 1, 0)
    y = _mean(num, den, m, u + k, values).astype(v.dtype)
    largest = jnp.maximum(m + w, k)
    old, new = jnp.exp(m + w - largest), jnp.exp(k - largest)
    return y, jnp.stack([old * num + new * values, old * den + new, largest], axis=1)


def _mean(num, den, m, k, v):
    """(num e^m + e^k v) / (den e^m + e^k)."""
    largest = jax.lax.stop_gradient(jnp.maximum(m, k))
    old, new = jnp.exp(m - largest), jnp.exp(k - largest)
    return (old * num + new * v) / (old * den + new)


def _largest(k, decays, first):
    """m_t = max(m_{t-1} + decays_t, k_t), [B, T, D]: on CPU token by token, elsewhere in log T steps."""

    def token(m, now):
        decay, k = now
        m = jnp.maximum(m + decay, k)
        return m, m

    def by_token(k, decays, first):
        _, m = jax.lax.scan(token, first, (jnp.swapaxes(decays, 0, 1), jnp.swapaxes(k, 0, 1)))
        return jnp.swapaxes(m, 0, 1)

    def joined(early, late):
        return jnp.maximum(early[0] + late[0], 2 * EMPTY), jnp.maximum(early[1] + late[0], late[1])

    def by_halves(k, decays, first):
        k = k.at[:, 0].max(first + decays[:, 0])
        return jax.lax.associative_scan(joined, (decays, k), axis=1)[1]

    return dispatch.by_platform(k, decays, first, tpu=by_halves, gpu=by_halves, cpu=by_token, what="wkv_largest")


def _check(k, v, log_decay, bonus, initial_state, segment_ids) -> None:
    if v.ndim != 3:
        raise ValueError(f"v: found shape {v.shape}, expected three axes [B, T, D]")
    batch, length, width = v.shape
    for name, x, shape in (("k", k, v.shape), ("log_decay", log_decay, (width,)), ("bonus", bonus, (width,))):
        if x.shape != shape:
            raise ValueError(f"{name}: found shape {x.shape}, expected {shape}")
    for name, x in (("k", k), ("v", v), ("log_decay", log_decay), ("bonus", bonus)):
        if str(x.dtype) not in DTYPES:
            raise TypeError(f"{name}: found {x.dtype}, expected one of {', '.join(DTYPES)}")
    if not isinstance(log_decay, jax.core.Tracer) and bool(jnp.any(log_decay > 0)):
        raise ValueError(f"log_decay: found {float(jnp.max(log_decay)):g}, expected log-decays of at most 0")
    wide = jnp.promote_types(v.dtype, jnp.float32)
    if initial_state is not None and (initial_state.shape != (batch, 3, width) or initial_state.dtype != wide):
        found = f"{initial_state.dtype}{list(initial_state.shape)}"
        raise ValueError(f"initial_state: found {found}, expected {wide}{[batch, 3, width]}")
    if segment_ids is not None:
        if segment_ids.shape != (batch, length) or not jnp.issubdtype(segment_ids.dtype, jnp.integer):
            found = f"{segment_ids.dtype}{list(segment_ids.shape)}"
            raise ValueError(f"segment_ids: found {found}, expected integers {[batch, length]}")
