"""The devices that a sweep finds."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("runs", [1, 4])
def test_a_cpu_is_split_among_runs_also_where_jax_was_imported_before(runs):
    program = f"import jax; from lab.train import backend; backend.configure({runs}); print(len(jax.devices()))"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(runs, len(os.sched_getaffinity(0)))
