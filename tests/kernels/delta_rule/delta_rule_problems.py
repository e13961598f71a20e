"""Random delta-rule problems and the yardstick: the float64 reference, and what float32 loses in the reference."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.delta_rule import reference

FLOATS = ("q", "k", "v", "beta", "g", "initial_state")


def problem(seed=0, B=1, T=150, N=2, K=16, V=24, gate="head", strongest=1.0, segments=True, alike=0.0):
    """float64 operands; keys of length 1 whose cosine is about `alike`; gates from 0 to -strongest."""
    rng = np.random.default_rng(seed)
    k = np.sqrt(1 - alike) * rng.normal(size=(B, T, N, K)) + np.sqrt(alike) * rng.normal(size=(B, 1, N, K))
    shape = {"none": None, "head": (B, T, N), "channel": (B, T, N, K)}[gate]
    return {
        "q": rng.normal(size=(B, T, N, K)),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.normal(size=(B, T, N, V)),
        "beta": rng.uniform(0, 2, (B, T, N)),
        "g": None if shape is None else -strongest * rng.uniform(size=shape) ** 4,
        "initial_state": rng.normal(size=(B, N, K, V)),
        "segment_ids": np.cumsum(rng.uniform(size=(B, T)) < 0.03, 1) if segments else None,
    }


def cast(operands, dtype):
    """The float operands in `dtype`; beta, g and the state at least float32."""
    kept = {"beta": np.float32, "g": np.float32, "initial_state": np.float32} if dtype == jnp.bfloat16 else {}
    return {n: x if x is None or n == "segment_ids" else x.astype(kept.get(n, dtype)) for n, x in operands.items()}


def weights(operands, seed=9):
    """Cotangents of o and the final state."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=operands[n].shape).astype(operands[n].dtype) for n in ("v", "initial_state"))


@functools.partial(jax.jit, static_argnums=0)
def value_and_grads(function, operands, cotangents):
    """((o, final state), gradients by name)."""
    floats = {n: operands[n] for n in FLOATS}
    rest = {n: x for n, x in operands.items() if n not in FLOATS}
    made, pull = jax.vjp(lambda floats: function(**floats, **rest), floats)
    return made, pull(cotangents)[0]


def truth(operands):
    """Of the float64 reference, as NumPy arrays."""
    with jax.enable_x64(True):
        operands = cast(operands, np.float64)
        return jax.tree.map(np.asarray, value_and_grads(reference.delta_rule, operands, weights(operands)))


def errors(made, true):
    """Largest error over the largest true entry, by leaf; None stays."""

    def error(x, y):
        return float(
            np.max(np.abs(np.asarray(x, np.float64) - y), initial=0) / max(np.max(np.abs(y), initial=0), 1e-30)
        )

    return jax.tree.map(error, made, true)


def close(function, operands, dtype=np.float32, ulps=8):
    """Asserts that the errors of `function` are at most twice the reference's in `dtype` plus `ulps` of its."""
    operands = cast(operands, dtype)
    true = truth(operands)
    ours = errors(value_and_grads(function, operands, weights(operands)), true)
    wide = cast(cast(operands, dtype), np.float32)

    def rounded(**wide):
        o, final = reference.delta_rule(**wide)
        return o.astype(dtype).astype(np.float32), final

    theirs = errors(value_and_grads(rounded, wide, weights(wide)), true)
    for (path, mine), (_, limit) in zip(*(jax.tree_util.tree_leaves_with_path(x) for x in (ours, theirs))):
        assert mine <= 2 * limit + ulps * float(jnp.finfo(dtype).eps), (jax.tree_util.keystr(path), mine, limit)
