"""Problems of gated linear attention, and what a result may be off."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

NAMES = ("o", "final state", "dq", "dk", "dv", "dg", "dstate")


def problem(seed=0, batch=1, length=200, heads=2, shared=1, k=32, v=16, gate="scalar", decay="mixed", segments=False):
    """Float64 arrays of the public layout.

    Args:
      shared: heads that read one q and k.
      gate: "none", "head", "scalar" or "vector".
      decay: "mixed": one gate in ten is -50, the others are small; else a number, the mean of -g.
    """
    rng = np.random.default_rng(seed)
    made = {name: rng.normal(size=(batch, length, heads // shared, k)) for name in ("q", "k")}
    made["v"] = rng.normal(size=(batch, length, heads, v))
    whole = (batch, length, heads, k)
    shape = {"none": None, "head": (heads,), "scalar": whole[:3], "vector": whole}[gate]
    made["g"] = None
    if shape and decay == "mixed":
        made["g"] = np.where(rng.random(shape) < 0.1, -50.0, -0.02 * rng.random(shape))
    elif shape:
        made["g"] = -decay * rng.exponential(size=shape)
    made["initial_state"] = rng.normal(size=(batch, heads, k, v))
    ids = np.cumsum(rng.random((batch, length)) < 0.05, axis=1) % 3  # numbers come again
    made["segment_ids"] = ids.astype(np.int32) if segments else None
    made["do"] = rng.normal(size=(batch, length, heads, v))
    made["dstate"] = rng.normal(size=made["initial_state"].shape)
    return made


def rounded(made, dtype):
    """The same problem with q, k, v and do of `dtype`'s numbers."""
    return {n: np.asarray(jnp.asarray(x, dtype), float) if n in ("q", "k", "v", "do") else x for n, x in made.items()}


def results(function, made, dtype, **options):
    """(o, final state, gradients of q, k, v, g and the initial state) as float64; q, k, v of `dtype`."""
    wide = jnp.promote_types(dtype, jnp.float32)
    trained = {n: jnp.asarray(made[n], dtype) for n in ("q", "k", "v")}
    trained |= {n: jnp.asarray(made[n], wide) for n in ("g", "initial_state") if made[n] is not None}
    ids = None if made["segment_ids"] is None else jnp.asarray(made["segment_ids"])

    @jax.jit
    def run(trained, cotangents):
        out, pull = jax.vjp(lambda t: function(**{"g": None, **t}, segment_ids=ids, **options), trained)
        return out, pull(cotangents)[0]

    out, gradients = run(trained, (jnp.asarray(made["do"], dtype), jnp.asarray(made["dstate"], wide)))
    found = (*out, *(gradients.get(n) for n in ("q", "k", "v", "g", "initial_state")))
    return tuple(None if x is None else np.asarray(x, float) for x in found)


def no_worse(ours, float32, gold, ulps=4, epsilon=2.0**-23):
    """Each result's largest error is at most twice that of the float32 reference and some ulps of its scale."""
    for name, x, y, z in zip(NAMES, ours, float32, gold):
        if z is None:
            continue
        assert x.shape == z.shape, name
        allowed = 2 * np.abs(y - z).max(initial=0) + ulps * epsilon * np.abs(z).max(initial=0)
        found = np.abs(x - z).max(initial=0)
        assert found <= allowed, f"{name}: error {found:.2e}, allowed {allowed:.2e}"
