"""The report and the committed ledger: what is counted, what exceeds a bound, what became worse. All of it static."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas.ops.tpu import flash_attention as bundled

from kernels_pallas import llo, report
from kernels_pallas.cases import OPERATIONS, cases
from kernels_pallas.chips import CHIPS

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


LEDGER = report.read_ledger()
BY_KEY = {(line["operation"], line["direction"], line["case"], line["chip"]): line for line in LEDGER["lines"]}


def test_the_ledger_has_every_case_on_every_chip_and_all_compile():
    assert set(BY_KEY) == {(*key, chip) for key in CASES for chip in CHIPS}
    for line in BY_KEY.values():
        assert line["compiled"] and line["cycles"] >= sum(line["bundles_run"].values())


def test_what_exceeds_a_bound_says_why():
    silent = [
        (key, n) for key, line in BY_KEY.items() for n in report.exceeded(line) if not line.get("note", {}).get(n)
    ]
    assert not silent


def test_a_line_over_a_bound_gets_its_reason_and_no_other():
    line = {"operation": "x", "compiled": True, "spill_share": 0.11, "bytes_over_floor": 1.1, "over_hbm_floor": 1.31}
    why = {"spills": "s", "bytes": "b", "floor": "f"}
    assert report.noted(line, why)["note"] == {"spills": "s", "floor": "f"}
    assert "note" not in report.noted(line | {"spill_share": 0.1, "over_hbm_floor": 1.3, "note": why}, why)
    assert report.exceeded(line | {"operation": "flash_attention"}) == ["spills"]


def key_of(case, chip):
    return case.operation, case.direction, case.label, chip


FEW = [
    key_of(first_of("gated_linear_attention"), "v5e"),
    key_of(first_of("flash_attention"), "v6e"),
    key_of(first_of("selective_scan"), "v5e"),
    key_of(first_of("diagonal_recurrence", "backward"), "v6e"),
]


@pytest.mark.parametrize("key", quick(FEW, BY_KEY), ids=" ".join)
def test_nothing_became_worse_than_the_ledger(compile_for, key):
    """By more than 5 %, of what the compiler says with the same versions."""
    if LEDGER["versions"] != report.versions():
        pytest.skip(f"the ledger is of {LEDGER['versions']}, here are {report.versions()}: nothing compared")
    old, new = BY_KEY[key], report.entry(CASES[key[:3]], CHIPS[key[3]])
    assert new["compiled"]
    assert sum(new["bundles_run"].values()) <= 1.05 * sum(old["bundles_run"].values())
    assert new["vmem_bytes"] <= 1.05 * old["vmem_bytes"]
    assert new["spill_share"] <= 1.05 * old["spill_share"] + 0.001
    assert new["bytes_over_floor"] <= 1.05 * old["bytes_over_floor"]


FIRSTS = [first_of(name) for name in OPERATIONS]


@pytest.mark.parametrize(
    "case", quick([first_of("diagonal_recurrence"), first_of("selective_scan")], FIRSTS), ids=name_of
)
def test_the_two_cores_of_v5p_share_the_work(compile_for, case):
    together, alone = (report.bundles_run(case, CHIPS["v5p"], serial) for serial in (False, True))
    assert together <= 0.55 * alone


@pytest.mark.long
@pytest.mark.parametrize("case", FIRSTS, ids=name_of)
def test_the_compiler_too_expects_half_the_cycles_of_two_cores(compile_for, case):
    together, alone = (report.estimated_cycles(case, CHIPS["v5p"], serial) for serial in (False, True))
    if together is None or alone is None:
        pytest.skip(f"the compiler gives no estimate of {name_of(case)}")
    assert together <= 0.55 * alone


@pytest.mark.parametrize("chip, stated", [("v5e", 0.50), ("v6e", 0.19)])
@pytest.mark.parametrize("length", [4096, 8192])
def test_causal_attention_beats_the_bundled_one(compile_for, chip, stated, length):
    """Flash attention as jax brings it, blocks of 1024: beside what was stated of it, its bundles counted as ours."""
    ours = BY_KEY["flash_attention", "forward", f"causal T{length} N8 K8 H128 bfloat16", chip]
    assert ours["roofline"] > stated
    x = jax.ShapeDtypeStruct((1, 8, length, 128), jnp.bfloat16)
    sizes = bundled.BlockSizes(block_q=1024, block_k_major=1024, block_k=1024, block_b=1)
    program = functools.partial(bundled.flash_attention, causal=True, sm_scale=128**-0.5, block_sizes=sizes)
    (theirs,) = compile_for(chip, program, x, x, x, free_layouts=True).kernels
    assert sum(ours["bundles_run"].values()) < theirs.run.bundles


LONG = """
import pytest

@pytest.mark.long
@pytest.mark.parametrize("x", [1, 2, 3])
def test_long(x):
    assert x < 3

@pytest.mark.long
def test_left_out():
    pytest.skip("no reason")

def test_short():
    assert False
"""


def test_the_last_run_of_the_long_tests_is_written_by_a_command(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "LEDGER", tmp_path / "kernels_pallas" / "ledger.json")
    monkeypatch.setattr(report, "versions", lambda: {"jax": "1", "libtpu": "2"})
    tests = tmp_path / "tests" / "kernels" / "selective_scan"
    tests.mkdir(parents=True)
    report.LEDGER.parent.mkdir()
    (tests / "test_few.py").write_text(LONG)
    assert report.main(["selective_scan", "--matrix"]) == 1
    found = {"passed": 2, "failed": 1, "skipped": 1, "versions": report.versions()}
    assert report.read_ledger()["long_tests"] == {"selective_scan": found}
