"""Causal attention in plain XLA operations, with a gradient of its own that keeps the probabilities.

Autodiff of a softmax saves and reads more [T, T] arrays than the gradient needs; on CPU that is a seventh of a small
model's update. Plain operations stay correct under vmap, lax.map, shard_map and head sharding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _scores(q_BTKGd, k_BTKd):
    scores = jnp.einsum("btkgd,bskd->bkgts", q_BTKGd, k_BTKd)
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


def _probabilities(q_BTKGd, k_BTKd):
    length = q_BTKGd.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return jax.nn.softmax(jnp.where(causal, _scores(q_BTKGd, k_BTKd), -jnp.inf), axis=-1).astype(q_BTKGd.dtype)


@jax.custom_vjp
def _attend(q_BTKGd, k_BTKd, v_BTKd):
    return jnp.einsum("bkgts,bskd->btkgd", _probabilities(q_BTKGd, k_BTKd), v_BTKd)


def _forward(q_BTKGd, k_BTKd, v_BTKd):
    p_BKGTS = _probabilities(q_BTKGd, k_BTKd)
    out_BTKGd = jnp.einsum("bkgts,bskd->btkgd", p_BKGTS, v_BTKd)
    return out_BTKGd, (q_BTKGd, k_BTKd, v_BTKd, p_BKGTS, out_BTKGd)


def _backward(saved, g_BTKGd):
    q_BTKGd, k_BTKd, v_BTKd, p_BKGTS, out_BTKGd = saved
    dv_BTKd = jnp.einsum("bkgts,btkgd->bskd", p_BKGTS, g_BTKGd)
    dp_BKGTS = jnp.einsum("btkgd,bskd->bkgts", g_BTKGd, v_BTKd)
    mean_BKGT1 = jnp.einsum("btkgd,btkgd->bkgt", g_BTKGd, out_BTKGd)[..., None]
    ds_BKGTS = p_BKGTS * (dp_BKGTS - mean_BKGT1)
    dq_BTKGd = jnp.einsum("bkgts,bskd->btkgd", ds_BKGTS, k_BTKd)
    dk_BTKd = jnp.einsum("bkgts,btkgd->bskd", ds_BKGTS, q_BTKGd)
    return dq_BTKGd, dk_BTKd, dv_BTKd


_attend.defvjp(_forward, _backward)


def attend(q_BTHd, k_BTKd, v_BTKd):
    """Causal attention [batch, length, heads, head_width]; q carries the scale of its scores.

    Each of the K key-value heads serves H / K query heads, which are adjacent. Softmax in float32 or wider.
    """
    batch, length, heads, head_width = q_BTHd.shape
    kv_heads = k_BTKd.shape[2]
    grouped = q_BTHd.reshape(batch, length, kv_heads, heads // kv_heads, head_width)
    return _attend(grouped, k_BTKd, v_BTKd).reshape(q_BTHd.shape)
