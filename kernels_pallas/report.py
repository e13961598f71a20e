"""What the TPU compiler says of every kernel, with no TPU: `python -m kernels_pallas.report`.

    python -m kernels_pallas.report [OPERATION ...] [--chips v5e,v5p] [--cycles] [--json] [--write]

Every number is static. A bundle is one instruction word, one cycle where nothing stalls; `cycles` are bundles of a
grid step times the steps that do work, over the cores that share them, or with `--cycles` the compiler's own estimate
where it gives one. `roofline` is the share of those cycles, or of the time that the bytes take if that is longer,
which the chip's peak would need.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kernels_pallas import aot
from kernels_pallas.cases import OPERATIONS, Case, cases
from kernels_pallas.chips import CHIPS, Chip

LEDGER = Path(__file__).with_name("ledger.json")
PROFILE = "--xla_tpu_check_llo_types=false --xla_jf_dump_static_llo_profile_to={0}"


def entry(case: Case, chip: Chip, cycles: float | None = None) -> dict[str, Any]:
    """The ledger's line of one case on one chip; a program that does not compile has its error instead of numbers."""
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
    bundles = {re.sub(r"\.\d+$", "", kernel.name): kernel.bundles for kernel in made.kernels}
    if set(bundles) != set(case.steps):
        raise ValueError(
            f"{case.operation} {case.label}: found kernels {sorted(bundles)}, expected {sorted(case.steps)}"
        )
    counted = sum(bundles[name] * steps for name, steps in case.steps.items()) / chip.cores
    spills = sum(k.spill_stores * case.steps[re.sub(r"\.\d+$", "", k.name)] for k in made.kernels)
    floor = case.floor_bytes / chip.hbm_bytes_per_cycle
    least = max(case.flops / chip.flops_per_cycle, floor)
    taken = max(cycles or counted, made.accessed_bytes / chip.hbm_bytes_per_cycle)
    return line | {
        "vmem_bytes": max((kernel.vmem_bytes for kernel in made.kernels), default=0),
        "bundles": bundles,
        "spill_share": round(spills / max(1.0, counted * chip.cores), 4),
        "cycles": round(cycles or counted),
        "cycles_from": "the compiler's estimate" if cycles else "bundles x steps",
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
        which = (case.operation, case.direction, case.label, chip.name, "serial" if serial else "parallel")
        flags = {"LIBTPU_INIT_ARGS": PROFILE.format(directory), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", f"from kernels_pallas import report; report.compile_alone(*{which!r})"]
        done = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True)
        if done.returncode:
            return None
        texts = [path.read_text() for path in Path(directory).glob("*_static_llo_profile.textproto")]
    found = [int(cycles) for text in texts for cycles in re.findall(r"estimated_cycles: (\d+)", text)]
    return float(sum(found)) or None


def compile_alone(operation: str, direction: str, label: str, chip: str, order: str) -> None:
    """Compiles one case, for the files that the compiler leaves behind."""
    if order == "serial":
        from jax.experimental.pallas import tpu as pltpu

        parallel = pltpu.CompilerParams

        def serial(*, dimension_semantics=None, **rest):
            return parallel(dimension_semantics=("arbitrary",) * len(dimension_semantics or ()), **rest)

        pltpu.CompilerParams = serial
    (case,) = (c for c in cases(operation) if (c.direction, c.label) == (direction, label))
    aot.compile_for(chip, case.function, *case.arguments, free_layouts=True)


def lines(operations: Iterable[str], chips: Iterable[Chip], cycles: bool) -> Iterable[dict[str, Any]]:
    for operation in operations:
        for case in cases(operation):
            for chip in chips:
                yield entry(case, chip, estimated_cycles(case, chip) if cycles else None)


def shown(line: dict[str, Any]) -> str:
    name = f"{line['operation']:24} {line['direction']:8} {line['chip']:6} {line['case']:44}"
    if not line["compiled"]:
        return f"{name} does not compile: {line['error']}"
    return (
        f"{name} {line['vmem_bytes'] / 2**20:6.1f} {line['spill_share']:7.1%} {sum(line['bundles'].values()):8,} "
        f"{line['cycles']:12,} {line['roofline']:9.3f} {line['over_hbm_floor']:10.2f} {line['bytes_over_floor']:7.2f}"
    )


def read_ledger() -> dict[str, Any]:
    return json.loads(LEDGER.read_text()) if LEDGER.exists() else {"versions": {}, "lines": []}


def write_ledger(made: list[dict[str, Any]]) -> None:
    """Beside the lines of other cases, in the order of operation, direction, case and chip."""
    key = ("operation", "direction", "case", "chip")
    known = {tuple(line[k] for k in key): line for line in (*read_ledger()["lines"], *made)}
    document = {
        "made_by": "python -m kernels_pallas.report --write; every number is static",
        "versions": {name: version(name) for name in ("jax", "libtpu")},
        "lines": [known[k] for k in sorted(known)],
    }
    partial = LEDGER.with_suffix(".part")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(LEDGER)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operations", nargs="*", metavar="OPERATION", choices=[*OPERATIONS, []])
    parser.add_argument("--chips", default=",".join(CHIPS), help="of " + ", ".join(CHIPS))
    parser.add_argument("--cycles", action="store_true", help="the compiler's own estimates: minutes a line")
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    parser.add_argument("--write", action="store_true", help=f"put the lines into {LEDGER.name}")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.chips.split(",")) - set(CHIPS))
    if unknown:
        parser.error(f"--chips: found {', '.join(unknown)}, expected some of {', '.join(CHIPS)}")
    titles = zip(("VMEM", "spills", "bundles", "cycles", "roofline", "HBM floor", "bytes"), (6, 7, 8, 12, 9, 10, 7))
    head = " " * 85 + "".join(f" {title:>{width}}" for title, width in titles)
    made = []
    print(head, file=sys.stderr if options.json else sys.stdout)
    try:
        chosen = [CHIPS[name] for name in options.chips.split(",")]
        for line in lines(options.operations or OPERATIONS, chosen, options.cycles):
            made.append(line)
            print(shown(line), file=sys.stderr if options.json else sys.stdout, flush=True)
    except aot.Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(made))
    if options.write:
        write_ledger(made)
    return 0 if all(line["compiled"] for line in made) else 1


if __name__ == "__main__":
    sys.exit(main())
