"""Root mean squares of what operations without weights return at initialization, for inputs of unit variance.

Unit scaling divides by them (arXiv:2303.11257, section 4). No jax: they are numbers of the config.
"""

from __future__ import annotations

import math

import numpy as np

FUNCTIONS = {
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
}


def activation_rms(name: str, multiplier: float = 1.0) -> float:
    """RMS of act(multiplier x x) for standard normal x, by the trapezoidal rule."""
    x = np.linspace(-12, 12, 4801)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.sqrt(np.trapezoid(FUNCTIONS[name](multiplier * x) ** 2 * density, x)))


def mixing_rms(length: int) -> float:
    """RMS over positions of the mean of the values so far: 1/sqrt(t) at position t, so that the square is H_T / T.

    Scores that are not zero mix less evenly; at 1/head width they are small.
    """
    return math.sqrt(sum(1 / t for t in range(1, length + 1)) / length)


def typical(config, activation_multiplier: float = 1.0) -> dict[str, float]:
    """RMS by the name of the multiplier that would undo it, for a decoder's `model` config node."""
    return {
        "mixed": mixing_rms(config.sequence_length),
        "activated": activation_rms(config.activation, activation_multiplier),
    }
