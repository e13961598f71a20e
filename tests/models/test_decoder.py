"""The decoder against a NumPy reference in float64, and properties of any causal language model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from settings import model_config

from lab import models
from lab.models.axes import partition_spec
from lab.models.weight import is_record

MULTIPLIERS = {"embedding": 1.3, "residual": {"branch": 0.7}, "attention": 1.1, "readout": 0.9}

# Every pair of values of two options occurs in some row (rows of an orthogonal-like array, extended by hand).

OPTIONS = {
    "gated": (False, True),
    "activation": ("gelu", "silu", "relu"),
    "norm": ("rms", "layer"),
    "kv_heads": (4, 2, 1),
    "qk_norm": (True, False),
    "logit_soft_cap": (0.0, 3.0),
    "tied": (False, True),
    "head_width": (0, 6),
    "mlp_width": (0, 20),
    "remat": ("none", "full"),
}


def pairwise(options):
    """Few rows in which every pair of values of two options occurs: of 50 random rows, the one with most new pairs."""
    noise = np.random.default_rng(0)

    def pairs(row):
        return set(itertools.combinations(row.items(), 2))

    missing = set()
    for (one, ones), (two, twos) in itertools.combinations(options.items(), 2):
        missing |= {((one, x), (two, y)) for x in ones for y in twos}
    rows = []
    while missing:
        drawn = [{name: values[noise.integers(len(values))] for name, values in options.items()} for _ in range(50)]
        rows.append(max(drawn, key=lambda row: len(missing & pairs(row))))
        missing -= pairs(rows[-1])
    return rows


VARIANTS = {
    "plain": {},
    "gated silu layer": {"gated": True, "activation": "silu", "norm": "layer", "kv_heads": 2},
    "tied capped": {"tied": True, "logit_soft_cap": 3.0, "qk_norm": False, "activation": "relu"},
    "two blocks of queries": {"sequence_length": 66, "depth": 1, "kv_heads": 2, "rope_base": 100.0},
}


def perturbed(model, seed=0):
    """Float64 weights in which gains and biases have moved."""
    weights = jax.tree.map(lambda w: np.asarray(w, np.float64), model.init(jax.random.key(seed)))
    noise = np.random.default_rng(seed)
    return jax.tree.map(lambda w: 0.4 * w + 0.2 * noise.normal(size=w.shape), weights)


def random_tokens(config, batch=2, extra=1, seed=1):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, config.sequence_length + extra), np.int32)


@pytest.mark.parametrize("changes", [VARIANTS["two blocks of queries"], *pairwise(OPTIONS)], ids=str)
def test_logits_and_loss_equal_the_reference(changes):
    config = model_config(compute_dtype="float64", **changes)
    tokens = random_tokens(config)
    with jax.enable_x64(True):
        model = models.build(config)
        weights = perturbed(model)

        @jax.jit
        def everything(w):
            nll = model.nll(w, tokens, MULTIPLIERS)
            return model.logits(w, tokens[:, :-1], MULTIPLIERS), model.loss(w, tokens, MULTIPLIERS, 0.01), nll

        ours, (total, parts), nll = everything(weights)
    expected = reference.logits(config, weights, tokens[:, :-1], MULTIPLIERS)
    nats, log_z = reference.nats_and_log_z(expected, tokens[:, 1:])
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(nll, nats.sum(), rtol=1e-10)
    np.testing.assert_allclose(parts["nll"], nats.sum(), rtol=1e-10)
    np.testing.assert_allclose(parts["z_loss"], 0.01 * (log_z**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(total, parts["nll"] + parts["z_loss"], rtol=1e-12)


@pytest.mark.parametrize("name", ["plain", "gated silu layer", "tied capped", "two blocks of queries"])
def test_gradient_equals_finite_differences(name):
    """Along one random direction per weight, in float64; the reference's loss is differenced, not ours."""
    config = model_config(compute_dtype="float64", **VARIANTS[name])
    tokens = random_tokens(config, batch=1)
    with jax.enable_x64(True):
        model = models.build(config)
        weights = perturbed(model)
        gradient = jax.jit(jax.grad(lambda w: model.loss(w, tokens, MULTIPLIERS, 0.01)[0]))(weights)

    def loss(weights):
        nats, log_z = reference.nats_and_log_z(
            reference.logits(config, weights, tokens[:, :-1], MULTIPLIERS), tokens[:, 1:]
        )
        return nats.sum() + 0.01 * (log_z**2).sum()

    leaves, structure = jax.tree.flatten(weights)
    noise = np.random.default_rng(3)
    for i, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        direction = noise.normal(size=leaf.shape)
        moved = [structure.unflatten([*leaves[:i], leaf + h * direction, *leaves[i + 1 :]]) for h in (1e-5, -1e-5)]
        difference = (loss(moved[0]) - loss(moved[1])) / 2e-5
        np.testing.assert_allclose(np.sum(np.asarray(slope) * direction), difference, rtol=1e-6, atol=1e-7)


def test_a_future_token_changes_no_past_logit():
    config = model_config(sequence_length=70, depth=1, compute_dtype="float64")
    tokens = random_tokens(config, batch=1, extra=0)
    with jax.enable_x64(True):
        model = models.build(config)
        weights = perturbed(model)
        logits = jax.jit(lambda t: model.logits(weights, t, MULTIPLIERS))
        before = np.asarray(logits(tokens))
        for position in (1, 63, 64, 65, 69):
            changed = tokens.copy()
            changed[0, position] = (changed[0, position] + 1) % config.vocab_size
            after = np.asarray(logits(changed))
            np.testing.assert_array_equal(after[0, :position], before[0, :position])
            assert np.abs(after[0, position] - before[0, position]).max() > 1e-3


@pytest.mark.parametrize("changes", [{"remat": "full"}, {"unroll": 1}, {"unroll": 2, "remat": "full"}])
def test_remat_and_unroll_change_neither_weights_nor_results(changes):
    unroll = changes.pop("unroll", None)
    config, tokens = model_config(), random_tokens(model_config())
    one, other = models.build(config), models.build(model_config(**changes), unroll)
    weights = one.init(jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, weights, other.init(jax.random.key(4)))
    weights = jax.tree.map(lambda w: 0.3 * w, weights)
    ours, theirs = (
        jax.jit(jax.value_and_grad(lambda w, m=model: m.loss(w, tokens, MULTIPLIERS, 0.0)[0]))(weights)
        for model in (one, other)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), ours[1], theirs[1])


def test_bfloat16_compute_gives_float32_logits_near_those_of_float32():
    tokens = random_tokens(model_config())
    model, half = models.build(model_config()), models.build(model_config(compute_dtype="bfloat16"))
    weights = jax.tree.map(lambda w: jnp.asarray(0.3 * w), model.init(jax.random.key(0)))
    full, rough = (
        np.asarray(jax.jit(lambda w, m=m: m.logits(w, tokens[:, :-1], MULTIPLIERS))(weights)) for m in (model, half)
    )
    assert rough.dtype == np.float32
    error = np.sqrt(np.mean((full - rough) ** 2) / np.mean(full**2))
    assert 1e-4 < error < 0.03
    gradient = jax.jit(jax.grad(lambda w: half.loss(w, tokens, MULTIPLIERS, 0.0)[0]))(weights)
    assert all(g.dtype == np.float32 for g in jax.tree.leaves(gradient))


def test_a_mesh_changes_no_loss_and_no_gradient():
    """Data-parallel, FSDP and tensor axes of two devices each, against one device, in float64."""
    config = model_config(compute_dtype="float64", kv_heads=2, gated=True)
    tokens = random_tokens(config, batch=4)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    with jax.enable_x64(True):
        model = models.build(config)
        weights = perturbed(model)
        step = jax.jit(jax.value_and_grad(lambda w, t: model.loss(w, t, MULTIPLIERS, 0.01)[0]))
        places = jax.tree.map(
            lambda r: NamedSharding(mesh, partition_spec(r, mesh.shape)), model.records(), is_leaf=is_record
        )
        batch = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        alone, split = step(weights, tokens), step(jax.device_put(weights, places), batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10), alone, split)


def test_equal_configs_give_equal_models_that_hash():
    one, same, other = (models.build(model_config(**changes)) for changes in ({}, {}, {"depth": 3}))
    assert one == same and hash(one) == hash(same) and one != other
