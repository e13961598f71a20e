"""Rotary position embedding (RoFormer, arXiv:2104.09864), pairing feature i with feature i + head_width / 2."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np


def angles(length: int, head_width: int, base: float) -> np.ndarray:
    """Angles [length, head_width / 2] in radians, float64 on the host: position times base^(-2 i / head_width)."""
    frequency = base ** (-np.arange(0, head_width, 2) / head_width)
    return np.arange(length)[:, None] * frequency[None, :]


def rotate(x_BTHd, base: float):
    """Turns the features of each position of [batch, length, heads, head_width]; the dtype stays."""
    turn = angles(x_BTHd.shape[1], x_BTHd.shape[3], base)
    cos, sin = (jnp.asarray(f(turn)[:, None, :], x_BTHd.dtype) for f in (np.cos, np.sin))
    first, second = jnp.split(x_BTHd, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
