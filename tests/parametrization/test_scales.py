"""Scales against Tensor Programs V's tables and their invariants, and what cannot be scaled."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from settings import model_config, parametrization_config

from lab import models, parametrization
from lab.errors import ConfigError
from lab.models.weight import Record
from lab.parametrization.scales import check_pair

WIDE = {"width": 64, "heads": 4, "kv_heads": 2}  # four times the base width; the head width scales


def scales(family="adam", model=None, **changes):
    return parametrization.scales(model_config(**(model or {})), parametrization_config(**changes), family)


def up(tree):
    return tree["layers"]["mlp"]["up"]


@pytest.mark.parametrize("family", ["adam", "sgd"])
@pytest.mark.parametrize("model", [{}, {"tied": True, "norm": "layer", "gated": True}])
def test_mup_at_its_base_width_is_standard(family, model):
    one, other = (dataclasses.asdict(scales(family, model, name=name)) for name in ("mup", "standard"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), one, other)


def test_trees_have_the_structure_of_the_weights():
    found = scales(model={"norm": "layer"})
    weights = models.build(model_config(norm="layer")).init(jax.random.key(0))
    for name in ("init_std", "forward", "learning_rate", "weight_decay"):
        tree = getattr(found, name)
        assert jax.tree.structure(tree) == jax.tree.structure(weights)
        assert all(type(leaf) is float for leaf in jax.tree.leaves(tree))


def test_standard_initial_scales():
    std = scales(model={"depth": 8, "mlp_width": 36}).init_std
    assert std["embedding"] == 1 and std["readout"] == 1 / 4 and up(std) == 1 / 4
    assert std["layers"]["attention"]["query_norm"]["gain"] == 1
    assert math.isclose(std["layers"]["mlp"]["out"], 1 / (6 * 4))
    assert math.isclose(std["layers"]["attention"]["out"], 1 / (4 * 4))


def test_init_scale_multiplies_all_but_gains():
    one, half = scales().init_std, scales(init_scale=0.5).init_std
    assert half["embedding"] == 0.5 and up(half) == up(one) / 2 and half["final_norm"] == one["final_norm"]


@pytest.mark.parametrize(
    "family, rates",
    [("adam", {"embedding": 1, "readout": 1, "up": 1 / 4}), ("sgd", {"embedding": 4, "readout": 4, "up": 1})],
)
def test_mup_at_four_times_the_base_width(family, rates):
    """Table 8 of arXiv:2203.03466 with every width 4 times the base's."""
    found = scales(family, WIDE, name="mup")
    rate = found.learning_rate
    assert {"embedding": rate["embedding"], "readout": rate["readout"], "up": up(rate)} == rates
    assert rate["final_norm"]["gain"] == rates["embedding"]
    assert found.forward["readout"] == 1 / 4 and up(found.forward) == found.forward["embedding"] == 1
    base = scales(family, name="standard").init_std
    assert found.init_std["readout"] == base["readout"] and found.init_std["embedding"] == base["embedding"]
    assert math.isclose(up(found.init_std), 1 / 64**0.5)
    assert found.scalars["attention"] == 1 / 2  # head width 16 against 4: 1/d in all
    assert found.weight_decay["final_norm"]["gain"] == 0


@pytest.mark.parametrize("family", ["adam", "sgd"])
def test_mup_equals_table_three_up_to_the_symmetry_of_multipliers(family):
    """A multiplier c can move from forward into weights: std x c, rate x c for Adam, x c^2 for SGD (section J.2.1)."""
    found = scales(family, WIDE, name="mup")
    c = found.forward["readout"]
    rate = found.learning_rate["readout"] * (c**2 if family == "sgd" else c)
    assert math.isclose(rate, 1 / 4)  # table 3: output learning rate 1/fan_in for both
    base = scales(family, name="standard").init_std["readout"]
    assert math.isclose(found.init_std["readout"] * c, base / 4)  # and variance 1/fan_in^2


@pytest.mark.parametrize("family", ["adam", "sgd"])
def test_decay_per_step_does_not_depend_on_width(family):
    found = scales(family, WIDE, name="mup")
    product = jax.tree.map(lambda rate, decay: rate * decay, found.learning_rate, found.weight_decay)
    assert {round(leaf, 12) for leaf in jax.tree.leaves(product)} == {0.0, 1.0}


def test_key_heads_that_do_not_grow_have_the_sgd_rate_of_their_own_ratios():
    model = {"width": 64, "heads": 16, "kv_heads": 1, "head_width": 4}
    rate = scales("sgd", model, name="mup").learning_rate["layers"]["attention"]
    assert rate["key"] == 1 / 4 and rate["query"] == 1


def test_a_tied_readout_is_scaled_through_the_logits():
    assert scales(model={"tied": True}).scalars["readout"] == 1 / 4
    wide = scales(model={"tied": True, **WIDE}, name="mup", readout_multiplier=3.0)
    assert math.isclose(wide.scalars["readout"], 3 / 4 / 4)


def test_the_configs_multipliers_reach_the_scalars():
    found = scales(embedding_multiplier=2.0, residual_multiplier=3.0, attention_multiplier=5.0, readout_multiplier=7.0)
    assert found.scalars == {"embedding": 2.0, "residual": 3.0, "attention": 5.0, "readout": 7.0}


def test_what_cannot_be_scaled_is_one_line():
    with pytest.raises(ConfigError, match="parametrization.name is 'mupp'.*did you mean 'mup'"):
        scales(name="mupp")
    with pytest.raises(ConfigError, match="family is 'adagrad'"):
        scales("adagrad")
    with pytest.raises(ConfigError, match="2.5 heads at width 10"):
        scales(model={"head_width": 4}, name="mup", base_width=10)
    grown = Record((8, 4), ("a", "b"), (0,), (1,), (0,), None, "hidden")
    check_pair("w", grown, dataclasses.replace(grown, shape=(2, 4)))
    with pytest.raises(ConfigError, match="weight w is .8, 4., and .8, 2. in the base model"):
        check_pair("w", grown, dataclasses.replace(grown, shape=(8, 2)))
