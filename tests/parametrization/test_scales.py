"""Scales against the papers' tables and their invariants, and what cannot be scaled."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from settings import model_config, parametrization_config

from lab import models, parametrization
from lab.errors import ConfigError
from lab.models.weight import Record
from lab.parametrization.scales import FAMILIES, Subject, check_pair, find, known

WIDE = {"width": 64, "heads": 4, "kv_heads": 2}  # four times the base width; the head width scales
DEEP = {"depth": 8}  # four times the base depth
MUP_LIKE = ("mup", "depth-mup", "completep")


def scales(family="adam", model=None, **changes):
    changes = {"base_depth": 2, **changes}
    return parametrization.scales(model_config(**(model or {})), parametrization_config(**changes), family)


def up(tree):
    return tree["layers"]["mlp"]["up"]


def forward(found):
    return jax.tree.map(lambda node: node["forward"], found.multipliers["weights"], is_leaf=lambda x: "forward" in x)


def numbers(found):
    return jax.tree.map(np.asarray, dataclasses.asdict(found))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model", [{}, {"tied": True, "norm": "layer", "gated": True}])
@pytest.mark.parametrize("name", MUP_LIKE)
def test_at_the_base_size_equals_standard(name, family, model):
    one, other = (numbers(scales(family, model, name=which)) for which in (name, "standard"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), one, other)


@pytest.mark.parametrize("name", known())
def test_trees_have_the_structure_of_the_weights(name):
    found = scales(model={"norm": "layer"}, name=name)
    weights = models.build(model_config(norm="layer")).init(jax.random.key(0))
    for tree in (*found.trees().values(), forward(found)):
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
    [
        ("adam", {"embedding": 1, "readout": 1, "up": 1 / 4}),
        ("lamb", {"embedding": 1, "readout": 1, "up": 1 / 2}),
        ("sgd", {"embedding": 4, "readout": 4, "up": 1}),
    ],
)
def test_mup_at_four_times_the_base_width(family, rates):
    """Table 8 of arXiv:2203.03466 with every width 4 times the base's."""
    found = scales(family, WIDE, name="mup")
    rate = found.learning_rate
    assert {"embedding": rate["embedding"], "readout": rate["readout"], "up": up(rate)} == rates
    assert rate["final_norm"]["gain"] == rates["embedding"]
    assert forward(found)["readout"] == 1 / 4 and up(forward(found)) == forward(found)["embedding"] == 1
    base = scales(family, name="standard").init_std
    assert found.init_std["readout"] == base["readout"] and found.init_std["embedding"] == base["embedding"]
    assert math.isclose(up(found.init_std), 1 / 64**0.5)
    assert found.multipliers["attention"] == 1 / 2  # head width 16 against 4: 1/d in all
    assert found.weight_decay["final_norm"]["gain"] == 0
    assert up(found.epsilon) == found.epsilon["readout"] == 1 / 4


@pytest.mark.parametrize("name, alpha", [("depth-mup", 0.5), ("completep", 1.0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_depth_rules_at_four_times_the_base_depth(name, alpha, family):
    """Adam: branch l^-alpha, rate l^(alpha - 1) (arXiv:2505.01618, table 1); sgd's gradient has the branch's factor."""
    found, base = scales(family, DEEP, name=name), scales(family, name="mup")
    np.testing.assert_allclose(found.multipliers["residual"]["branch"], np.full((8, 2), 4**-alpha), rtol=1e-6)
    rate = 4 ** (2 * alpha - 1 if family == "sgd" else alpha - 1)
    assert math.isclose(up(found.learning_rate), rate)
    assert found.learning_rate["embedding"] == found.learning_rate["readout"] == 1
    assert math.isclose(up(found.epsilon), 4**-alpha) and found.epsilon["embedding"] == 1
    assert up(found.init_std) == up(base.init_std)


def test_width_head_count_and_depth_move_independently():
    """What one axis changes is the same whatever the others are; heads at a fixed head width leave scores alone."""
    heads = {"width": 64, "head_width": 4, "heads": 16, "kv_heads": 16}
    both = scales(model={**heads, **DEEP}, name="completep")
    wide, deep = scales(model=heads, name="completep"), scales(model=DEEP, name="completep")
    none = scales(name="completep")
    product = jax.tree.map(lambda x, y, z: x * y / z, wide.learning_rate, deep.learning_rate, none.learning_rate)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), both.learning_rate, product)
    assert both.multipliers["attention"] == none.multipliers["attention"] == 1
    np.testing.assert_array_equal(both.multipliers["residual"]["branch"], deep.multipliers["residual"]["branch"])
    wider_heads = scales(model={"width": 64, **DEEP}, name="completep")
    assert wider_heads.multipliers["attention"] == 1 / 2
    assert wider_heads.learning_rate == both.learning_rate


@pytest.mark.parametrize("name", known())
@pytest.mark.parametrize("family", ["adam", "sgd"])
def test_decay_per_step_does_not_depend_on_width_or_depth(name, family):
    found = scales(family, {**WIDE, **DEEP}, name=name)
    product = jax.tree.map(lambda rate, decay: rate * decay, found.learning_rate, found.weight_decay)
    assert {round(leaf, 12) for leaf in jax.tree.leaves(product)} == {0.0, 1.0}


@pytest.mark.parametrize("name", sorted(set(known()) - {"standard"}))
def test_lamb_keeps_the_proportion_of_decay_to_a_direction_of_size_1(name):
    """Inside its ratio of norms: decay x size of the weight is that of the base model, whatever the learning rate."""
    large = WIDE if name == "mup" else {**WIDE, **DEEP}  # mup keeps the standard's initial scale in depth
    base, wide = (scales("lamb", model, name=name) for model in ({}, large))
    one, other = (jax.tree.map(lambda d, std: d * std, s.weight_decay, s.init_std) for s in (base, wide))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), one, other)


def test_key_heads_that_do_not_grow_have_the_sgd_rate_of_their_own_ratios():
    model = {"width": 64, "heads": 16, "kv_heads": 1, "head_width": 4}
    rate = scales("sgd", model, name="mup").learning_rate["layers"]["attention"]
    assert rate["key"] == 1 / 4 and rate["query"] == 1


def test_a_tied_readout_is_scaled_through_the_logits():
    assert scales(model={"tied": True}).multipliers["readout"] == 1 / 4
    wide = scales(model={"tied": True, **WIDE}, name="mup", readout_multiplier=3.0)
    assert math.isclose(wide.multipliers["readout"], 3 / 4 / 4)


def test_the_configs_multipliers_reach_the_model():
    given = {"embedding_multiplier": 2.0, "attention_multiplier": 5.0, "readout_multiplier": 7.0}
    found = scales(**given, activation_multiplier=11.0, residual_multiplier=3.0, residual_ratio=2.0).multipliers
    assert {key: found[key] for key in ("embedding", "attention", "activation", "readout")} == {
        "embedding": 2.0, "attention": 5.0, "activation": 11.0, "readout": 7.0,
    }  # fmt: skip
    branch = found["residual"]["branch"]
    np.testing.assert_allclose(branch[:, 0] / branch[:, 1], 2.0, rtol=1e-6)
    np.testing.assert_allclose((branch**2).mean(1), 9.0, rtol=1e-6)


def rule(name, role, family="adam", shape=(64, 8), base=(16, 8)):
    """The rule of a role for a weight [fan_in, fan_out] four times as wide as the base model's."""
    fans = {"router": ((0,), (1,), (0,)), "recurrence": ((), (0,), (0,))}[role]
    records = [Record(size, ("a", "b"), *fans, None, role) for size in (shape, base)]
    return find(name).rules[role](Subject(*records, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_router_is_a_readout_and_a_recurrence_a_bias(family):
    """Scores of experts are bounded as logits are; a decay belongs to its feature and is summed over nothing."""
    found = rule("mup", "router", family)
    assert found.forward == 1 / 4 and found.init_std == 1 / 4  # of the base: 1/sqrt(16)
    assert found.learning_rate == {"adam": 1, "lamb": 1, "sgd": 4}[family]
    assert rule("umup", "router", family).forward == 1 / 64
    for name in known():
        found = rule(name, "recurrence", family)
        assert found.init_std == found.forward == 1 and found.weight_decay == 0
        assert found.learning_rate == (4 if name in MUP_LIKE and family == "sgd" else 1)


def test_a_role_without_a_rule_names_weight_and_role(registering):
    mup = find("mup")
    rules = {role: rule for role, rule in mup.rules.items() if role != "readout"}
    parametrization.register("partial", dataclasses.replace(mup, rules=rules))
    with pytest.raises(ConfigError, match="weight readout has the role 'readout', for which partial has no rule"):
        scales(name="partial")


def test_what_cannot_be_scaled_is_one_line():
    with pytest.raises(ConfigError, match="parametrization.name is 'mupp'.*did you mean 'mup'"):
        scales(name="mupp")
    with pytest.raises(ConfigError, match="family is 'adagrad'"):
        scales("adagrad")
    with pytest.raises(ConfigError, match="2.5 heads at width 10"):
        scales(model={"head_width": 4}, name="mup", base_width=10)
    with pytest.raises(ConfigError, match="model.heads=4 does not divide model.width=10"):
        scales(name="mup", base_width=10)
    grown = Record((8, 4), ("a", "b"), (0,), (1,), (0,), None, "hidden")
    check_pair("w", grown, dataclasses.replace(grown, shape=(2, 4)))
    with pytest.raises(ConfigError, match="weight w is .8, 4., and .8, 2. in the base model"):
        check_pair("w", grown, dataclasses.replace(grown, shape=(8, 2)))
