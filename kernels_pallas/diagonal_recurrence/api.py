"""Diagonal linear recurrences: the public functions."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from kernels_pallas import blocks, dispatch
from kernels_pallas.diagonal_recurrence import cpu, gpu, tpu
from kernels_pallas.segments import kept

OPERATION = "diagonal_recurrence"
DTYPES = ("bfloat16", "float32", "float64")


def diagonal_recurrence(
    x: jax.Array,
    log_a: jax.Array,
    *,
    initial_state: jax.Array | None = None,
    output_final_state: bool = False,
    segment_ids: jax.Array | None = None,
    block_sizes: Mapping[str, int] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """A decaying sum, channel by channel.

        h_t = exp(log_a_t) h_{t-1} + x_t

    Equation 4 of Griffin (arXiv:2402.19427) with x the gated input that sqrt(1 - a^2) has multiplied; equation 5 of
    HGRN (arXiv:2311.04823); S5 and LRU (arXiv:2208.04933, arXiv:2303.06349) with real decays; minGRU
    (arXiv:2410.01201); an exponential average with one decay a channel.

    Args:
      x: [B, T, D], bfloat16 or float32; or float64, for which plain XLA is taken on every platform.
      log_a: logarithms of the decay, at most zero, [B, T, D] or, constant in time, [D]; any floating dtype (of others than
        bfloat16 and float32 by plain XLA). -inf is allowed and forgets all. That none is positive is checked where the
        values are known: outside of `jax.jit` and of its transformations. A traced value cannot be checked.
      initial_state: h_0 [B, D], float32 (float64 beside such x); it belongs to the segment of the first token.
      output_final_state: return (h, h_T).
      segment_ids: integers [B, T]; where they change between two tokens, the state starts from zero.
      block_sizes: of the TPU kernels, any of "rows" (of time) and "width" (channels), in place of the table's.

    Returns:
      h [B, T, D] in x's dtype, and on request h_T [B, D]; gradients for x, log_a and initial_state. The sums are
      float32 (float64); the gradient of log_a takes h as it was returned, in x's dtype. With T = 0, h is empty and
      h_T the initial state.

    Raises:
      ValueError, TypeError: name the argument and its limit.
    """
    check(x, log_a, initial_state, segment_ids)
    batch, _, width = x.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if initial_state is None:
        initial_state = jnp.zeros((batch, width), wide)
    h, last = scanned(x, log_a, initial_state, kept(segment_ids, wide), block_sizes)
    return (h, last) if output_final_state else h


def step(x, log_a, *, state) -> tuple[jax.Array, jax.Array]:
    """One token of `diagonal_recurrence`, for decoding.

    Args:
      x: [B, D]; log_a: [B, D] or [D]; state: [B, D], float32 (float64).

    Returns:
      h [B, D] in x's dtype, and the next state.
    """
    check(x[:, None], log_a if log_a.ndim == 1 else log_a[:, None], state, None)
    state = jnp.exp(log_a.astype(state.dtype)) * state + x.astype(state.dtype)
    return state.astype(x.dtype), state


def scanned(x, log_a, state, keep, block_sizes) -> tuple[jax.Array, jax.Array]:
    """(h, h_T) of checked arguments, `keep` as `kept` gives it."""
    sizes = blocks.lanes_and_rows(OPERATION, x, tpu.DEFAULT, block_sizes)
    if x.size == 0:
        return jnp.zeros_like(x), state
    return _scan(x, log_a if log_a.ndim == 3 else log_a[None, None], state, keep, sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _scan(x, g, state, keep, sizes):
    call = functools.partial(
        dispatch.by_platform,
        tpu=functools.partial(tpu.forward, **dict(sizes)),
        gpu=gpu.forward,
        cpu=cpu.forward,
        what=OPERATION,
    )
    return dispatch.folded(call)(x, g, state, *keep)


def _scan_forward(x, g, state, keep, sizes):
    h, last = _scan(x, g, state, keep, sizes)
    return (h, last), (g, state, h, keep)


def _scan_backward(sizes, residuals, cotangents):
    g, state, h, keep = residuals
    call = functools.partial(
        dispatch.by_platform,
        tpu=functools.partial(tpu.backward, **dict(sizes)),
        gpu=gpu.backward,
        cpu=cpu.backward,
        what=OPERATION,
    )
    dx, dg, dstate = dispatch.folded(call)(g, state, h, *cotangents, *keep)
    if g.shape[1] == 1:  # one decay a channel (or one token): a gradient of each sequence
        dg = jnp.sum(dg.reshape(g.shape[0], -1, *g.shape[1:]), axis=1).astype(g.dtype)
    return dx, dg, dstate, jax.tree.map(jnp.zeros_like, keep)


_scan.defvjp(_scan_forward, _scan_backward)


def check(x, log_a, initial_state, segment_ids) -> None:
    if x.ndim != 3:
        raise ValueError(f"x: found shape {x.shape}, expected three axes [B, T, D]")
    if str(x.dtype) not in DTYPES:
        raise TypeError(f"x: found {x.dtype}, expected one of {', '.join(DTYPES)}")
    batch, length, width = x.shape
    if log_a.shape not in (x.shape, (width,)):
        raise ValueError(f"log_a: found shape {log_a.shape}, expected x's, {x.shape}, or {(width,)}")
    if not jnp.issubdtype(log_a.dtype, jnp.floating):
        raise TypeError(f"log_a: found {log_a.dtype}, expected a floating dtype")
    if not isinstance(log_a, jax.core.Tracer) and bool(jnp.any(log_a > 0)):
        raise ValueError(f"log_a: found {float(jnp.max(log_a)):g}, expected log-decays of at most 0")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if initial_state is not None and (initial_state.shape != (batch, width) or initial_state.dtype != wide):
        found = f"{initial_state.dtype}{list(initial_state.shape)}"
        raise ValueError(f"initial_state: found {found}, expected {wide}{[batch, width]}")
    if segment_ids is not None:
        if segment_ids.shape != (batch, length) or not jnp.issubdtype(segment_ids.dtype, jnp.integer):
            found = f"{segment_ids.dtype}{list(segment_ids.shape)}"
            raise ValueError(f"segment_ids: found {found}, expected integers {[batch, length]}")
