"""The TPU kernels for any number of channels and states: to full registers they add zeros, which change nothing."""

from __future__ import annotations

import jax.numpy as jnp

from kernels_pallas.selective_scan import tpu


def forward(x, dt, A, B, C, state, *keep, **options):
    """As `tpu.forward`."""
    grow = _Grow(A)
    grown = (grow.tokens(x), grow.tokens(dt), grow.states(A), grow.columns(B), grow.columns(C), grow.states(state))
    y, last, states = tpu.forward(*grown, *keep, **options)
    return y[..., : grow.channels], grow.cut(last), grow.cut(states)


def backward(x, dt, A, B, C, states, dy, dlast, *keep, **options):
    """As `tpu.backward`."""
    grow = _Grow(A)
    arrays = (grow.tokens(x), grow.tokens(dt), grow.states(A), grow.columns(B), grow.columns(C), grow.states(states))
    dx, ddt, dA, dB, dC, dstate = tpu.backward(*arrays, grow.tokens(dy), grow.states(dlast), *keep, **options)
    dx, ddt = (y[..., : grow.channels] for y in (dx, ddt))
    return dx, ddt, grow.cut(dA), dB[:, : grow.n], dC[:, : grow.n], grow.cut(dstate)


class _Grow:
    def __init__(self, A):
        self.n, self.channels = A.shape[1:]
        self.more_n, self.more_channels = -self.n % tpu.TILE, -self.channels % 128

    def tokens(self, y):
        return jnp.pad(y, ((0, 0), (0, 0), (0, self.more_channels)))

    def columns(self, y):
        return jnp.pad(y, ((0, 0), (0, self.more_n), (0, 0)))

    def states(self, y):
        return jnp.pad(y, (*[(0, 0)] * (y.ndim - 2), (0, self.more_n), (0, self.more_channels)))

    def cut(self, y):
        return y[..., : self.n, : self.channels]
