"""The decoder's attention against its definition, on every platform's path, on a mesh, and however runs are executed.

Arrays are [batch, heads, head width, length].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from settings import model_config

from kernels_pallas import aot, dispatch
from kernels_pallas.chips import CHIPS
from kernels_pallas.flash_attention import gpu, gpu_backward, tpu, tpu_backward
from lab import models
from lab.models.attention import attend
from lab.models.axes import partition_spec
from lab.models.weight import is_record

MULTIPLIERS = {"embedding": 1.3, "residual": {"branch": 0.7}, "attention": 1.1, "readout": 0.9}


def defined(q, k, v):
    """Repeated keys and values, a full score matrix, jax.nn.softmax, autodiff's gradient."""
    groups = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(x, groups, axis=1) for x in (k, v))
    scores = jnp.einsum("bhdt,bhds->bhts", q, k)
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("bhts,bhds->bhdt", jax.nn.softmax(jnp.where(causal, scores, -jnp.inf)), v)


def draw(batch, length, head_width, *heads, dtype=np.float64):
    noise = np.random.default_rng(5)
    return [noise.normal(size=(batch, h, head_width, length)).astype(dtype) for h in heads]


def value_and_gradients(function):
    def both(q, k, v, g):
        out, back = jax.vjp(function, q, k, v)
        return out, back(g)

    return both


def assert_close(ours, theirs, rtol=1e-10, atol=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), ours, theirs)


@pytest.mark.parametrize("length, kv_heads", [(1, 4), (65, 2), (128, 1), (600, 2)])
def test_values_and_gradients_equal_the_definition(length, kv_heads):
    with jax.enable_x64(True):
        arrays = draw(2, length, 6, 4, kv_heads, kv_heads, 4)
        arrays[0] *= 5  # sharp probabilities
        ours, theirs = (jax.jit(value_and_gradients(f))(*arrays) for f in (attend, defined))
    assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_vmap_and_map_over_runs_equal_each_run_alone():
    with jax.enable_x64(True):
        q, k, v, g = (np.stack([x, 2 * x, -x]) for x in draw(2, 70, 4, 4, 2, 2, 4))
        one = value_and_gradients(attend)
        alone = [one(*arrays) for arrays in zip(q, k, v, g, strict=True)]
        alone = jax.tree.map(lambda *x: np.stack(x), *alone)
        together = jax.jit(jax.vmap(one))(q, k, v, g)
        looped = jax.jit(lambda *a: jax.lax.map(lambda x: one(*x), a))(q, k, v, g)
    assert_close(alone, together)
    assert_close(alone, looped)


@pytest.mark.parametrize("how", ["by XLA", "by the context's mesh"])
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_sharded_over_sequences_and_heads(how, kv_heads):
    """Four devices, two along the sequences and two along the heads, if they divide: then there is no collective."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    spec = NamedSharding(mesh, PartitionSpec("data", "tensor" if kv_heads == 2 else None))
    both = value_and_gradients(attend)

    def on_mesh(*arrays):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return both(*arrays)

    with jax.enable_x64(True):
        arrays = draw(2, 70, 4, 4, kv_heads, kv_heads, 4)
        alone = jax.jit(both)(*arrays)
        placed = [jax.device_put(x, spec) for x in arrays]
        split = jax.jit(both if how == "by XLA" else on_mesh, out_shardings=spec)
        program = split.lower(*placed).compile()
        found = program(*placed)
    if kv_heads == 2:
        text = program.as_text()
        assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective"))
    assert_close(alone, found)


def by_tpu_kernels(monkeypatch):
    for module, name in ((tpu, "forward"), (tpu_backward, "backward")):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), interpret=True))
    monkeypatch.setattr(dispatch, "by_platform", lambda *args, tpu, gpu, cpu, what: tpu(*args))


def by_gpu_kernels(monkeypatch):
    for module, name in ((gpu, "forward"), (gpu_backward, "backward")):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), interpret=True))
    monkeypatch.setattr(dispatch, "by_platform", lambda *args, tpu, gpu, cpu, what: gpu(*args))


@pytest.mark.parametrize("kernels", [by_tpu_kernels, by_gpu_kernels])
def test_a_decoder_by_the_kernels_is_the_decoder_on_a_cpu(monkeypatch, kernels):
    """Loss and every gradient in float32: by interpreted kernels as near to float64's as by plain operations, twice."""
    changes = {"width": 32, "depth": 1, "heads": 2, "kv_heads": 1, "sequence_length": 150}
    tokens = np.random.default_rng(1).integers(0, 24, (2, 151), np.int32)

    def errors(found):
        return jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x, np.float64) - y))), found, exact)

    def trained(dtype):
        model = models.build(model_config(compute_dtype=dtype, **changes))
        weights = jax.tree.map(lambda w: 0.3 * np.asarray(w, dtype), model.init(jax.random.key(0)))
        return jax.jit(jax.value_and_grad(lambda w: model.loss(w, tokens, MULTIPLIERS, 0.0)[0] / tokens.size))(weights)

    with jax.enable_x64(True):
        exact = jax.tree.map(np.asarray, trained("float64"))
    plain = errors(trained("float32"))
    kernels(monkeypatch)
    for ours, theirs, scale in zip(*map(jax.tree.leaves, (errors(trained("float32")), plain, exact))):
        assert ours <= 2 * theirs + 4 * np.finfo(np.float32).eps * np.max(np.abs(scale))


@pytest.mark.parametrize("run_axis", [False, True])
def test_a_decoder_on_a_mesh_of_tpus_compiles_with_the_kernels(run_axis):
    """The gradient over four v5e: sequences and heads split, or runs and sequences; XLA would split no kernel."""
    try:
        chips = aot.devices(CHIPS["v5e"], "v5e:2x2")
    except aot.Unavailable as error:
        pytest.skip(f"nothing compiled for TPUs: {error}")
    config = model_config(width=256, heads=2, kv_heads=2, sequence_length=256, compute_dtype="bfloat16")
    model = models.build(config, unroll=1)
    mesh = Mesh(np.array(chips).reshape((2, 2, 1) if run_axis else (1, 2, 2)), ("run", "data", "tensor"))

    def place(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    def weight(record):
        return place((2, *record.shape), jnp.float32, "run", *partition_spec(record, mesh.shape))

    def gradient(weights, tokens):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            one = jax.grad(lambda w: model.loss(w, tokens, MULTIPLIERS, 0.0)[0])
            return jax.vmap(one, spmd_axis_name="run")(weights)

    weights = jax.tree.map(weight, model.records(), is_leaf=is_record)
    tokens = place((4, config.sequence_length + 1), jnp.int32, "data")
    program = jax.jit(gradient).lower(weights, tokens).compile().as_text()
    assert "flash_attention_forward" in program and "flash_attention_backward" in program
