"""The signal of our decoder at initialization, at infinite width: what each layer adds to the stream and its gradient.

Derived from the decoder's definition (`lab/models/decoder.py`) for the standard parametrization, and any other that
starts as it does: a token's stream x starts with unit variance, every branch reads x / rms(x), weights are independent
normals of variance 1/fan_in, those of branches' outputs of 1/(2 L fan_in), L layers; m is the residual multiplier. The
sums over features then become expectations, and the signal is two Gram matrices over the T tokens of a sequence,

    K_ts  mean over features of x_t x_s         N_ts = K_ts / sqrt(K_tt K_ss)  the same of the normed stream
    G_ts  mean over features of g_t g_s         g the gradient of the loss that arrives at x

which a layer changes by (attention first, then the MLP; backward in turn)

    K <- K + m^2/(2L) E[P N P^T]                     P the attention matrix of one head
    K <- K + m^2/(2L) sum_n a_n^2 N^n                a_n Hermite coefficients of the activation, N^n elementwise
    G <- G + m^2/(2L) G o (sum_n n a_n^2 N^(n-1)) / r            o elementwise, r_ts = sqrt(K_tt K_ss) below the branch
    G <- G + E[dq dq^T + dk dk^T + dv dv^T] / r      of one head whose mixed values' gradient is m/sqrt(2L) x G's

E over heads is taken over draws of heads of the real head width, whose queries, keys and values have covariance N: with
QK-norm and RoPE as the decoder has them. K starts as 1 where tokens are equal and 0 elsewhere, G as 1/r where the
tokens to predict are equal (a gradient of logits is p - onehot, p about 1/vocabulary). Tokens are drawn evenly from
`symbols` symbols. Weights of the forward and backward pass are taken as independent, as always in such theory.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

ORDER = 16  # Hermite coefficients


@dataclasses.dataclass(frozen=True)
class Signal:
    """Mean squares: of the stream before the first layer and after each, and of its gradient there, [L + 1]; of the
    mixed values of each layer, [L]. The gradient's is relative to that after the last layer."""

    stream: np.ndarray
    gradient: np.ndarray
    mixed: np.ndarray


def hermite(function) -> np.ndarray:
    """a_n = E[f(z) h_n(z)], [ORDER], h_n the orthonormal Hermite polynomials, z standard normal."""
    z, weight = np.polynomial.hermite_e.hermegauss(120)
    weight = weight / weight.sum()
    basis = [np.ones_like(z), z]
    for n in range(2, ORDER):
        basis.append((z * basis[-1] - math.sqrt(n - 1) * basis[-2]) / math.sqrt(n))
    return np.array([(weight * function(z) * h).sum() for h in basis])


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def draws(gram: np.ndarray, rng: np.random.Generator, heads: int, head_width: int) -> np.ndarray:
    """Normal values of that covariance over tokens, [heads, T, head_width]."""
    values, vectors = np.linalg.eigh(gram)
    root = vectors * np.sqrt(np.maximum(values, 0))
    return root @ rng.standard_normal((heads, len(gram), head_width))


def turned(x: np.ndarray, sign: float, base: float = 10000.0) -> np.ndarray:
    """RoPE of [heads, T, head_width], or undone with sign -1."""
    half = x.shape[-1] // 2
    angle = sign * np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class Heads:
    """A layer's attention: draws of heads over one sequence with normed Gram matrix N [T, T]."""

    def __init__(self, normed: np.ndarray, heads: int, head_width: int, rng: np.random.Generator):
        self.normed, self.rng, self.scale = normed, rng, head_width**-0.5
        self.v = draws(normed, rng, heads, head_width)
        raw = [draws(normed, rng, heads, head_width) for _ in range(2)]
        self.rms = [np.sqrt(np.mean(x**2, -1, keepdims=True)) for x in raw]
        self.unit = [x / rms for x, rms in zip(raw, self.rms)]
        self.q, self.k = (turned(x, 1.0) for x in self.unit)
        scores = np.where(np.tri(len(normed), dtype=bool), self.scale * self.q @ self.k.mT, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        self.p = weights / weights.sum(-1, keepdims=True)

    def mixed(self) -> np.ndarray:
        """E[P N P^T], [T, T]."""
        return np.mean(self.p @ self.normed @ self.p.mT, 0)

    def gradient(self, arriving: np.ndarray) -> np.ndarray:
        """Gram matrix of the gradients of the normed stream, for that of the mixed values' [T, T]."""
        c = draws(arriving, self.rng, *self.v[:, 0].shape)
        of_p = c @ self.v.mT
        of_scores = self.scale * self.p * (of_p - np.sum(self.p * of_p, -1, keepdims=True))
        found = self.p.mT @ c @ (self.p.mT @ c).mT
        for i, turned_by in enumerate((of_scores @ self.k, of_scores.mT @ self.q)):
            back = turned(turned_by, -1.0)
            back = (back - self.unit[i] * np.mean(back * self.unit[i], -1, keepdims=True)) / self.rms[i]
            found = found + back @ back.mT
        return np.mean(found, 0) / c.shape[-1]


def normed(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, r) of a Gram matrix."""
    r = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    return np.clip(gram / r, -1, 1), r


def one_sequence(tokens: np.ndarray, depth: int, head_width: int, multiplier: float, heads: int, rng) -> np.ndarray:
    """Mean squares of one sequence of T + 1 tokens: rows stream, gradient, mixed (the last of which is repeated)."""
    share = multiplier**2 / (2 * depth)
    a = hermite(gelu)
    powers = np.arange(ORDER)
    gram, target = (np.equal.outer(x, x).astype(float) for x in (tokens[:-1], tokens[1:]))
    layers, stream, mixed = [], [1.0], []
    for _ in range(depth):
        n, r = normed(gram)
        attention = Heads(n, heads, head_width, rng)
        added = attention.mixed()
        mixed.append(np.trace(added) / len(n))
        gram = gram + share * added
        n, s = normed(gram)
        layers.append((attention, r, n, s))
        gram = gram + share * (n[..., None] ** powers @ a**2)
        stream.append(np.trace(gram) / len(n))
    back = target / normed(gram)[1]
    gradient = [np.trace(back) / len(back)]
    for attention, r, n, s in reversed(layers):
        back = back + share * back * (n[..., None] ** powers[:-1] @ (a[1:] ** 2 * powers[1:])) / s
        back = back + attention.gradient(share * back) / r
        gradient.append(np.trace(back) / len(back))
    return np.array([stream, gradient[::-1], mixed + mixed[-1:]])


def theory(
    depth: int,
    length: int,
    head_width: int,
    symbols: int,
    multiplier: float = 1.0,
    *,
    sequences: int = 12,
    heads: int = 24,
    seed: int = 0,
) -> Signal:
    """The signal at infinite width, a mean over draws of sequences and heads.

    Args:
      length: tokens T of a sequence.
      symbols: from how many symbols tokens are drawn evenly.
      multiplier: m.
    """
    rng = np.random.default_rng(seed)
    found = [
        one_sequence(rng.integers(symbols, size=length + 1), depth, head_width, multiplier, heads, rng)
        for _ in range(sequences)
    ]
    stream, gradient, mixed = np.mean(found, 0)
    return Signal(stream, gradient / gradient[-1], mixed[:-1])


def symbols_of(mixed: float, length: int, head_width: int, most: int = 256) -> int:
    """How many evenly drawn symbols give the first layer's mixed values that mean square, by bisection.

    The one number that the theory takes from the data: text repeats its tokens, and equal tokens do not average out.
    """
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        found = theory(1, length, head_width, middle, sequences=48, heads=4).mixed[0]
        low, high = (middle, high) if found > mixed else (low, middle)
    return high
