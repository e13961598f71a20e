"""Intervals hold the truth as often as they say: three laws by default, every law with `pytest -m long`."""

from __future__ import annotations

import re

import pytest

from lab.laws.law import laws
from tests.laws.coverage import HIGH, LOW, TABLE, coverage, lines_of, merge
from tests.laws.simulated import simulations

DEFAULT = ("power", "critical-batch", "downstream-exponential")
MANY = 400  # draws, so that right intervals pass with probability 0.999 each, as there are some 200 of them
REQUEST = [pytest.param(name, MANY, marks=pytest.mark.long) for name in simulations()]


@pytest.mark.parametrize(("name", "draws"), [*((name, 200) for name in DEFAULT), *REQUEST])
def test_ninety_percent_intervals_hold_the_truth_in_ninety_percent_of_draws(name, draws):
    found = coverage(simulations()[name], draws, seed=7000)
    assert found.unconverged == 0
    assert {quantity: share for quantity, share in found.held.items() if not LOW <= share <= HIGH} == {}
    assert max(found.open.values()) <= 0.05


def test_every_law_has_a_simulation():
    assert set(simulations()) == set(laws())


def test_the_committed_table_has_every_law_and_its_intervals_are_right():
    """Made from the designs as they are: as many rows, as much noise, the same quantities."""
    lines = lines_of(TABLE)
    assert set(lines) == set(laws())
    for name, simulation in simulations().items():
        _, rows, noise, draws, _, _, open_ended, each, *_ = lines[name].strip("| ").split(" | ")
        held = {quantity: float(share) for quantity, share in re.findall(r"(.+?) (\d\.\d{3})(?:, |$)", each)}
        assert held.keys() == simulation.truth.keys(), name
        assert (int(rows), float(noise.split()[0])) == (len(simulation.target), simulation.noise), name
        assert int(draws) >= 200 and float(open_ended) <= 0.05, name
        assert {quantity: share for quantity, share in held.items() if not LOW <= share <= HIGH} == {}, name


def test_lines_of_other_laws_stay(tmp_path):
    table = tmp_path / "coverage.md"
    merge(table, {"b": "| b | 1 |"})
    merge(table, {"a": "| a | 2 |"})
    merge(table, {"b": "| b | 3 |"})
    assert table.read_text().splitlines()[-2:] == ["| a | 2 |", "| b | 3 |"]
