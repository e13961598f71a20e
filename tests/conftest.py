"""Every test sees eight emulated CPU devices; set before jax is imported."""

import os

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as `lab` sets it


@pytest.fixture(scope="session")
def published():
    """`lab.laws.datasets.load`; where the data set is in none of the places the test is skipped, loudly."""
    from lab.laws import datasets
    from lab.laws.errors import DataSetError

    def load(name):
        try:
            datasets.find(datasets.dataset(name))
        except DataSetError as error:
            pytest.skip(f"published numbers NOT checked: {error}")
        return datasets.load(name)

    return load
