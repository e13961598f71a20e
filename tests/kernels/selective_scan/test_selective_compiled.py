"""What the TPU compiler says of the kernels. Everything here is static."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu
from selective_problem import problem, results
from test_selective_values import SMALL, kernel_here, ours

from kernels_pallas.chips import CHIPS
from kernels_pallas.selective_scan import selective_scan
from kernels_pallas.selective_scan.cases import CASES, case

MAIN = [case(direction, jnp.float32) for direction in ("forward", "backward")]


def well_compiled(compile_for, made, chip):
    program = compile_for(chip, made.function, *made.arguments, free_layouts=True)
    (kernel,) = program.kernels
    assert kernel.name.startswith(f"selective_scan_{made.direction}") and kernel.vmem_bytes < CHIPS[chip].vmem_bytes
    assert program.temp_bytes <= 0.05 * made.floor_bytes
    if chip == "tpu7x":  # what fits its memory on the chip is fetched there ahead of the kernel, and counted twice
        assert {kind for kind, _ in program.moves()} <= {"copy-start"}
    else:
        assert program.moves() == [] and program.accessed_bytes <= 1.1 * made.floor_bytes


@pytest.mark.parametrize("made", MAIN, ids=lambda c: f"{c.direction} {c.label}")
def test_the_kernel_on_v5e(compile_for, made):
    well_compiled(compile_for, made, "v5e")


@pytest.mark.long
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("made", CASES, ids=lambda c: f"{c.direction} {c.label}")
def test_every_case_on_every_chip(compile_for, made, segments, chip):
    dtype = jnp.dtype(made.label.split()[0])
    well_compiled(compile_for, case(made.direction, dtype, segments=True, length=2000) if segments else made, chip)


@pytest.mark.parametrize("made", MAIN, ids=lambda c: f"{c.direction} {c.label}")
def test_what_the_call_declares(made):
    """Cores of v5p share batch and channels; every exponential once forward, twice where states are made again."""
    (call,) = (e for e in jax.make_jaxpr(made.function)(*made.arguments).eqns if e.primitive.name == "pallas_call")
    assert call.params["compiler_params"].dimension_semantics == ("parallel", "parallel", "arbitrary")
    size = 2 * 2048 * 2048 * 16
    assert call.params["cost_estimate"].transcendentals == {"forward": 1, "backward": 2}[made.direction] * size


def training_step(compile_for, length, width):
    shape = jax.ShapeDtypeStruct
    x, columns = shape((1, length, width), jnp.float32), shape((1, length, 16), jnp.float32)

    def step(*arrays):
        return jax.value_and_grad(lambda *a: jnp.sum(selective_scan(*a) ** 2), argnums=range(5))(*arrays)

    return compile_for("v5e", step, x, x, shape((width, 16), jnp.float32), columns, columns, free_layouts=True)


@pytest.mark.parametrize("length", [8192, *(pytest.param(n, marks=pytest.mark.long) for n in (32768, 131072))])
def test_memory_of_a_training_step_is_a_constant_share_of_its_input(compile_for, length):
    """At T and at 4 T at most 1.2 times x: y's cotangent, a state of 16 numbers in 128 tokens, sums of B and C.

    The ratio of the two says less: at T the compiler keeps the states in the chip's memory, at 4 T it cannot.
    """
    for tokens in (length, 4 * length):
        width = 2**26 // length
        assert training_step(compile_for, tokens, width).temp_bytes <= 1.2 * tokens * width * 4


def test_no_races(monkeypatch):
    made = problem(batch=1, length=256, width=128, n=8, extras=False, segments=True)
    kernel_here(monkeypatch, pltpu.InterpretParams(detect_races=True))
    found = results(ours, made, jnp.float32, block_sizes=SMALL)
    assert not interpreter.races.races_found
    kernel_here(monkeypatch)
    for x, y in zip(found, results(ours, made, jnp.float32, block_sizes=SMALL)):
        if x is not None:
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
