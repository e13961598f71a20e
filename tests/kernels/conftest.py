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
