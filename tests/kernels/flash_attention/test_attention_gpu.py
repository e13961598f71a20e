"""The GPU kernels: interpreted values and gradients against the float64 definition; compiled for an H200."""

from __future__ import annotations

import functools

import attention_draws as draws
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings

from kernels_pallas import aot_gpu, dispatch
from kernels_pallas.flash_attention import flash_attention, gpu, gpu_backward
from kernels_pallas.flash_attention.api import checked
from kernels_pallas.flash_attention.mask import Mask

many = settings(
    max_examples=10, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
SMALL = {"queries": 32, "keys": 64}  # several blocks of each, of different sizes


@pytest.fixture
def interpreted(monkeypatch, request):
    """The public function takes the GPU's form, interpreted, in small blocks or those that the test asks for."""
    sizes = getattr(request, "param", SMALL)
    for module, name in ((gpu, "forward"), (gpu_backward, "backward")):
        changed = functools.partial(getattr(module, name), block_sizes=sizes, interpret=True)
        monkeypatch.setattr(module, name, changed)
    monkeypatch.setattr(dispatch, "by_platform", lambda *args, tpu, gpu, cpu, what: gpu(*args))


CAUSAL = {"shape": (1, 150, 150, 2, 1, 16), "options": {"is_causal": True}}
EVERYTHING = {
    "shape": (2, 100, 130, 4, 2, 24),
    "options": {"is_causal": True, "local_window_size": 40, "first_tokens": 5, "logits_soft_cap": 3.0},
    "bias": (1, 4),
    "sinks": True,
    "segments": 2,
}


@pytest.mark.parametrize("problem", [CAUSAL, EVERYTHING], ids=["causal", "everything"])
def test_values_and_gradients(interpreted, problem):
    draws.assert_as_exact_as_the_definition(flash_attention, problem)


def test_bfloat16_operands_under_an_ambient_precision(interpreted):
    problem = {"shape": (1, 100, 100, 2, 1, 16), "options": {"local_window_size": (50, 10)}}
    with jax.default_matmul_precision("highest"):
        draws.assert_as_exact_as_the_definition(flash_attention, problem, dtype=jnp.bfloat16)


@pytest.mark.parametrize("queries, keys", [(1, 1), (2, 2), (3, 20)])
def test_few_queries(interpreted, queries, keys):
    """A query that sees one key has no gradient: the definition finds 0, the sum of g times results only nearly."""
    found, ids, cotangents = draws.arrays((1, queries, keys, 1, 1, 64))
    run = functools.partial(draws.results, found=found, ids=ids, cotangents=cotangents, options={"is_causal": True})
    with jax.enable_x64(True):
        exact = run(draws.defined, dtype=jnp.float64)
    products = np.abs(np.einsum("btnh,bsnh->bts", cotangents[0], found["value"])).max()
    entries = max(np.abs(found[name]).max() for name in ("query", "key"))
    bound = 2 * np.finfo(np.float32).eps * products * entries * 64**-0.5  # two roundings of the largest term
    wrong = draws.errors(run(flash_attention, dtype=jnp.float32), exact)
    assert max(wrong.values()) <= bound, f"errors {wrong}, bound {bound:.3g}"


@pytest.mark.long
@pytest.mark.parametrize("interpreted", [{"queries": 128, "keys": 128}], indirect=True, ids=["blocks of 128"])
@many
@given(draws.problems(longest=300, widths=(16, 64, 96, 128)))
def test_options_widely(interpreted, problem):
    """By root mean squares, for the largest error is chance; in blocks of 128, for CPUs round small products more."""
    assume(min(problem["shape"][1:3]) >= 16)  # fewer: see test_few_queries
    found, ids, cotangents = draws.arrays(**problem)
    run = functools.partial(draws.results, found=found, ids=ids, cotangents=cotangents, options=problem["options"])
    with jax.enable_x64(True):
        exact = run(draws.defined, dtype=jnp.float64)
    theirs, ours = run(draws.defined, dtype=jnp.float32), run(flash_attention, dtype=jnp.float32)
    for name, x in exact.items():
        bound = 2 * np.linalg.norm(theirs[name] - x) + 4 * np.finfo(np.float32).eps * np.linalg.norm(x)
        assert np.linalg.norm(ours[name] - x) <= bound, name


def test_vmap_is_a_larger_batch(interpreted):
    found = [draws.arrays((1, 40, 40, 1, 1, 16), sinks=True, seed=seed)[0] for seed in range(2)]
    runs = {name: jnp.stack([jnp.asarray(run[name], jnp.float32) for run in found]) for name in found[0]}

    @jax.value_and_grad
    def loss(run):
        return jnp.sum(jnp.cos(flash_attention(**run, is_causal=True)))

    together, single = jax.jit(jax.vmap(loss))(runs), jax.jit(loss)
    alone = [single({name: x[run] for name, x in runs.items()}) for run in range(2)]
    alone = jax.tree.map(lambda *x: np.stack(x), *alone)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), together, alone)


MASKS = [
    Mask(200, 200),
    Mask(200, 150, None, 0, 0, True, -50),
    Mask(130, 200, 40, 0, 0, True, 70),
    Mask(200, 200, 30, 9),
    Mask(150, 220, 20, 0, 50, True, 70),
    Mask(150, 220, 20, 30, 90, False, 70),
]


@pytest.mark.parametrize("seen", MASKS, ids=str)
def test_each_block_pair_that_has_something_to_see_is_met_once_and_masked_unless_seen_whole(seen):
    query, key = (
        jax.ShapeDtypeStruct((1, seen.queries, 1, 64), "float32"),
        jax.ShapeDtypeStruct((1, seen.keys, 1, 64), "float32"),
    )
    made = gpu.plan(query, key, None, None, None, SMALL, mask=seen, scale=1.0, logits_soft_cap=None)
    at = np.arange(seen.queries)[:, None], np.arange(seen.keys)
    table = np.ones((seen.queries, seen.keys), bool) if not seen.bounded else np.asarray(seen.visible(*at))
    blocks = np.zeros((made.query_blocks * made.queries, made.key_blocks * made.keys), bool)
    blocks[: seen.queries, : seen.keys] = table
    blocks = blocks.reshape(made.query_blocks, made.queries, made.key_blocks, made.keys)
    some = blocks.any((1, 3))

    def met(spans, block):
        found = {}
        for low, high, masked in spans(made, jnp.int32(block), None):
            for other in range(int(low), int(high)):
                assert other not in found
                found[other] = masked
        return found

    for i in range(made.query_blocks):
        found = met(gpu.key_spans, i)
        assert set(np.flatnonzero(some[i])) <= set(found)
        there = blocks[i, : seen.queries - i * made.queries]
        assert all(there[:, j].all() for j, masked in found.items() if not masked)
    for j in range(made.key_blocks):
        found = met(gpu_backward._query_spans, j)
        assert set(np.flatnonzero(some[:, j])) <= set(found)
        there = blocks[:, :, j, : seen.keys - j * made.keys]
        assert all(there[i].all() for i, masked in found.items() if not masked)
    if seen.bounded and not seen.first:
        pairs = sum(len(met(gpu.key_spans, i)) for i in range(made.query_blocks))
        assert pairs <= some.sum() + made.query_blocks  # work only where there is something to see


def test_cost_estimates_count_products_of_the_definition():
    """Full attention: two products forward, three and four backward, and two for the gradient of a bias."""
    query, key, bias = jnp.zeros((2, 256, 4, 64)), jnp.zeros((2, 256, 2, 64)), jnp.zeros((1, 1, 256, 256))
    setting, *arrays = checked(query, key, key, bias, None, None)

    def both(query, rows):
        gpu.forward(query, *arrays[1:], **setting.of_scores)
        return gpu_backward.backward(query, *arrays[1:], rows, rows, None, query, **setting.of_scores)

    calls = [e.params for e in jax.make_jaxpr(both)(query, query[..., 0]).eqns if e.primitive.name == "pallas_call"]
    product = 2 * 2 * 4 * 256 * 256 * 64
    assert {call["name"]: call["cost_estimate"].flops / product for call in calls} == {
        "flash_attention_forward": 2,
        "flash_attention_backward_queries": 3,
        "flash_attention_backward_keys": 4,
        "flash_attention_backward_bias": 2,
    }


def program(dtype, width, length=4096):
    """Causal attention, two query heads to a key head, with its gradients; and their arguments."""
    query = jax.ShapeDtypeStruct((1, length, 2, width), dtype)
    key = jax.ShapeDtypeStruct((1, length, 1, width), dtype)

    def both(query, key, value, g):
        out, back = jax.vjp(functools.partial(flash_attention, is_causal=True), query, key, value)
        return out, back(g)

    return both, query, key, key, query


def program_of_everything(dtype, width):
    """Gradients with every option, and their arguments."""

    def loss(query, key, value, bias, sinks):
        ids = jnp.arange(1000, dtype=jnp.int32)[None] // 300
        options = {"local_window_size": (100, 5), "first_tokens": 4, "logits_soft_cap": 30.0, "segment_ids": ids}
        return jnp.sum(flash_attention(query, key, value, bias, sinks=sinks, **options).astype(jnp.float32))

    shapes = (1, 1000, 4, width), (1, 1000, 2, width), (1, 1000, 2, width), (1, 4, 1000, 1000), (4,)
    return jax.value_and_grad(loss, range(5)), *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)


KERNELS = ("flash_attention_forward", "flash_attention_backward_queries", "flash_attention_backward_keys")
EVERY_KERNEL = (*KERNELS, "flash_attention_backward_bias")


@pytest.mark.parametrize(
    "made, kernels", [(program, KERNELS), (program_of_everything, EVERY_KERNEL)], ids=["causal", "everything"]
)
def test_a_program_for_cuda_has_the_kernels(made, kernels):
    text = aot_gpu.lower_for_cuda(*made("bfloat16", 96))
    assert text.count("custom_call @__gpu$xla.gpu.triton") == len(kernels) and all(name in text for name in kernels)


def test_a_program_for_cuda_in_float64_has_none():
    with jax.enable_x64(True):
        assert "triton" not in aot_gpu.lower_for_cuda(*program("float64", 64))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("width", [64, 128])
def test_compiles_for_an_h200_with_no_copy_of_an_operand(compile_for_h200, dtype, width):
    made = compile_for_h200(*program(dtype, width))
    assert all(name in made.as_text() for name in KERNELS)
    statistics = 2 * 2 * 4096 * 4  # log-sum-exp and delta of two heads, float32: nothing else lies beside the results
    assert statistics <= made.memory_analysis().temp_size_in_bytes <= statistics + 1024


def test_memory_on_an_h200_grows_as_length(compile_for_h200):
    temporary = [compile_for_h200(*program("bfloat16", 64, n)).memory_analysis() for n in (8192, 32768)]
    assert temporary[1].temp_size_in_bytes <= 4.2 * temporary[0].temp_size_in_bytes


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("width", [64, 96, 128, 256])
def test_every_option_compiles_for_an_h200(compile_for_h200, dtype, width):
    made = compile_for_h200(*program_of_everything(dtype, width))
    assert all(name in made.as_text() for name in EVERY_KERNEL)


def test_blocks_beyond_shared_memory_are_refused(compile_for_h200):
    setting, *arrays = checked(*(jnp.zeros((1, 1024, 1, 256), "bfloat16") for _ in range(3)), None, None, None)
    large = functools.partial(gpu.forward, **setting.of_scores, block_sizes={"queries": 256, "keys": 256})
    with pytest.raises(Exception, match="[Ss]hared memory"):
        compile_for_h200(lambda q, k, v: large(q, k, v, *arrays[3:]), *arrays[:3])
