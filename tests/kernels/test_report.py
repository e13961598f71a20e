"""The report and the committed ledger: what is counted, what exceeds a bound, what became worse. All of it static."""

from __future__ import annotations

import re

import pytest

from kernels_pallas import llo
from kernels_pallas.cases import OPERATIONS, cases

CASES = {(case.operation, case.direction, case.label): case for name in OPERATIONS for case in cases(name)}


def first_of(operation, direction="forward"):
    return next(case for case in cases(operation) if case.direction == direction)


def name_of(case):
    return f"{case.operation} {case.direction} {case.label}"


def quick(chosen, every):
    """Parameters: some by default, the others on request."""
    return [case if case in chosen else pytest.param(case, marks=pytest.mark.long) for case in every]


QUICK = [first_of("diagonal_recurrence"), first_of("selective_scan"), first_of("flash_attention")]


@pytest.mark.parametrize("case", quick(QUICK, CASES.values()), ids=name_of)
def test_the_code_runs_its_bodies_as_often_as_the_blocks_say(compile_for, case):
    """A part of each kernel runs once for each step that its operation's plan has (attention: whole and cut blocks)."""
    made = compile_for("v5e", case.function, *case.arguments, free_layouts=True)
    for kernel in made.kernels:
        times, exact = llo.Code(kernel.code, "v5e").runs()
        assert exact and case.steps[re.sub(r"\.\d+$", "", kernel.name)] in times
