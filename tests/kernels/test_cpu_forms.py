"""The forms that CPUs train with: no buffer as large as all pairs of tokens; their benchmarks run to the end."""

import json
import math
import re

import jax
import pytest

from tests.benchmarks import kernels_accelerator, kernels_cpu
from tests.benchmarks.kernels_cpu import OPERATIONS


def compiled(operation, length):
    """The program of one sequence's value and gradients, as text."""
    given = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in kernels_cpu.arrays(operation, length, length)]
    return kernels_cpu.trained(operation.ours).lower(tuple(given)).compile().as_text()


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_buffer_of_all_pairs_of_tokens(name):
    """Nor a call of LAPACK: two of jaxlib's at once can wait for each other for ever, on two threads."""
    program = compiled(OPERATIONS[name], 8192)
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", program)
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) < 8192**2
    assert "lapack" not in program


def test_the_benchmark_of_a_cpu_runs_to_the_end(tmp_path, capsys):
    kernels_cpu.main(["flash", "wkv", "--small", "--json", str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["operation"] for row in rows] == ["flash_attention", "wkv"] and all(row["ratio"] > 0 for row in rows)
    assert "all scores" in capsys.readouterr().out


def test_the_benchmark_of_an_accelerator_runs_to_the_end(tmp_path):
    """At small size, where there is none: each form has a time or says why not."""
    kernels_accelerator.main(["attention", "ssd", "--small", "--json", str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["kind"], row["direction"]) for row in rows][::2] == [("attention", "forward"), ("ssd", "forward")]
    for row in rows:
        assert row["milliseconds"]["ours"][0] > 0 and row["milliseconds"]["xla"][0] > 0
        assert all(times and (isinstance(times, str) or times[0] > 0) for times in row["milliseconds"].values())
