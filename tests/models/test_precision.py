"""Casts against every value that a format has, products against their definition, and a policy of a user's own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from settings import model_config

from lab import models
from lab.errors import ConfigError
from lab.models.precision import POLICIES, Static
from lab.models.scaling import product

FORMATS = ("float8_e4m3fn", "float8_e5m2", "float16")


def table(name):
    """Finite non-negative values of a format by code, so that neighbours in code are neighbours in value."""
    kind = np.dtype(getattr(ml_dtypes, name, name))
    codes = np.arange(2 ** (8 * kind.itemsize - 1)).astype(f"uint{8 * kind.itemsize}")
    values = codes.view(kind).astype(np.float64)
    return values[np.isfinite(values)]


def rounded(x, name):
    """x [K] to the nearest value of the table, ties to the even code, beyond the last value to that one."""
    values, size = table(name), np.abs(np.asarray(x, np.float64))
    above = np.clip(np.searchsorted(values, size), 1, len(values) - 1)
    down, up = size - values[above - 1], values[above] - size
    code = np.where((down < up) | ((down == up) & (above % 2 == 1)), above - 1, above)
    return np.sign(x) * values[np.where(size >= values[-1], len(values) - 1, code)]


def edges(name, dtype):
    """Every value, every midpoint, both with their neighbours in `dtype`, and random values over the whole range."""
    values = table(name)
    exact = np.concatenate([values, (values[1:] + values[:-1]) / 2])[: 2 * 4096].astype(dtype)
    up, down = (np.nextafter(exact, np.array(end, dtype)) for end in (np.inf, -np.inf))
    rng = np.random.default_rng(0)
    drawn = (np.exp(rng.uniform(np.log(values[1] / 8), np.log(values[-1] * 4), 4000))).astype(dtype)
    x = np.concatenate([exact, up, down, drawn])
    return np.concatenate([x, -x])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_casts_round_to_the_nearest_value_and_saturate(name, dtype):
    x = edges(name, np.dtype(getattr(ml_dtypes, dtype, dtype)))
    with jax.enable_x64(dtype == "float64"):
        found = jax.jit(Static(activation=name).cast, static_argnums=1)(jnp.asarray(x), "activation")
        assert found.dtype == dtype
        np.testing.assert_array_equal(np.asarray(found, np.float64), rounded(x, name).astype(x.dtype))


@pytest.mark.parametrize("name", FORMATS)
def test_nan_passes_on_and_infinity_saturates(name):
    most = float(ml_dtypes.finfo(name).max)
    found = Static(gradient=name).cast(jnp.array([np.nan, np.inf, -np.inf, 0.0]), "gradient")
    np.testing.assert_array_equal(found, [np.nan, most, -most, 0.0])


def test_policies_cast_what_they_say():
    assert [POLICIES["fp8"].format(kind) for kind in ("activation", "weight", "gradient")] == [
        "float8_e4m3fn",
        "float8_e4m3fn",
        "float8_e5m2",
    ]
    x = jnp.array([1e6, 1 + 2**-12, 2**-20])
    for kind in ("activation", "weight", "gradient"):
        assert POLICIES["none"].cast(x, kind) is x and POLICIES["none"].format(kind) is None
        np.testing.assert_array_equal(POLICIES["fp16"].cast(x, kind), [65504, 1, 2**-20])
    assert POLICIES["fp8"].cast(x, "weight")[0] == 448 and POLICIES["fp8"].cast(x, "gradient")[0] == 57344


def operands(scale=1.0):
    """x [5, 4], w [4, 3], dy [5, 3], standard normal, dy times `scale`."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, w, dy = (jax.random.normal(key, shape) for key, shape in zip(keys, ((5, 4), (4, 3), (5, 3))))
    return x, w, dy * scale


def passes(x, w, dy, precision="none", **factors):
    """(value, gradient of x, gradient of w) of the product."""
    factors = {"forward": 1.0, "backward": 1.0, "gradient": 1.0, **factors}
    value, pull = jax.vjp(lambda x, w: product(x, w, factors, precision), x, w)
    return value, *pull(dy)


def test_product_is_the_plain_one_where_nothing_is_asked():
    x, w, dy = operands()
    value, pull = jax.vjp(jnp.matmul, x, w)
    for found, expected in zip(passes(x, w, dy), (value, *pull(dy)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_product_has_three_factors_each_of_its_own():
    x, w, dy = operands()
    plain = passes(x, w, dy)
    for place, name in enumerate(("forward", "backward", "gradient")):
        found = passes(x, w, dy, **{name: 3.0})
        for i in range(3):
            np.testing.assert_allclose(found[i], plain[i] * (3.0 if i == place else 1.0), rtol=1e-6)


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_product_casts_what_enters_its_three_products_and_not_what_leaves(precision):
    x, w, dy = operands()
    forward, backward = ("float8_e4m3fn", "float8_e5m2") if precision == "fp8" else ("float16", "float16")
    x8, w8, dy8 = (rounded(np.ravel(a), f).reshape(a.shape) for a, f in ((x, forward), (w, forward), (dy, backward)))
    expected = 0.5 * x8 @ w8, 0.25 * dy8 @ w8.T, 2.0 * x8.T @ dy8
    found = passes(x, w, dy, precision, forward=0.5, backward=0.25, gradient=2.0)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_product_in_bfloat16_gives_float32_gradients_of_float32_weights():
    x, w, dy = operands()
    value, dx, dw = passes(x.astype(jnp.bfloat16), w, dy.astype(jnp.bfloat16), "fp8")
    assert (value.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Current:
    """FP8 with a dynamic scale: the power of two that brings the largest value just under the format's."""

    def format(self, kind):
        return POLICIES["fp8"].format(kind)

    def cast(self, x, kind):
        most = float(jnp.finfo(self.format(kind)).max)
        scale = jnp.exp2(jnp.floor(jnp.log2(most / jnp.maximum(jnp.max(jnp.abs(x)), 1e-30))))
        return POLICIES["fp8"].cast(x * scale, kind) / scale


@dataclasses.dataclass(frozen=True)
class LossScaled:
    """FP8 whose gradients are cast at a constant multiple of themselves."""

    constant: float

    def format(self, kind):
        return POLICIES["fp8"].format(kind)

    def cast(self, x, kind):
        by = self.constant if kind == "gradient" else 1.0
        return POLICIES["fp8"].cast(x * by, kind) / by


@functools.cache
def gradient_of_a_small_loss(precision):
    """Of the MLP's first weight, flat, under a policy; the loss is divided by 2^24."""
    model = models.build(model_config(precision=precision, depth=1))
    tokens = jax.random.randint(jax.random.key(1), (2, 13), 0, 24)
    weights = jax.tree.map(lambda w: w / 4, model.init(jax.random.key(0)))
    found = jax.jit(jax.grad(lambda w: model.nll(w, tokens, {}) / 2**24))(weights)
    return np.asarray(found["layers"]["mlp"]["up"]).ravel()


@pytest.mark.parametrize("policy", [Current(), LossScaled(2.0**24)], ids=["dynamic", "loss scaling"])
def test_a_policy_of_ones_own_needs_no_change_of_models(policy, monkeypatch):
    """Gradients below FP8's range are lost by plain casts, and kept by a policy that scales."""
    monkeypatch.setitem(POLICIES, "mine", policy)
    mine, exact, static = gradient_of_a_small_loss.__wrapped__("mine"), *map(gradient_of_a_small_loss, ("none", "fp8"))

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    assert not static.any()
    assert cosine(mine, exact) > 0.99 and 0.9 < np.linalg.norm(mine) / np.linalg.norm(exact) < 1.1


def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(ConfigError, match="model.precision is 'fp9'.*fp8"):
        models.build(model_config(precision="fp9"))
