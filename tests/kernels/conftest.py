"""The TPU compiler, where it is installed."""

import pytest


@pytest.fixture(scope="session")
def compile_for():
    """`kernels_pallas.aot.compile_for`; without the compiler the test is skipped, loudly."""
    from kernels_pallas import aot
    from kernels_pallas.chips import CHIPS

    try:
        aot.devices(CHIPS["v5e"])
    except aot.Unavailable as error:
        pytest.skip(f"nothing compiled for TPUs: {error}")
    return aot.compile_for


@pytest.fixture(scope="session")
def compile_for_h200():
    """`kernels_pallas.aot_gpu.compile_for_h200`; without the compiler the test is skipped, loudly."""
    from kernels_pallas import aot, aot_gpu

    try:
        aot_gpu.device()
    except aot.Unavailable as error:
        pytest.skip(f"nothing compiled for GPUs: {error}")
    return aot_gpu.compile_for_h200
