"""The selective scan of Mamba-1: the public functions."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from kernels_pallas import blocks, dispatch
from kernels_pallas.segments import kept
from kernels_pallas.selective_scan import cpu, gpu, padded, tpu

OPERATION = "selective_scan"
DTYPES = ("bfloat16", "float32", "float64")


def selective_scan(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    z: jax.Array | None = None,
    dt_bias: jax.Array | None = None,
    dt_softplus: bool = False,
    *,
    initial_state: jax.Array | None = None,
    output_final_state: bool = False,
    segment_ids: jax.Array | None = None,
    block_sizes: Mapping[str, int] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """A state of N numbers a channel, whose decay, input and output depend on the token.

        h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,     y_t = (C_t h_t + D x_t) silu(z_t)

    Mamba (arXiv:2312.00752), section 3.2 and its algorithm 2. Decays and states [B, T, D, N] are made in the kernel and
    never written; between forward and backward one state in `rows` tokens is kept. Bias, softplus, D and z are plain
    operations beside the kernel.

    Args:
      x, dt: [B, T, D]; z: the same or None. dt must be positive after bias and softplus.
      A: [D, N], at most zero, which is checked where the values are known: outside of `jax.jit` and of its
        transformations. A traced value cannot be checked.
      B, C: [B, T, N].
      D, dt_bias: [D] or None. dt_softplus: whether dt is softplus(dt + dt_bias).
      initial_state: h_0 [B, D, N], float32 (float64 beside such x); it belongs to the segment of the first token.
      output_final_state: return (y, h_T).
      segment_ids: integers [B, T]; where they change between two tokens, the state starts from zero.
      block_sizes: any of "rows" (of time, between two kept states) and "width" (channels of the TPU kernels'
        blocks), multiples of 128, in place of the table's.

    Arrays are bfloat16, float32 or float64; sums are float32 (float64). With any in float64, and on a GPU with more
    than 128 states a channel, plain XLA is taken.

    Returns:
      y [B, T, D] in x's dtype, and on request h_T [B, D, N]; gradients for every float argument. With T = 0, y is empty
      and h_T the initial state.

    Raises:
      ValueError, TypeError: name the argument and its limit.
    """
    given = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    check(given, initial_state, segment_ids)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if initial_state is None:
        initial_state = jnp.zeros((x.shape[0], *A.shape), wide)
    time, keep = effective_time(dt, dt_bias, dt_softplus), kept(segment_ids, wide)
    y, last = scanned(x, time, A, B, C, initial_state, keep, block_sizes)
    y = gated(y, x, D, z)
    return (y, last) if output_final_state else y


def step(x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, *, state) -> tuple[jax.Array, jax.Array]:
    """One token of `selective_scan`, for decoding.

    Args:
      x, dt, z: [B, D]; B, C: [B, N]; A, D and dt_bias as there; state: [B, D, N], float32 (float64).

    Returns:
      y [B, D] in x's dtype, and the next state.
    """
    tokens = {"x": x, "dt": dt, "B": B, "C": C, "z": z}
    tokens = {name: None if y is None else y[:, None] for name, y in tokens.items()}
    check({**tokens, "A": A, "D": D, "dt_bias": dt_bias}, state, None)
    dt, u = (y.astype(state.dtype) for y in (effective_time(dt, dt_bias, dt_softplus), x))
    state = jnp.exp(dt[:, :, None] * A.astype(state.dtype)) * state
    state = state + (dt * u)[:, :, None] * B[:, None].astype(state.dtype)
    y = jnp.sum(state * C[:, None].astype(state.dtype), axis=-1)
    return gated(y, x, D, z).astype(x.dtype), state


def scanned(x, dt, A, B, C, state, keep, block_sizes) -> tuple[jax.Array, jax.Array]:
    """(C h, last state) of checked arguments, dt after bias and softplus; `keep` () or ([B, T],), zero at a start."""
    sizes = blocks.lanes_and_rows(OPERATION, x, tpu.DEFAULT, block_sizes)
    if x.size == 0:
        return jnp.zeros_like(x), state
    columns = (jnp.swapaxes(y, 1, 2) for y in (B, C))
    y, last = _scan(x, dt, A.T[None], *columns, jnp.swapaxes(state, 1, 2), keep, sizes)
    return y, jnp.swapaxes(last, 1, 2)


def effective_time(dt, bias, softplus):
    """dt after bias and softplus, which are float32 (float64) and stay so."""
    if bias is None and not softplus:
        return dt
    dt = dt.astype(jnp.promote_types(dt.dtype, jnp.float32))
    dt = dt if bias is None else dt + bias.astype(dt.dtype)
    return jax.nn.softplus(dt) if softplus else dt


def gated(y, x, D, z):
    if D is None and z is None:
        return y
    wide = jnp.promote_types(x.dtype, jnp.float32)
    out = y.astype(wide)
    out = out if D is None else out + D.astype(wide) * x.astype(wide)
    return (out if z is None else out * jax.nn.silu(z.astype(wide))).astype(y.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _scan(x, dt, A, B, C, state, keep, sizes):
    return _scan_forward(x, dt, A, B, C, state, keep, sizes)[0]


def _scan_forward(x, dt, A, B, C, state, keep, sizes):
    sizes = dict(sizes)
    call = functools.partial(
        dispatch.by_platform,
        tpu=functools.partial(padded.forward, **sizes),
        gpu=functools.partial(gpu.forward, rows=sizes["rows"]) if A.shape[1] <= gpu.MOST else None,
        cpu=functools.partial(cpu.forward, rows=sizes["rows"]),
        what=OPERATION,
    )
    y, last, states = dispatch.folded(call)(x, dt, A, B, C, state, *keep)
    return (y, last), (x, dt, A, B, C, states, keep)


def _scan_backward(sizes, residuals, cotangents):
    *arrays, keep = residuals
    sizes, A = dict(sizes), arrays[2]
    call = functools.partial(
        dispatch.by_platform,
        tpu=functools.partial(padded.backward, **sizes),
        gpu=functools.partial(gpu.backward, rows=sizes["rows"]) if A.shape[1] <= gpu.MOST else None,
        cpu=functools.partial(cpu.backward, rows=sizes["rows"]),
        what=OPERATION,
    )
    dx, ddt, dA, dB, dC, dstate = dispatch.folded(call)(*arrays, *cotangents, *keep)
    dA = jnp.sum(dA.reshape(A.shape[0], -1, *A.shape[1:]), axis=1).astype(A.dtype)
    return dx, ddt, dA, dB, dC, dstate, jax.tree.map(jnp.zeros_like, keep)


_scan.defvjp(_scan_forward, _scan_backward)


def check(given, initial_state, segment_ids) -> None:
    x, A = given["x"], given["A"]
    if x.ndim != 3:
        raise ValueError(f"x: found shape {x.shape}, expected three axes [B, T, D]")
    if A.ndim != 2 or A.shape[0] != x.shape[2] or A.shape[1] == 0:
        raise ValueError(f"A: found shape {A.shape}, expected [D, N] = [{x.shape[2]}, N] with N at least 1")
    batch, length, channels = x.shape
    columns, one = (batch, length, A.shape[1]), (channels,)
    shapes = {"dt": x.shape, "B": columns, "C": columns, "D": one, "z": x.shape, "dt_bias": one}
    for name, y in given.items():
        if y is not None and name in shapes and y.shape != shapes[name]:
            raise ValueError(f"{name}: found shape {y.shape}, expected {shapes[name]}")
        if y is not None and str(y.dtype) not in DTYPES:
            raise TypeError(f"{name}: found {y.dtype}, expected one of {', '.join(DTYPES)}")
    if not isinstance(A, jax.core.Tracer) and bool(jnp.any(A > 0)):
        raise ValueError(f"A: found {float(jnp.max(A)):g}, expected numbers of at most 0")
    wide, expected = jnp.promote_types(x.dtype, jnp.float32), (batch, *A.shape)
    if initial_state is not None and (initial_state.shape != expected or initial_state.dtype != wide):
        found = f"{initial_state.dtype}{list(initial_state.shape)}"
        raise ValueError(f"initial_state: found {found}, expected {wide}{list(expected)}")
    if segment_ids is not None:
        if segment_ids.shape != (batch, length) or not jnp.issubdtype(segment_ids.dtype, jnp.integer):
            found = f"{segment_ids.dtype}{list(segment_ids.shape)}"
            raise ValueError(f"segment_ids: found {found}, expected integers {[batch, length]}")
