"""Intervals hold the truth as often as they say: three laws by default, every law with `pytest -m long`."""

from __future__ import annotations

import pytest

from lab.laws.law import laws
from tests.laws.coverage import HIGH, LOW, coverage, merge
from tests.laws.simulated import simulations

DEFAULT = ("power", "critical-batch", "hoffmann")
REQUEST = [pytest.param(name, marks=pytest.mark.long) for name in simulations() if name not in DEFAULT]


@pytest.mark.parametrize("name", [*DEFAULT, *REQUEST])
def test_ninety_percent_intervals_hold_the_truth_in_ninety_percent_of_draws(name):
    found = coverage(simulations()[name], draws=200, seed=7000)
    assert found.unconverged == 0
    assert {quantity: share for quantity, share in found.held.items() if not LOW <= share <= HIGH} == {}
    assert max(found.open.values()) <= 0.05


def test_every_law_has_a_simulation():
    assert set(simulations()) == set(laws())


def test_lines_of_other_laws_stay(tmp_path):
    table = tmp_path / "coverage.md"
    merge(table, {"b": "| b | 1 |"})
    merge(table, {"a": "| a | 2 |"})
    merge(table, {"b": "| b | 3 |"})
    assert table.read_text().splitlines()[-2:] == ["| a | 2 |", "| b | 3 |"]
