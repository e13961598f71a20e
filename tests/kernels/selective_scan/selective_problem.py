"""Problems of the selective scan, and what a result may be off."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

TOKENS = ("x", "dt", "B", "C", "z")
TRAINED = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
NAMES = ("y", "last state", *(f"gradient of {name}" for name in TRAINED))


def problem(seed=0, batch=2, length=140, width=12, n=4, time=0.1, extras=True, segments=False):
    """Float64 arrays; `time`: a mean of dt. `extras`: D, z, dt_bias and softplus, else none of them."""
    rng = np.random.default_rng(seed)
    shape = (batch, length, width)
    made = {name: rng.normal(size=(batch, length, n)) for name in ("B", "C")}
    made |= {"x": rng.normal(size=shape), "A": -rng.uniform(0.5, n, (width, n))}
    made["dt"] = rng.normal(size=shape) if extras else time * rng.exponential(size=shape)
    if extras:
        made["z"] = rng.normal(size=shape)
        made |= {"D": rng.normal(size=width), "dt_bias": np.full(width, np.log(np.expm1(time)))}
    made["initial_state"] = rng.normal(size=(batch, width, n))
    ids = np.cumsum(rng.random((batch, length)) < 0.05, axis=1) % 3  # numbers come again
    made["segment_ids"] = ids.astype(np.int32) if segments else None
    made |= {"dy": rng.normal(size=shape), "dlast": rng.normal(size=(batch, width, n))}
    return made


def results(function, made, dtype, **options):
    """(y, last state, the gradients of TRAINED) as float64, None where an array is absent; tokens are of `dtype`."""
    wide = jnp.promote_types(dtype, jnp.float32)
    trained = {name: jnp.asarray(made[name], dtype if name in TOKENS else wide) for name in TRAINED if name in made}
    ids = None if made["segment_ids"] is None else jnp.asarray(made["segment_ids"])
    options["dt_softplus"] = "dt_bias" in made

    @jax.jit
    def run(trained, cotangents):
        out, pull = jax.vjp(lambda t: function(**t, segment_ids=ids, **options), trained)
        return out, pull(cotangents)[0]

    out, gradients = run(trained, (jnp.asarray(made["dy"], dtype), jnp.asarray(made["dlast"], wide)))
    found = (*out, *(gradients.get(name) for name in TRAINED))
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
