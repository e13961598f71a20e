"""Compiling for TPUs that are not there: what is read of a kernel is what was put into it."""

from __future__ import annotations

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import aot, dispatch, llo
from kernels_pallas.chips import CHIPS, current


def double(x, rows=256, order="parallel"):
    """A copy kernel on [R, 128]: two blocks of `rows` in VMEM for each of input and output."""

    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    block = pl.BlockSpec((rows, 128), lambda i: (i, 0))
    cost = pl.CostEstimate(flops=x.size, transcendentals=0, bytes_accessed=2 * x.size * 4)
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(x.shape[0] // rows,),
        in_specs=[block],
        out_specs=block,
        compiler_params=pltpu.CompilerParams(dimension_semantics=(order,)),
        cost_estimate=cost,
        name="double",
    )(x)


TABLE = jax.ShapeDtypeStruct((1 << 19, 128), jnp.float32)  # too large for the compiler to keep in VMEM


@pytest.mark.parametrize("chip", CHIPS)
def test_a_kernel_is_read_on_every_chip(compile_for, chip):
    made = compile_for(chip, double, TABLE)
    (kernel,) = made.kernels
    assert kernel.name.startswith("double") and kernel.spill_stores == 0
    assert kernel.bundles > 256 * 128 / 1024 / 2 and kernel.busy["VSTORE"] > 0
    assert 4 * 256 * 128 * 4 <= kernel.vmem_bytes < 5 * 256 * 128 * 4  # in and out, two buffers each
    assert made.argument_bytes == made.output_bytes == TABLE.size * 4 and made.temp_bytes == 0
    assert made.accessed_bytes == pytest.approx(2 * TABLE.size * 4, rel=0.01)
    assert made.moves() == []


def test_a_transposed_operand_is_a_move_unless_layouts_are_free(compile_for):
    turned = jax.ShapeDtypeStruct(TABLE.shape[::-1], jnp.float32)

    def program(x):
        return double(x.T)

    assert [size for _, size in compile_for("v5e", program, turned).moves()] == [turned.size * 4]
    assert compile_for("v5e", program, turned, free_layouts=True).moves() == []


def test_the_compilers_refusals_come_through(compile_for):
    with pytest.raises(ValueError, match="divisible by 8 and 128"):
        compile_for("v5e", lambda x: double(x, rows=1), TABLE)
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        compile_for("v5e", lambda x: double(x, rows=65536), jax.ShapeDtypeStruct((131072, 128), jnp.float32))


def test_tracing_sees_the_chip(compile_for):
    seen = []

    def program(x):
        seen.append(current().name)
        return x

    for chip in CHIPS:
        compile_for(chip, program, TABLE)
    assert seen == list(CHIPS) and current().name == "v5e"


def test_no_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    aot.devices.cache_clear()
    with pytest.raises(aot.Unavailable, match="pip install libtpu"):
        aot.devices(CHIPS["v6e"])


def test_one_traced_program_is_the_kernel_on_tpu_and_plain_operations_on_cpu(compile_for):
    def program(x):
        return dispatch.by_platform(x, tpu=double, gpu=None, cpu=lambda x: x * 2, what="double")

    x = np.arange(512 * 128, dtype=np.float32).reshape(512, 128)
    np.testing.assert_array_equal(jax.jit(program)(x), 2 * x)
    assert len(compile_for("v5e", program, TABLE).kernels) == 1


def test_vmap_is_one_call_with_a_larger_batch():
    sizes = []

    @dispatch.folded
    def scaled(x, factor):
        sizes.append((x.shape[0], factor.shape[0]))
        return x * jnp.repeat(factor, x.shape[0] // factor.shape[0], 0)[:, None]

    x, factor = np.arange(24.0).reshape(3, 4, 2), np.array([1.0, 2.0, 3.0])
    ours = jax.vmap(lambda x, f: scaled(x, f[None]))(x, factor)
    np.testing.assert_array_equal(ours, x * factor[:, None, None])
    assert sizes[-1] == (12, 3)
    shared = jax.vmap(lambda x: scaled(x, np.array([2.0])))(x)
    np.testing.assert_array_equal(shared, 2 * x)
    twice = jax.vmap(jax.vmap(lambda x, f: scaled(x[None], f[None])[0]))(x, np.broadcast_to(factor[:, None], (3, 4)))
    np.testing.assert_array_equal(twice, x * factor[:, None, None])


def bodies(x, scalars, steps=8, busy=3, turns=5, cut=None):
    """A kernel on [steps * 256, 128]: each step loops `turns` times over half of a block, the first `busy` fill the
    other half by 16 stores of a register; `cut` is (from which scalar, for what) "branch" or "loop" depends on data."""

    def kernel(scalars_ref, x_ref, y_ref):
        i = pl.program_id(0)

        def turn(n, carry):
            y_ref[:8] = carry = jnp.sin(carry) + x_ref[:8]
            return carry

        jax.lax.fori_loop(0, scalars_ref[0] if cut == "loop" else turns, turn, x_ref[8:16])

        @pl.when(i < (scalars_ref[0] if cut == "branch" else busy))
        def _():
            for row in range(128, 256, 8):
                y_ref[row : row + 8] = x_ref[row : row + 8] * row

    block = pl.BlockSpec((256, 128), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(steps,),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), block],
        out_specs=block,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        name="bodies",
    )(scalars, x)


def compiled_bodies(compile_for, chip, steps=8, **options):
    x, scalars = jax.ShapeDtypeStruct((steps * 256, 128), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    (kernel,) = compile_for(chip, functools.partial(bodies, steps=steps, **options), x, scalars).kernels
    return kernel


@pytest.mark.parametrize("chip", CHIPS)
def test_what_runs_is_counted_by_body_and_turn(compile_for, chip):
    """The times of each bundle are those that the kernel states; one more run of a part costs its bundles."""
    kernel = compiled_bodies(compile_for, chip)
    share = 8 // CHIPS[chip].cores
    times, exact = llo.Code(kernel.code, chip).runs()
    body, loop = (times == 3).sum(), (times == 5 * share).sum()
    step = ((times == share) | (times == share + 2)).sum()  # the pipeline turns two times more
    assert exact and len(times) == kernel.bundles == body + loop + step + (times == 1).sum()
    assert 16 / 4 <= body < 32 and loop > 16  # 16 stores, at most four in a bundle; a sine is longer

    def more(**options):
        other = compiled_bodies(compile_for, chip, **options)
        assert other.bundles == kernel.bundles
        return other.run.bundles - kernel.run.bundles

    assert more(busy=4) == body
    assert more(turns=9) == 4 * share * loop
    assert more(steps=16) == share * (step + 5 * loop)


def test_a_branch_on_data_is_counted_as_taken_and_a_loop_on_data_is_refused(compile_for):
    known, unknown = compiled_bodies(compile_for, "v5e", busy=8), compiled_bodies(compile_for, "v5e", cut="branch")
    assert known.run.exact and not unknown.run.exact
    assert known.run.bundles <= unknown.run.bundles <= 1.1 * known.run.bundles
    with pytest.raises(llo.Unreadable, match="depends on data"):
        _ = compiled_bodies(compile_for, "v5e", cut="loop").run
