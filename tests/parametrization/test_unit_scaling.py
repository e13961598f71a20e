"""Unit scaling and u-muP at initialization: one variance for weights, activations and gradients, and where not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from settings import model_config, parametrization_config

from lab import models, parametrization
from lab.models.units import mixing_rms
from lab.models.weight import by_path

LOW, HIGH = 0.3, 3.0
DEPTH, LENGTH, VOCABULARY, BATCH, HEADS = 4, 64, 256, 4, 4
SIZES = {"depth": DEPTH, "sequence_length": LENGTH, "vocab_size": VOCABULARY, "heads": HEADS, "kv_heads": HEADS}


def rms(x, stacked):
    """RMS of a tensor, for each layer of a stack."""
    x = np.asarray(x, np.float64)
    return np.sqrt(np.mean(x**2, axis=tuple(range(1, x.ndim)) if stacked else None))


@partial(jax.jit, static_argnums=0)
def look(model, multipliers):
    weights, tokens = jax.random.split(jax.random.key(0))
    tokens = jax.random.randint(tokens, (BATCH, LENGTH + 1), 0, VOCABULARY)
    return model.taps(model.init(weights), tokens, multipliers)


@pytest.fixture(scope="module", params=[64, 256])
def width(request):
    return request.param


@pytest.fixture(scope="module")
def seen(width):
    """Name -> RMS by "activation X", "gradient X", "weight gradient X", under each parametrization."""
    config = model_config(width=width, **SIZES)
    model = models.build(config, 1)

    def of(name):
        scales = parametrization.scales(config, parametrization_config(name=name), "adam")
        assert set(jax.tree.leaves(scales.init_std)) == {1.0}
        tapped, arriving, gradient = look(model, jax.tree.map(jnp.float32, scales.multipliers))
        found = {f"activation {path}": rms(x, path.startswith("layers")) for path, x in tapped.items()}
        found |= {f"gradient {path}": rms(x, path.startswith("layers")) for path, x in arriving.items()}
        predictions = BATCH * LENGTH
        of_weights = {path: np.asarray(x) / predictions**0.5 for path, x in by_path(gradient).items()}
        return found | {f"weight gradient {path}": rms(x, path.startswith("layers")) for path, x in of_weights.items()}

    return {name: of(name) for name in ("umup", "unit")}


def exceptions(name, width):
    """What theory says is elsewhere, and where.

    - Embedding gradients: a token's row sums the gradients of its occurrences, predictions/vocabulary of them, each of
      about unit size times the embedding's 1: RMS sqrt(predictions/vocabulary)/sqrt(predictions) = 1/sqrt(vocabulary).
    - Queries carry the scale of their scores s = attention multiplier/sqrt(head width): RMS s; the gradients of what is
      compared with them have s in them as well, those of queries 1/s.
    - Logits of u-muP: unit rows over the fan-in: 1/sqrt(width). Their gradient is softmax less target, before the
      multiplier that makes it unit: 1/sqrt(vocabulary).
    """
    head = width // HEADS
    scale = 1 / head if name == "umup" else head**-0.5
    found = {
        "weight gradient embedding": VOCABULARY**-0.5,
        "activation layers/attention/scaled_query": scale,
        "gradient logits": VOCABULARY**-0.5,
    }
    if name == "umup":
        found |= dict.fromkeys(("activation logits", "activation readout.out"), width**-0.5)
    return found


INSIDE = ("gradient layers/attention/scaled_query", "gradient layers/attention/compared_key")  # of attention's kernel
QUERY_KEY = ("attention/query", "attention/key")
MIXED = ("activation layers/attention/out.in", "activation layers/attention/out.out")


@pytest.mark.parametrize("name", ["umup", "unit"])
def test_unit_rms(seen, width, name):
    derived = exceptions(name, width)
    rest = {key: value for key, value in seen[name].items() if key not in derived and key not in (*INSIDE, *MIXED)}
    rest = {key: value for key, value in rest.items() if not ("gradient" in key and any(x in key for x in QUERY_KEY))}
    assert len(rest) > 25
    outside = {key: value for key, value in rest.items() if np.any(value < LOW) or np.any(value > HIGH)}
    assert not outside


@pytest.mark.parametrize("name", ["umup", "unit"])
def test_exceptions_are_where_theory_puts_them(seen, width, name):
    for key, expected in exceptions(name, width).items():
        np.testing.assert_allclose(seen[name][key], expected, rtol=0.3, err_msg=key)


@pytest.mark.parametrize("name", ["umup", "unit"])
def test_attention_drifts_with_depth_as_values_become_alike(seen, name):
    """The mean of values that are alike does not shrink: at a share r of variance in common its RMS over that of
    independent ones is sqrt(r + (1 - r) m^2)/m, m = mixing_rms, which is 1 at r = 0 and 1/m, here 3.7, at r = 1. Equal
    values pass no gradient to scores: queries and keys get sqrt(1 - r) of theirs. So the first layer is within the
    bounds, mixed values grow from layer to layer up to 1/m, and gradients of queries and keys shrink.
    """
    found, most = seen[name], 1.05 / mixing_rms(LENGTH)
    for key in MIXED:
        assert LOW < found[key][0] < HIGH and np.all(np.diff(found[key]) > 0) and np.all(found[key] < most), key
    for key in (f"gradient layers/{part}.out" for part in QUERY_KEY):
        alike = ((found[MIXED[0]] * mixing_rms(LENGTH)) ** 2 - mixing_rms(LENGTH) ** 2) / (1 - mixing_rms(LENGTH) ** 2)
        assert LOW < found[key][0] < HIGH and np.all(np.diff(found[key]) < 0), key
        np.testing.assert_allclose(found[key][1:], found[key][0] * np.sqrt(1 - alike[1:]), rtol=0.35, err_msg=key)
