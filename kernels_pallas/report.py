"""What the TPU compiler says of every kernel, with no TPU: `python -m kernels_pallas.report`.

    python -m kernels_pallas.report [OPERATION ...] [--chips v5e,v5p] [--cycles] [--json] [--write] [--matrix]

Every number is static. A bundle is one instruction word, one cycle where nothing stalls. `cycles` are the bundles that
one call runs on the busiest core, counted by following the branches of the compiled code (`llo`), or with `--cycles`
the compiler's own estimate where that is larger. `roofline` is the share of those cycles, or of the time that the bytes
take if that is longer, which the chip's peak would need.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kernels_pallas import aot
from kernels_pallas.cases import OPERATIONS, Case, cases
from kernels_pallas.chips import CHIPS, Chip

LEDGER = Path(__file__).with_name("ledger.json")
PROFILE = "--xla_tpu_check_llo_types=false --xla_jf_dump_static_llo_profile_to={0}"
ESTIMATED = ("v5e", "v5p", "v6e")  # on others the compiler's estimate aborts
# Beyond these a line has a note with the reason; the floor of HBM binds scans, which do little but read and write.
BOUNDS = {"spills": ("spill_share", 0.1), "bytes": ("bytes_over_floor", 1.1), "floor": ("over_hbm_floor", 1.3)}


def exceeded(line: dict[str, Any]) -> list[str]:
    """Names of the bounds that a line of the ledger exceeds."""
    bounds = {
        name: bound for name, bound in BOUNDS.items() if (name, line["operation"]) != ("floor", "flash_attention")
    }
    return [name for name, (field, most) in bounds.items() if line["compiled"] and line[field] > most]


def entry(case: Case, chip: Chip, estimate: float | None = None) -> dict[str, Any]:
    """The ledger's line of one case on one chip; a program that does not compile has its error instead of numbers.

    Args:
      estimate: the compiler's own, of the whole program's cycles. It does not know which bodies of `pl.when` a step
        runs, and where it takes too few, it is less than the bundles that do run, each of which takes a cycle.

    Raises:
      llo.Unreadable: how much of a kernel runs cannot be counted.
    """
    line: dict[str, Any] = {
        "operation": case.operation,
        "direction": case.direction,
        "case": case.label,
        "chip": chip.name,
        "compiled": True,
    }
    try:
        made = aot.compile_for(chip, case.function, *case.arguments, free_layouts=True)
    except aot.Unavailable:
        raise
    except Exception as error:  # the compiler's: any
        return line | {"compiled": False, "error": str(error).strip().splitlines()[0][:200]}
    kernels = {re.sub(r"\.\d+$", "", kernel.name): kernel for kernel in made.kernels}
    if not kernels or not all(name.startswith(case.operation) for name in kernels):  # which ones, a chip may decide
        raise ValueError(f"{case.operation} {case.label}: found kernels {sorted(kernels)}, expected {case.operation}_*")
    runs = {name: kernel.run for name, kernel in kernels.items()}
    counted = sum(run.bundles for run in runs.values())
    exact = all(run.exact for run in runs.values())
    cycles, source = counted, "bundles run" if exact else "bundles run at most: a branch depends on data"
    if estimate and estimate > counted:
        cycles, source = estimate, "the compiler's estimate"
    floor = case.floor_bytes / chip.hbm_bytes_per_cycle
    least = max(case.flops / chip.flops_per_cycle, floor)
    taken = max(cycles, made.accessed_bytes / chip.hbm_bytes_per_cycle)
    return line | {
        "vmem_bytes": max(kernel.vmem_bytes for kernel in kernels.values()),
        "bundles": {name: kernel.bundles for name, kernel in kernels.items()},
        "bundles_run": {name: run.bundles for name, run in runs.items()},
        "spill_share": round(sum(run.spill_stores for run in runs.values()) / counted, 4),
        "cycles": round(cycles),
        "cycles_from": source,
        "roofline": round(least / taken, 4),
        "over_hbm_floor": round(taken / floor, 3),
        "bytes_over_floor": round(made.accessed_bytes / case.floor_bytes, 3),
        "temp_bytes": made.temp_bytes,
    }


def estimated_cycles(case: Case, chip: Chip, serial: bool = False) -> float | None:
    """The compiler's estimate for the whole program, from a process of its own; None where it aborts or gives none.

    Args:
      serial: with every grid axis "arbitrary", as if the chip's cores could not share the work.
    """
    with tempfile.TemporaryDirectory() as directory:
        if _alone(case, chip, serial, PROFILE.format(directory)) is None:
            return None
        texts = [path.read_text() for path in Path(directory).glob("*_static_llo_profile.textproto")]
    found = [int(cycles) for text in texts for cycles in re.findall(r"estimated_cycles: (\d+)", text)]
    return float(sum(found)) or None


def bundles_run(case: Case, chip: Chip, serial: bool = False) -> int:
    """Bundles that the busiest core runs, as in `entry`, from a process of its own; arguments of `estimated_cycles`."""
    return int(_alone(case, chip, serial, ""))


def _alone(case: Case, chip: Chip, serial: bool, flags: str) -> str | None:
    which = (case.operation, case.direction, case.label, chip.name, serial)
    code = f"from kernels_pallas import report; report.compile_alone(*{which!r})"
    environment = {**os.environ, "LIBTPU_INIT_ARGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return None if done.returncode else done.stdout


def compile_alone(operation: str, direction: str, label: str, chip: str, serial: bool) -> None:
    """Compiles one case, for the files that the compiler leaves behind, and prints the bundles that it runs."""
    if serial:
        from jax.experimental.pallas import tpu as pltpu

        parallel = pltpu.CompilerParams

        def arbitrary(*, dimension_semantics=None, **rest):
            return parallel(dimension_semantics=("arbitrary",) * len(dimension_semantics or ()), **rest)

        pltpu.CompilerParams = arbitrary  # before the operation is imported
    (case,) = (c for c in cases(operation) if (c.direction, c.label) == (direction, label))
    made = aot.compile_for(chip, case.function, *case.arguments, free_layouts=True)
    print(sum(kernel.run.bundles for kernel in made.kernels))


def lines(operations: Iterable[str], chips: Iterable[Chip], cycles: bool) -> Iterable[dict[str, Any]]:
    for operation in operations:
        for case in cases(operation):
            for chip in chips:
                wanted = cycles and chip.name in ESTIMATED
                yield entry(case, chip, estimated_cycles(case, chip) if wanted else None)


def shown(line: dict[str, Any]) -> str:
    name = f"{line['operation']:24} {line['direction']:8} {line['chip']:6} {line['case']:44}"
    if not line["compiled"]:
        return f"{name} does not compile: {line['error']}"
    return (
        f"{name} {line['vmem_bytes'] / 2**20:6.1f} {line['spill_share']:7.1%} {sum(line['bundles'].values()):8,} "
        f"{line['cycles']:12,} {line['roofline']:9.3f} {line['over_hbm_floor']:10.2f} {line['bytes_over_floor']:7.2f}"
        f"  {line['cycles_from']}"
    )


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("jax", "libtpu")}


def read_ledger() -> dict[str, Any]:
    return json.loads(LEDGER.read_text()) if LEDGER.exists() else {"versions": {}, "lines": [], "long_tests": {}}


def noted(line: dict[str, Any], reasons: Mapping[str, str]) -> dict[str, Any]:
    """The line with the reason of each bound that it exceeds, where one is given."""
    bare = {name: value for name, value in line.items() if name != "note"}
    note = {name: reasons[name] for name in exceeded(line) if name in reasons}
    return bare | ({"note": note} if note else {})


def write_ledger(made: Iterable[dict[str, Any]] = (), long_tests: dict[str, Any] | None = None) -> None:
    """In the order of operation, direction, case and chip, beside what is known of other cases that still exist.

    Lines of other versions of jax and libtpu go: the ledger is of one pair.
    """
    key = ("operation", "direction", "case", "chip")
    old = read_ledger()
    kept = old["lines"] if old["versions"] == versions() else []
    known = {tuple(line[k] for k in key): line for line in (*kept, *made)}
    notes = {(case.operation, case.direction, case.label): case.note for name in OPERATIONS for case in cases(name)}
    document = {
        "made_by": "python -m kernels_pallas.report --cycles --write, and --matrix; every number is static",
        "versions": versions(),
        "long_tests": old["long_tests"] | (long_tests or {}),
        "lines": [noted(known[k], notes[k[:3]]) for k in sorted(known) if k[:3] in notes],
    }
    partial = LEDGER.with_suffix(".part")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(LEDGER)


def run_long_tests(operation: str) -> dict[str, Any]:
    """Runs the tests of an operation that are marked long: how many passed, failed, were skipped, on which versions."""
    tests = LEDGER.parents[1] / "tests" / "kernels" / operation
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory) / "tests.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-m", "long", f"--junitxml={found}", tests], cwd=tests.parents[2]
        )
        (suite,) = ElementTree.parse(found).getroot().iter("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    return {"passed": passed, "failed": failed, "skipped": counts["skipped"], "versions": versions()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operations", nargs="*", metavar="OPERATION", choices=[*OPERATIONS, []])
    parser.add_argument("--chips", default=",".join(CHIPS), help="of " + ", ".join(CHIPS))
    parser.add_argument("--cycles", action="store_true", help=f"also the compiler's estimates ({', '.join(ESTIMATED)})")
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    parser.add_argument("--write", action="store_true", help=f"put each line into {LEDGER.name} as it is made")
    parser.add_argument("--matrix", action="store_true", help=f"instead run the long tests, for {LEDGER.name}")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.chips.split(",")) - set(CHIPS))
    if unknown:
        parser.error(f"--chips: found {', '.join(unknown)}, expected some of {', '.join(CHIPS)}")
    operations = options.operations or OPERATIONS
    if options.matrix:
        return matrix(operations)
    out = sys.stderr if options.json else sys.stdout
    titles = zip(("VMEM", "spills", "bundles", "cycles", "roofline", "HBM floor", "bytes"), (6, 7, 8, 12, 9, 10, 7))
    print(" " * 85 + "".join(f" {title:>{width}}" for title, width in titles), file=out)
    made = []
    try:
        for line in lines(operations, [CHIPS[name] for name in options.chips.split(",")], options.cycles):
            made.append(line)
            print(shown(line), file=out, flush=True)
            if options.write:
                write_ledger([line])
    except aot.Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(made))
    return 0 if all(line["compiled"] for line in made) else 1


def matrix(operations: Iterable[str]) -> int:
    failed = 0
    for operation in operations:
        done = run_long_tests(operation)
        print(f"{operation}: {done['passed']} passed, {done['failed']} failed, {done['skipped']} skipped")
        write_ledger(long_tests={operation: done})
        failed += done["failed"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
