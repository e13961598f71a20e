"""What the TPU compiler says of the kernels. Everything here is static."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diagonal_problem import problem, results
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu
from test_diagonal_values import SMALL, kernel_here, ours

from kernels_pallas.chips import CHIPS
from kernels_pallas.diagonal_recurrence import diagonal_recurrence
from kernels_pallas.diagonal_recurrence.cases import CASES, case

GOOD = 1.3  # times the floor of HBM
# Where bfloat16 leaves fewer cycles than the arithmetic of 1,024 elements takes (about seven): what was reached.
SLOWER = {("v5p", "bfloat16"): 1.45, ("v6e", "bfloat16"): 1.5, ("tpu7x", "bfloat16"): 2.5, ("v4", "bfloat16"): 2.6}
# Where what depends on a constant decay alone is kept and spilled, and on v4, whose scheduler spills more.
SPILLS = {"channel": 0.33, "v4": 0.15}


def well_compiled(compile_for, made, chip):
    program = compile_for(chip, made.function, *made.arguments, free_layouts=True)
    (kernel,) = program.kernels
    ((name, steps),) = made.steps.items()
    chip = CHIPS[chip]
    assert kernel.name.startswith(name) and kernel.vmem_bytes < chip.vmem_bytes
    assert program.moves() == [] and program.temp_bytes <= 3 * 4 * 2048 * 4  # three states, no tokens
    assert program.accessed_bytes <= 1.1 * made.floor_bytes
    dtype, _, decay = made.label.split()[:3]
    taken = kernel.bundles * steps / chip.cores / (made.floor_bytes / chip.hbm_bytes_per_cycle)
    assert taken <= SLOWER.get((chip.name, dtype), GOOD)
    share = max(SPILLS.get(decay, 0.1), SPILLS.get(chip.name, 0.1))
    assert kernel.spill_stores < share * kernel.bundles


MAIN = [case(direction, jnp.float32) for direction in ("forward", "backward")]


@pytest.mark.parametrize("made", MAIN, ids=lambda c: f"{c.direction} {c.label}")
def test_the_scan_takes_no_longer_than_its_memory_traffic(compile_for, made):
    well_compiled(compile_for, made, "v5e")


@pytest.mark.long
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("made", CASES, ids=lambda c: f"{c.direction} {c.label}")
def test_every_case_on_every_chip(compile_for, made, chip):
    well_compiled(compile_for, made, chip)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("shape", [(1, 5, 40), (2, 300, 1100)], ids=str)
def test_ragged_shapes_compile(compile_for, direction, shape):
    made = case(direction, jnp.bfloat16, "token", *shape, segments=True)
    program = compile_for("v5e", made.function, *made.arguments, free_layouts=True)
    assert len(program.kernels) == 1


@pytest.mark.parametrize("made", MAIN, ids=lambda c: f"{c.direction} {c.label}")
def test_what_the_call_declares(made):
    """Cores of v5p share batch and channels; two operations an element of the definition forward, three back."""
    (call,) = (e for e in jax.make_jaxpr(made.function)(*made.arguments).eqns if e.primitive.name == "pallas_call")
    assert call.params["compiler_params"].dimension_semantics == ("parallel", "parallel", "arbitrary")
    cost, size = call.params["cost_estimate"], 4 * 2048 * 2048
    assert cost.flops == {"forward": 2, "backward": 3}[made.direction] * size and cost.transcendentals == size
    assert made.floor_bytes <= cost.bytes_accessed <= 1.03 * made.floor_bytes


def training_step(compile_for, length, width):
    x = jax.ShapeDtypeStruct((1, length, width), jnp.float32)

    def step(x, log_a):
        return jax.value_and_grad(lambda x, g: jnp.sum(diagonal_recurrence(x, g) ** 2), argnums=(0, 1))(x, log_a)

    return compile_for("v5e", step, x, x, free_layouts=True)


@pytest.mark.parametrize("length", [8192, *(pytest.param(n, marks=pytest.mark.long) for n in (32768, 131072))])
def test_memory_of_a_training_step_grows_with_the_sequence(compile_for, length):
    """With arrays of 256 MB, twice what the compiler may keep on the chip."""
    short, long = (training_step(compile_for, n, 2**26 // length) for n in (length, 4 * length))
    assert 2**28 <= short.temp_bytes and long.temp_bytes <= 4.2 * short.temp_bytes
    assert long.temp_bytes <= 1.01 * long.argument_bytes  # h and its cotangent; x and log_a


def test_no_races(monkeypatch):
    made = problem(batch=1, length=256, width=128, decay=0.1, segments=True)
    kernel_here(monkeypatch, pltpu.InterpretParams(detect_races=True))
    found = results(ours, made, jnp.float32, block_sizes=SMALL)
    assert not interpreter.races.races_found
    kernel_here(monkeypatch)
    for x, y in zip(found, results(ours, made, jnp.float32, block_sizes=SMALL)):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
