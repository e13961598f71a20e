"""Cross-entropy with z-loss (PaLM, arXiv:2204.02311, section 5), its gradient taking no second exp."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _parts(logits_NV, targets_N):
    top_N1 = jnp.max(logits_NV, axis=-1, keepdims=True)
    exp_NV = jnp.exp(logits_NV - top_N1)
    sum_N = jnp.sum(exp_NV, axis=-1)
    log_z_N = jnp.log(sum_N) + top_N1[:, 0]
    target_N = jnp.take_along_axis(logits_NV, targets_N[:, None], axis=-1)[:, 0]
    return log_z_N - target_N, log_z_N, exp_NV, sum_N


@jax.custom_vjp
def cross_entropy(logits_NV, targets_N):
    """Per prediction, nats [N] and log z [N], from logits [N, vocabulary] in float32 or wider and int32 targets [N]."""
    nats_N, log_z_N, _, _ = _parts(logits_NV, targets_N)
    return nats_N, log_z_N


def _forward(logits_NV, targets_N):
    nats_N, log_z_N, exp_NV, sum_N = _parts(logits_NV, targets_N)
    return (nats_N, log_z_N), (exp_NV, sum_N, targets_N)


def _backward(saved, cotangents):
    exp_NV, sum_N, targets_N = saved
    nats_N, log_z_N = cotangents
    spread_N = (nats_N + log_z_N) / sum_N
    hit_NV = jax.lax.broadcasted_iota(jnp.int32, exp_NV.shape, 1) == targets_N[:, None]
    return exp_NV * spread_N[:, None] - jnp.where(hit_NV, nats_N[:, None], 0), None


cross_entropy.defvjp(_forward, _backward)
