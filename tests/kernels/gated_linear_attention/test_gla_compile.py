"""What the TPU compiler says of the kernels, with no TPU: static."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.cases import size_of
from kernels_pallas.chips import CHIPS
from kernels_pallas.gated_linear_attention import gated_linear_attention, tpu
from kernels_pallas.gated_linear_attention.cases import CASES
from tests.kernels.jaxprs import pallas_calls, work


def shapes(length, gate="scalar", width=128, dtype=jnp.bfloat16, batch=1, heads=8):
    """Arguments of the public function and their gradient's cotangent."""
    x = jax.ShapeDtypeStruct((batch, length, heads, width), dtype)
    g = {"scalar": x.shape[:3], "vector": x.shape, "head": (heads,)}[gate]
    return x, x, x, jax.ShapeDtypeStruct(g, jnp.float32), x


def trained(q, k, v, g, do, **options):
    o, pull = jax.vjp(lambda *x: gated_linear_attention(*x, **options), q, k, v, g)
    return o, pull(do)


def fits(made):
    assert made.kernels
    for kernel in made.kernels:
        assert 0 < kernel.vmem_bytes <= made.chip.vmem_most_bytes


@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_v5e_moves_nothing_and_reads_no_more_than_it_must(compile_for, gate):
    arguments = shapes(2048, gate)
    made = compile_for("v5e", trained, *arguments, free_layouts=True)
    fits(made)
    assert {k.name.split(".")[0] for k in made.kernels} == {
        f"gated_linear_attention_{gate}_{d}" for d in ("forward", "backward")
    }
    assert made.moves() == []
    q, k, v, g, do = arguments
    saved = 8 * (2048 // 128) * 128 * 128 * 4
    # forward: in, out, saved states; backward: in with o's gradient and the states, out
    floor = 2 * size_of(q, k, v, g) + 2 * size_of(do) + size_of(q, k, v, g) + 2 * saved
    assert made.accessed_bytes <= 1.1 * floor


def test_memory_of_the_gradient_grows_with_the_sequence_alone(compile_for, lengths=(8192, 32768)):
    temps = []
    for length in lengths:
        arguments = shapes(length, heads=16)
        made = compile_for("v5e", trained, *arguments, free_layouts=True)
        temps.append(made.temp_bytes)
        assert made.temp_bytes < size_of(*arguments[:3])
    assert temps[1] <= 4.2 * temps[0]


@pytest.mark.long
def test_memory_at_long_sequences(compile_for):
    test_memory_of_the_gradient_grows_with_the_sequence_alone(compile_for, (32768, 131072))


def test_ambient_highest_precision_compiles(compile_for):
    with jax.default_matmul_precision("highest"):
        fits(compile_for("v5e", trained, *shapes(512)))


@pytest.mark.long
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("gate", ["scalar", "vector"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("length", [1, 100, 512, 700])
def test_every_chip_dtype_and_width(compile_for, chip, gate, dtype, width, length):
    fits(compile_for(chip, trained, *shapes(length, gate, width, dtype)))


@pytest.mark.parametrize("length", [pytest.param(1, marks=pytest.mark.long), 300])
def test_short_and_ragged_sequences_compile(compile_for, length):
    fits(compile_for("v5e", trained, *shapes(length)))


@pytest.mark.long
@pytest.mark.parametrize("heads, shared", [(1, 1), (12, 1), (8, 8), (16, 16), (24, 3)])
def test_numbers_of_heads(compile_for, heads, shared):
    q, k, v, g, do = shapes(512, heads=heads)
    few = jax.ShapeDtypeStruct((*q.shape[:2], heads // shared, q.shape[3]), q.dtype)
    fits(compile_for("v5e", trained, few, few, v, g, do))


def test_two_cores_share_the_work():
    """On v5p the axes of batch and heads are parallel: only the walk over chunks is not."""
    seen = tpu.Plan(*(shapes(512)[i] for i in (0, 2)), jax.ShapeDtypeStruct((1, 8, 512), jnp.float32), 128, 8)
    assert seen.compiler_params().dimension_semantics == ("parallel", "parallel", "arbitrary")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.direction} {case.label}")
def test_declared_cost_is_that_of_the_program(case):
    """Products of matrices and exponentials of the kernel's own jaxpr, times its grid."""
    (call,) = pallas_calls(jax.make_jaxpr(case.function)(*case.arguments).jaxpr)
    flops, exponentials = work(call.params["jaxpr"])
    (steps,) = case.steps.values()
    cost = call.params["cost_estimate"]
    assert cost.flops == steps * flops
    assert cost.transcendentals == pytest.approx(steps * exponentials, rel=0.01)
    assert cost.bytes_accessed == case.floor_bytes


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_no_program_races_another(kind):
    """The interpreter of TPU memory, which watches every access."""
    interpret = pltpu.InterpretParams(detect_races=True)
    q = jax.random.normal(jax.random.key(0), (1, 2, 256, 16))
    g = -jnp.abs(q if kind == "vector" else q[..., 0])
    state = jnp.zeros((1, 2, 16, 16))
    options = {"scale": 1.0, "chunk": 128, "heads": 1, "interpret": interpret}
    _, last, saved = tpu.forward(q, q, q, g, state, **options)
    dq, *_ = tpu.backward(q, q, q, g, saved, q, last, **options)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter

    assert jnp.isfinite(dq).all() and not interpreter.races.races_found
