"""optax transformations whose hyperparameters are traced, so that a pack may sweep them without recompiling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

HYPERPARAMETERS = ("beta1", "beta2", "epsilon", "momentum", "clip_norm")
FAMILY = {"adamw": "adam", "lion": "adam", "sgd": "sgd"}  # which learning-rate rule of a parametrization applies


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
    rule = {
        "adamw": lambda: optax.scale_by_adam(hyper["beta1"], hyper["beta2"], hyper["epsilon"]),
        "lion": lambda: optax.scale_by_lion(hyper["beta1"], hyper["beta2"]),
        "sgd": lambda: optax.trace(hyper["momentum"]),
    }[name]()
    return optax.chain(optax.clip_by_global_norm(hyper["clip_norm"]), rule)


def init(name: str, weights: Any) -> Any:
    """Optimizer state for `weights`; every array of it is fresh, so that it may be donated."""
    return direction(name, dict.fromkeys(HYPERPARAMETERS, 0.0)).init(weights)


def update(
    name: str,
    hyper: dict[str, jax.Array],
    row: dict[str, jax.Array],
    scales: Any,
    gradient: Any,
    state: Any,
    weights: Any,
) -> tuple[Any, Any]:
    """One optimizer update: w <- w - lr * m_lr * (direction + wd * m_wd * w).

    Args:
      row: scalars `learning_rate` and `weight_decay` of the timeline.
      scales: `learning_rate` and `weight_decay` multipliers per weight, trees of scalars.
      gradient: mean gradient over the batch.

    Returns:
      New weights and new optimizer state.
    """
    steps, state = direction(name, hyper).update(gradient, state, weights)

    def apply(w, step, rate_scale, decay_scale):
        return w - row["learning_rate"] * rate_scale * (step + row["weight_decay"] * decay_scale * w)

    weights = jax.tree.map(apply, weights, steps, scales["learning_rate"], scales["weight_decay"])
    return weights, state


def global_norm(tree: Any) -> jax.Array:
    """L2 norm over all leaves."""
    return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))
