"""What training does not see: multipliers that move into weights, and gradients up to one constant a weight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from settings import model_config, parametrization_config

from lab import models, parametrization
from lab.config import default_config, override
from lab.models.weight import is_record
from lab.optim import optimizers

SIZES = {"width": 32, "heads": 4, "kv_heads": 2}
CHANGES = {"hidden": 3.0, "residual": 0.25, "readout": 5.0}  # factors that move from the product into the weight
RATE = {"adamw": 0.02, "lamb": 0.05, "sgd": 0.5}


def scaled(name, family, **changes):
    config = model_config(**SIZES | changes)
    model = models.build(config, 1)
    return model, parametrization.scales(config, parametrization_config(name=name, base_depth=2), family)


@partial(jax.jit, static_argnums=(0, 1))
def losses(model, name, hyper, trees, multipliers):
    """Mean loss before each of four updates, and after them."""
    key, of_tokens = jax.random.split(jax.random.key(0))
    tokens = jax.random.randint(of_tokens, (4, 13), 0, model.vocab_size)
    weights = jax.tree.map(jnp.multiply, model.init(key), trees["init_std"])
    row = {"learning_rate": RATE[name], "weight_decay": 0.5}

    def mean(weights):
        return model.nll(weights, tokens, multipliers) / tokens[:, 1:].size

    def body(state, _):
        weights, moments = state
        loss, gradient = jax.value_and_grad(mean)(weights)
        how = name, hyper, row, trees, model.records(), gradient
        return optimizers.update(*how, moments, weights), loss

    return jax.lax.scan(body, (weights, optimizers.init(name, weights)), None, length=5)[1]


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_a_factor_may_move_from_the_product_into_the_weight(name):
    """With weight' = c weight: std c, factors of the product 1/c, epsilon 1/c, and the rate c (Adam), 1 (LAMB, whose
    step is of the weight's size) or c^2 (sgd); decay is what keeps rate x decay, for LAMB what keeps their ratio
    (Tensor Programs V, section J.2.1; LAMB and epsilon follow from their definitions)."""
    model, found = scaled("mup", optimizers.FAMILY[name])
    cfg = override(default_config(), {"optimizer.name": name, "optimizer.clip_norm": 0.0, "optimizer.epsilon": 1e-3})
    hyper = optimizers.hyperparameters(cfg)
    c = jax.tree.map(lambda record: CHANGES.get(record.role, 1.0), model.records(), is_leaf=is_record)
    rate = jax.tree.map(lambda c: {"adamw": c, "lamb": 1.0, "sgd": c**2}[name], c)
    decay = jax.tree.map(lambda c, rate: 1 / c if name == "lamb" else 1 / rate, c, rate)
    times = partial(jax.tree.map, lambda x, y: x * y)
    moved = {
        "init_std": times(found.init_std, c),
        "learning_rate": times(found.learning_rate, rate),
        "weight_decay": times(found.weight_decay, decay),
        "epsilon": jax.tree.map(lambda x, c: x / c, found.epsilon, c),
    }
    factors = found.multipliers["weights"]
    over = jax.tree.map(lambda c, node: {key: x / c for key, x in node.items()}, c, factors)
    arguments = [(found.trees(), found.multipliers), (moved, found.multipliers | {"weights": over})]
    one, other = (np.asarray(losses(model, name, *jax.tree.map(jnp.float32, (hyper, *given)))) for given in arguments)
    np.testing.assert_allclose(one, other, rtol=2e-5)
    assert abs(one[-1] - one[0]) > 0.05  # training took place
    wrong = moved | {"learning_rate": found.learning_rate if name != "lamb" else times(found.learning_rate, c)}
    third = losses(model, name, *jax.tree.map(jnp.float32, (hyper, wrong, arguments[1][1])))
    assert not np.allclose(one, third, rtol=1e-3)


@pytest.mark.parametrize("variant", [{}, {"gated": True, "norm": "layer", "tied": True, "qk_norm": False}])
@pytest.mark.parametrize("name", ["umup", "unit"])
def test_gradients_are_true_up_to_one_constant_per_weight_and_layer(name, variant):
    """Beside the same forward pass with true gradients: cosine 1, over each layer of each weight."""
    model, found = scaled(name, "adam", **variant)
    multipliers = dict(found.multipliers)
    residual = multipliers["residual"]
    true = multipliers | {
        "weights": jax.tree.map(
            lambda node: dict.fromkeys(node, node["forward"]), multipliers["weights"], is_leaf=lambda x: "forward" in x
        ),
        "residual": residual
        | {"branch_gradient": residual["branch"], "entry_gradient": np.ones_like(residual["branch"])},
        "readout_gradient": multipliers["readout"],
        "query_gradient": 1.0,
    }
    tokens = jax.random.randint(jax.random.key(1), (4, 13), 0, model.vocab_size)
    gradient = jax.jit(jax.grad(model.nll))
    weights = model.init(jax.random.key(0))
    ours, theirs = (gradient(weights, tokens, jax.tree.map(jnp.float32, given)) for given in (multipliers, true))

    def constants(record, ours, theirs):
        axes = tuple(axis for axis in range(ours.ndim) if axis != record.depth)
        dot, one, two = (np.sum(np.float64(x * y), axes) for x, y in ((ours, theirs), (ours, ours), (theirs, theirs)))
        np.testing.assert_allclose(dot / np.sqrt(one * two), 1, rtol=1e-5, err_msg=str(record))
        return np.sqrt(one / two)

    found = jax.tree.map(constants, model.records(), ours, theirs, is_leaf=is_record)
    assert np.ptp(np.log(np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)]))) > 1  # and not one for all
