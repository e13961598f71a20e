"""Random attention problems, and errors against the float64 definition."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from kernels_pallas.flash_attention import reference
from kernels_pallas.flash_attention.api import checked

NAMES = ("query", "key", "value", "bias", "sinks")


@st.composite
def problems(draw, longest=200, widths=(8, 16, 64)):
    """Shapes and options; `seed` draws the numbers."""
    groups, kv_heads = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 2)]))
    batch, queries = draw(st.integers(1, 2)), draw(st.integers(1, longest))
    keys = draw(st.sampled_from([queries, queries, draw(st.integers(1, longest))]))
    causal, window, first = draw(st.booleans()), None, 0
    if draw(st.booleans()):
        window = (draw(st.integers(1, longest)), draw(st.integers(0, 40)))
        first = draw(st.sampled_from([0, 0, 3, 70]))
    options = {"is_causal": causal, "local_window_size": window, "first_tokens": first}
    options["logits_soft_cap"] = draw(st.sampled_from([None, None, 2.0]))
    options["scale"] = draw(st.sampled_from([None, 0.3]))
    bias = draw(st.sampled_from([None, None, (1, 1), (batch, 1), (1, groups * kv_heads), (batch, groups * kv_heads)]))
    return {
        "shape": (batch, queries, keys, groups * kv_heads, kv_heads, draw(st.sampled_from(widths))),
        "options": options,
        "bias": bias,
        "sinks": draw(st.booleans()),
        "segments": draw(st.sampled_from([0, 0, 1, 5])),
        "seed": draw(st.integers(0, 1000)),
    }


def arrays(shape, options=None, bias=None, sinks=False, segments=0, seed=0):
    """{name: float64 array}, segments (None or two), cotangents of results and log-sum-exp."""
    batch, queries, keys, heads, kv_heads, width = shape
    random = np.random.default_rng(seed)
    found = {
        "query": 2 * random.normal(size=(batch, queries, heads, width)),
        "key": random.normal(size=(batch, keys, kv_heads, width)),
        "value": random.normal(size=(batch, keys, kv_heads, width)),
    }
    if bias is not None:
        found["bias"] = random.normal(size=(*bias, queries, keys))
    if sinks:
        found["sinks"] = random.normal(size=heads)
    ids = None
    if segments:
        ids = tuple(np.sort(random.integers(0, segments, (batch, n)), -1).astype(np.int32) for n in (queries, keys))
    return found, ids, (random.normal(size=(batch, queries, heads, width)), random.normal(size=(batch, queries, heads)))


def defined(query, key, value, bias=None, *, sinks=None, segment_ids=None, return_lse, **options):
    """The reference behind the public signature."""
    setting, *prepared = checked(query, key, value, bias, sinks, segment_ids, **options)
    return reference.attention(*prepared, **setting.of_scores)


def results(function, found, ids, cotangents, options, dtype):
    """{name: value} of the results and of every gradient, in float64."""
    cast = {name: jnp.asarray(x, dtype) for name, x in found.items()}
    g, g_lse = (jnp.asarray(x, jnp.promote_types(dtype, jnp.float32)) for x in cotangents)

    @jax.jit
    def both(cast):
        def loss(cast):
            out, lse = function(**cast, segment_ids=ids, return_lse=True, **options)
            finite = jnp.isfinite(lse)
            return jnp.sum(out * g) + jnp.sum(jnp.where(finite, lse * g_lse, 0)), (out, jnp.where(finite, lse, -1e3))

        gradients, (out, lse) = jax.grad(loss, has_aux=True)(cast)
        return {"out": out, "lse": lse, **{f"d {name}": x for name, x in gradients.items()}}

    return {name: np.asarray(x, np.float64) for name, x in both(cast).items()}


def errors(found, exact):
    return {name: float(np.max(np.abs(found[name] - exact[name]), initial=0)) for name in exact}


def assert_as_exact_as_the_definition(function, problem, dtype=jnp.float32, factor=2.0):
    """At most `factor` times the error of the definition in the same dtype, and four roundings of the largest entry."""
    found, ids, cotangents = arrays(**problem)
    run = functools.partial(results, found=found, ids=ids, cotangents=cotangents, options=problem.get("options") or {})
    if dtype == jnp.bfloat16:  # operands that bfloat16 holds, so that all forms start from the same numbers
        found = {name: np.asarray(jnp.asarray(x, dtype), np.float64) for name, x in found.items()}
        run = functools.partial(run, found=found)
    with jax.enable_x64(True):
        exact = run(defined, dtype=jnp.float64)
    theirs, ours = errors(run(defined, dtype=dtype), exact), errors(run(function, dtype=dtype), exact)
    rounding = float(jnp.finfo(dtype).eps)
    for name in exact:
        bound = factor * theirs[name] + 4 * rounding * float(np.max(np.abs(exact[name]), initial=1e-30))
        assert ours[name] <= bound, f"{name}: error {ours[name]:.3g}, bound {bound:.3g}"
