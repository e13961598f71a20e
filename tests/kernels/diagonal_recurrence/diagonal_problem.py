"""Problems of the diagonal recurrence, and what a result may be off."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

TRAINED = ("x", "log_a", "initial_state")
NAMES = ("h", "last state", *(f"gradient of {name}" for name in TRAINED))


def problem(seed=0, batch=2, length=200, width=40, decay="mixed", constant=False, segments=False):
    """Float64 arrays; `decay`: "mixed" (one in ten is -50, the others small), or the mean of -log_a."""
    rng = np.random.default_rng(seed)
    shape = (batch, length, width)
    gates = (width,) if constant else shape
    if decay == "mixed":
        log_a = np.where(rng.random(gates) < 0.1, -50.0, -0.02 * rng.random(gates))
    else:
        log_a = -decay * rng.exponential(size=gates)
    ids = np.cumsum(rng.random((batch, length)) < 0.05, axis=1) % 3  # numbers come again
    return {
        "x": rng.normal(size=shape),
        "log_a": log_a,
        "initial_state": rng.normal(size=(batch, width)),
        "segment_ids": ids.astype(np.int32) if segments else None,
        "dh": rng.normal(size=shape),
        "dlast": rng.normal(size=(batch, width)),
    }


def results(function, made, dtype, gates=None, **options):
    """(h, last state, gradients of x, log_a and the initial state) as float64; x of `dtype`, log_a of `gates`."""
    wide = jnp.promote_types(dtype, jnp.float32)
    kinds = {"x": dtype, "log_a": gates or wide, "initial_state": wide}
    trained = {name: jnp.asarray(made[name], kind) for name, kind in kinds.items()}
    ids = None if made["segment_ids"] is None else jnp.asarray(made["segment_ids"])

    @jax.jit
    def run(trained, cotangents):
        out, pull = jax.vjp(lambda t: function(**t, segment_ids=ids, **options), trained)
        return out, pull(cotangents)[0]

    out, gradients = run(trained, (jnp.asarray(made["dh"], dtype), jnp.asarray(made["dlast"], wide)))
    return tuple(np.asarray(x, float) for x in (*out, *(gradients[name] for name in TRAINED)))


def no_worse(ours, float32, gold, ulps=4, epsilon=2.0**-23):
    """Each result's largest error is at most twice that of the float32 reference and some ulps of its scale."""
    for name, x, y, z in zip(NAMES, ours, float32, gold):
        assert x.shape == z.shape, name
        allowed = 2 * np.abs(y - z).max(initial=0) + ulps * epsilon * np.abs(z).max(initial=0)
        found = np.abs(x - z).max(initial=0)
        assert found <= allowed, f"{name}: error {found:.2e}, allowed {allowed:.2e}"
