"""Kinds of models: errors for what cannot be built, and one of the user's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from settings import model_config, parametrization_config

from lab import models, parametrization
from lab.errors import ConfigError
from lab.models import counts, weight
from lab.models.model import Model


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"heads": 3, "kv_heads": 3}, "model.heads=3 does not divide model.width=16"),
        ({"kv_heads": 3}, "model.kv_heads=3 does not divide model.heads=4"),
        ({"head_width": 5}, "the head width is 5; expected an even number"),
        ({"kind": "decodr"}, "model.kind is 'decodr'.*did you mean 'decoder'"),
        ({"norm": "rsm"}, "model.norm is 'rsm'.*did you mean 'rms'"),
        ({"activation": "gelo"}, "model.activation is 'gelo'.*did you mean 'gelu'"),
        ({"compute_dtype": "float16"}, "model.compute_dtype is 'float16'"),
        ({"remat": "some"}, "model.remat is 'some'; expected one of none, full"),
        ({"vocab_size": 0}, "model.vocab_size is 0; expected at least 1"),
        ({"depth": 0}, "model.depth is 0"),
        ({"mlp_width": -8}, "model.mlp_width is -8"),
    ],
)
def test_what_cannot_be_built_is_one_line(changes, words):
    with pytest.raises(ConfigError, match=words) as caught:
        models.build(model_config(**changes))
    assert "\n" not in str(caught.value)


def test_widths_of_a_family():
    by_heads = models.at_width(model_config(head_width=4, kv_heads=2, mlp_width=40), 32)
    assert (by_heads.heads, by_heads.kv_heads, by_heads.head_width, by_heads.mlp_width) == (8, 4, 4, 80)
    by_head_width = models.at_width(model_config(), 32)
    assert (by_head_width.heads, by_head_width.kv_heads, by_head_width.head_width) == (4, 4, 0)
    assert models.at_width(model_config(head_width=4, kv_heads=1), 8).kv_heads == 1
    with pytest.raises(ConfigError, match="2.5 heads at width 10"):
        models.at_width(model_config(head_width=4), 10)


class Bigram(nn.Module):
    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, tokens_BT, multipliers):
        down = {"vocab": self.vocab_size, "embed": self.width}
        table = weight.declare(self, "embedding", down, role="embedding", fan_in=(0,), fan_out=(1,), width=(1,))
        up = {"embed": self.width, "vocab": self.vocab_size}
        readout = weight.declare(self, "readout", up, role="readout", fan_in=(0,), fan_out=(1,), width=(0,))
        return jnp.take(table, tokens_BT.reshape(-1), axis=0) @ readout * multipliers["readout"]


def test_a_kind_of_the_users_own(monkeypatch):
    monkeypatch.setattr("lab.models.registry._KINDS", {})

    @models.register("bigram")
    def bigram(config, unroll):
        return Model(Bigram(config.vocab_size, config.width), config.vocab_size)

    config = model_config(kind="bigram", width=32)
    model = models.build(config)
    found = parametrization.scales(config, parametrization_config(name="mup"), "adam")
    forward = {name: factors["forward"] for name, factors in found.multipliers["weights"].items()}
    assert forward == {"embedding": 1.0, "readout": 0.5}
    weights = model.init(jax.random.key(0))
    tokens = np.arange(14, dtype=np.int32).reshape(2, 7)
    total, parts = model.loss(weights, tokens, found.multipliers, 0.0)
    logits = weights["embedding"][tokens[:, :-1]] @ weights["readout"] / 2
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1).sum()
    np.testing.assert_allclose([total, parts["nll"]], expected, rtol=1e-5)
    table = 32 * config.vocab_size
    assert counts.parameters(config) == {"non_embedding": 0, "with_head": table, "total": 2 * table}
    flops = counts.flops_per_token(config)
    assert flops["with_head"] == 6 * table and flops["with_attention"] == 6 * table
