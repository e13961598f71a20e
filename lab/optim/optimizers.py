"""optax transformations whose hyperparameters are traced, so that a pack may sweep them without recompiling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from lab.models.weight import is_record

HYPERPARAMETERS = ("beta1", "beta2", "epsilon", "momentum", "clip_norm")
# which learning-rate rule of a parametrization applies
FAMILY = {"adamw": "adam", "lion": "adam", "lamb": "lamb", "sgd": "sgd"}


def hyperparameters(cfg: ConfigDict) -> dict[str, float]:
    """The numbers of an optimizer that do not change during a run."""
    return {
        "beta1": cfg.optimizer.beta1,
        "beta2": cfg.optimizer.beta2,
        "epsilon": cfg.optimizer.epsilon,
        "momentum": cfg.optimizer.momentum,
        "clip_norm": cfg.optimizer.clip_norm or float("inf"),
    }


def direction(name: str, hyper: dict[str, jax.Array]) -> optax.GradientTransformation:
    """Clipped gradient -> step of unit learning rate. The state's structure depends on `name` alone."""
    adam = lambda: optax.scale_by_adam(hyper["beta1"], hyper["beta2"], hyper["epsilon"])  # noqa: E731
    return {
        "adamw": adam,
        "lamb": adam,
        "lion": lambda: optax.scale_by_lion(hyper["beta1"], hyper["beta2"]),
        "sgd": lambda: optax.trace(hyper["momentum"]),
    }[name]()


def init(name: str, weights: Any) -> Any:
    """Optimizer state for `weights`; every array of it is fresh, so that it may be donated."""
    return direction(name, dict.fromkeys(HYPERPARAMETERS, 0.0)).init(weights)


def update(
    name: str,
    hyper: dict[str, jax.Array],
    row: dict[str, jax.Array],
    scales: Any,
    records: Any,
    gradient: Any,
    state: Any,
    weights: Any,
) -> tuple[Any, Any]:
    """One optimizer update: w <- w - lr * m_lr * (direction + wd * m_wd * w).

    LAMB (arXiv:1904.00962, algorithm 2) multiplies the bracket by |w| / |bracket|, of each layer of a stack by itself,
    or by 1 where either norm is 0.

    Args:
      row: scalars `learning_rate` and `weight_decay` of the timeline.
      scales: `learning_rate`, `weight_decay` and `epsilon` multipliers per weight, trees of scalars.
      records: the weights' records, whose depth axis says what LAMB's layers are.
      gradient: mean gradient over the batch.

    Returns:
      New weights and new optimizer state.
    """
    clip = optax.clip_by_global_norm(hyper["clip_norm"])
    gradient, _ = clip.update(gradient, clip.init(weights))
    if FAMILY[name] != "sgd":  # an epsilon for each weight: Adam of g / m at epsilon is Adam of g at m epsilon
        gradient = jax.tree.map(jnp.divide, gradient, scales["epsilon"])
    steps, state = direction(name, hyper).update(gradient, state, weights)

    def apply(record, w, step, rate_scale, decay_scale):
        moved = step + row["weight_decay"] * decay_scale * w
        if name == "lamb":
            moved = moved * trust_ratio(w, moved, record.depth)
        return w - row["learning_rate"] * rate_scale * moved

    trees = weights, steps, scales["learning_rate"], scales["weight_decay"]
    return jax.tree.map(apply, records, *trees, is_leaf=is_record), state


def trust_ratio(w: jax.Array, moved: jax.Array, depth: int | None) -> jax.Array:
    """|w| / |moved| over all axes but the depth axis, 1 where either is 0."""
    axes = tuple(axis for axis in range(w.ndim) if axis != depth)
    norm, step = (jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True)) for x in (w, moved))
    whole = (norm > 0) & (step > 0)
    return jnp.where(whole, norm / jnp.where(whole, step, 1), 1)


def global_norm(tree: Any) -> jax.Array:
    """L2 norm over all leaves."""
    return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))
