"""Coordinate check: does training move every activation equally far at every width? (Tensor Programs V, section D.1.)

Models of several widths make a few Adam updates on the same random tokens; the change of an activation since
initialization, as a root mean square, is fitted by change ~ width^slope. A parametrization passes where every slope's
interval lies within the bounds: above them the activation blows up with width, below them it stops learning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from lab import models
from lab.parametrization.scales import scales

BATCH = 4


@dataclasses.dataclass(frozen=True)
class Slope:
    """Exponent of width of the change of one activation, with its interval, and the changes [widths, seeds]."""

    name: str
    slope: float
    low: float
    high: float
    changes: np.ndarray


@dataclasses.dataclass(frozen=True)
class CoordinateCheck:
    """Slopes in the order of computation; `bounds` is what each interval must lie within."""

    widths: tuple[int, ...]
    bounds: tuple[float, float]
    slopes: tuple[Slope, ...]

    @property
    def offenders(self) -> tuple[Slope, ...]:
        """Activations whose interval leaves the bounds, first in the order of computation first."""
        low, high = self.bounds
        return tuple(slope for slope in self.slopes if not (low <= slope.low and slope.high <= high))

    @property
    def passed(self) -> bool:
        return not self.offenders

    def __str__(self) -> str:
        lines = [f"{s.name:24} {s.slope:+.3f}  [{s.low:+.3f}, {s.high:+.3f}]" for s in self.slopes]
        low, high = self.bounds
        verdict = "passed" if self.passed else f"failed, first at {self.offenders[0].name}"
        return "\n".join([*lines, f"{verdict}: intervals within [{low:+.2f}, {high:+.2f}] over widths {self.widths}"])


def fit_slope(name: str, widths: Sequence[int], changes: np.ndarray, confidence: float) -> Slope:
    """Least squares of ln change [widths, seeds] on ln width, each seed a point, with a Student-t interval.

    A change that is zero or not finite has no slope: its interval is (nan, nan), which lies within no bounds.
    """
    x = np.repeat(np.log(widths), changes.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(changes.reshape(-1))
    if not np.isfinite(y).all():
        return Slope(name, np.nan, np.nan, np.nan, changes)
    fit = stats.linregress(x, y)
    half = stats.t.ppf((1 + confidence) / 2, len(x) - 2) * fit.stderr
    return Slope(name, fit.slope, fit.slope - half, fit.slope + half, changes)


def _names(depth: int) -> list[str]:
    """The activations that are compared, in the order of computation."""
    layers = [f"layer {layer} {part}" for layer in range(depth) for part in ("attention", "mlp", "residual")]
    return ["embedding", *layers, "final norm", "logits"]


@partial(jax.jit, static_argnums=0)
def _initial(model, key, trees: dict):
    """Initial weights, scaled."""
    return jax.tree.map(jnp.multiply, model.init(key), trees["init_std"])


@partial(jax.jit, static_argnums=0)
def _activations(model, weights, tokens, trees: dict, scalars: dict) -> list[jax.Array]:
    """The arrays that `_names` names."""
    entering = jax.tree.map(jnp.multiply, weights, trees["forward"])
    found = model.activations(entering, tokens[:, :-1], scalars)
    stacked = found["layers"]
    parts = (stacked["attention"]["__call__"][0], stacked["mlp"]["__call__"][0], stacked["__call__"][0][0])
    layers = [part[layer] for layer in range(parts[0].shape[0]) for part in parts]
    embedded = jnp.take(entering["embedding"], tokens[:, :-1], axis=0) * scalars["embedding"]
    return [embedded, *layers, found["final_norm"]["__call__"][0], found["__call__"][0]]


@partial(jax.jit, static_argnums=(0, 1))
def _train(model, updates: int, weights, tokens, trees: dict, scalars: dict, learning_rate):
    """Weights after `updates` Adam updates on the same tokens. Trees are those of Scales."""
    adam = optax.scale_by_adam()

    def loss(weights):
        entering = jax.tree.map(jnp.multiply, weights, trees["forward"])
        total, _ = model.loss(entering, tokens, scalars, 0.0)
        return total / tokens[:, 1:].size

    def update(_, state):
        weights, moments = state
        direction, moments = adam.update(jax.grad(loss)(weights), moments)
        rates = trees["learning_rate"]
        moved = jax.tree.map(lambda w, u, rate: w - learning_rate * rate * u, weights, direction, rates)
        return moved, moments

    return jax.lax.fori_loop(0, updates, update, (weights, adam.init(weights)))[0]


def _changes(model, updates: int, seed: int, shape: tuple[int, int], trees: dict, scalars: dict, learning_rate):
    """Root mean square of the change of each activation by the updates, for one draw of weights and tokens."""
    weights_key, tokens_key = jax.random.split(jax.random.key(seed))
    tokens = jax.random.randint(tokens_key, shape, 0, model.vocab_size)
    weights = _initial(model, weights_key, trees)
    before = _activations(model, weights, tokens, trees, scalars)
    moved = _train(model, updates, weights, tokens, trees, scalars, learning_rate)
    after = _activations(model, moved, tokens, trees, scalars)
    return [float(jnp.sqrt(jnp.mean((y - x) ** 2))) for x, y in zip(before, after, strict=True)]


def coordinate_check(
    model_config,
    parametrization_config,
    widths: Sequence[int] = (64, 128, 256, 512, 1024),
    *,
    seeds: int = 3,
    updates: int = 3,
    learning_rate: float = 3e-3,
    bounds: tuple[float, float] = (-0.25, 0.25),
    confidence: float = 0.95,
) -> CoordinateCheck:
    """Checks a parametrization over `widths` of the family of a `model` config node of kind "decoder".

    Each of `seeds` draws weights and tokens (uniform, 4 sequences of `sequence_length`, the same at every width) and
    makes `updates` Adam updates at `learning_rate`. Raises ConfigError for a width that the family does not have.
    """
    rows = []
    for width in widths:
        config = models.at_width(model_config, width)
        model = models.build(config)
        found = scales(config, parametrization_config, "adam")
        trees = {"init_std": found.init_std, "forward": found.forward, "learning_rate": found.learning_rate}
        numbers = jax.tree.map(jnp.float32, (trees, found.scalars, learning_rate))
        shape = (BATCH, config.sequence_length + 1)
        rows.append([_changes(model, updates, seed, shape, *numbers) for seed in range(seeds)])
    changes = np.moveaxis(np.array(rows), 2, 0)  # [activations, widths, seeds]
    names = _names(model_config.depth)
    slopes = (fit_slope(name, widths, change, confidence) for name, change in zip(names, changes, strict=True))
    return CoordinateCheck(tuple(widths), bounds, tuple(slopes))
