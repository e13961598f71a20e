"""Rotary position embedding (RoFormer, arXiv:2104.09864), pairing feature i with feature i + head_width / 2."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np


def angles(length: int, head_width: int, base: float) -> np.ndarray:
    """Angles [length, head_width / 2] in radians, float64 on the host: position times base^(-2 i / head_width)."""
    frequency = base ** (-np.arange(0, head_width, 2) / head_width)
    return np.arange(length)[:, None] * frequency[None, :]


def rotate(x_BHdT, base: float):
    """Turns the features of each position of [batch, heads, head_width, length]; the dtype stays."""
    turn = angles(x_BHdT.shape[-1], x_BHdT.shape[-2], base).T
    cos, sin = (jnp.asarray(f(turn), x_BHdT.dtype) for f in (np.cos, np.sin))
    first, second = jnp.split(x_BHdT, 2, axis=-2)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-2)
