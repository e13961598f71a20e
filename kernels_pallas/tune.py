"""Block sizes from static estimates: `python -m kernels_pallas.tune [OPERATION ...] [--chips v5e,v6e] [--write]`.

For every row of an operation's `TUNED` and every chip, each candidate is compiled with the TPU's own compiler, with no
TPU. The static time is that of the bundles that run, or of the bytes where they take longer. The least wins of those
that the compiler accepts: it refuses what does not fit VMEM. The first candidate, which the code takes without a table,
goes before what gains less than 1 %, which is less than a static count can tell.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

from kernels_pallas import aot, blocks
from kernels_pallas.cases import OPERATIONS, Case, Tuned, tuned
from kernels_pallas.chips import CHIPS, Chip
from kernels_pallas.report import versions

GAIN = 0.99


def static_cycles(case: Case, chip: Chip, kernel: str) -> float | None:
    """Of the kernels whose name starts so; None where the compiler refuses the program."""
    try:
        made = aot.compile_for(chip, case.function, *case.arguments, free_layouts=True)
    except aot.Unavailable:
        raise
    except Exception:  # the compiler's: any
        return None
    kernels = [found for found in made.kernels if found.name.startswith(kernel)]
    return max(sum(found.run.bundles for found in kernels), made.accessed_bytes / chip.hbm_bytes_per_cycle)


def best(row: Tuned, chip: Chip) -> dict[str, Any] | None:
    """The table's row: the chosen blocks, their static cycles and those of the first candidate; None if none fits."""
    times = []
    for sizes in row.candidates(chip):
        parts = [static_cycles(case, chip, row.kernel) for case in row.cases(sizes)]
        if None not in parts:
            times.append((sum(parts), sizes))
    if not times:
        return None
    first, least = times[0], min(times, key=lambda found: found[0])
    cycles, sizes = least if least[0] < GAIN * first[0] else first
    found = {"chip": chip.name, "dtype": row.dtype, "width": row.width, "blocks": dict(sizes)}
    return found | {"cycles": round(cycles), "cycles_of_first": round(first[0])}


def write_table(operation: str, direction: str, made: Iterable[dict[str, Any]]) -> None:
    """Beside the table's other rows."""
    document = json.loads(blocks.TABLE.read_text()) if blocks.TABLE.exists() else {}
    name, key = f"{operation}/{direction}", ("chip", "dtype", "width")
    rows = {tuple(row[k] for k in key): row for row in (*document.get(name, ()), *made)}
    document |= {"versions": versions(), name: [rows[k] for k in sorted(rows)]}
    partial = blocks.TABLE.with_suffix(".part")
    partial.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    partial.replace(blocks.TABLE)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operations", nargs="*", metavar="OPERATION", choices=[*OPERATIONS, []])
    parser.add_argument("--chips", default=",".join(CHIPS), help="of " + ", ".join(CHIPS))
    parser.add_argument("--write", action="store_true", help=f"put each row into {blocks.TABLE.name} as it is made")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.chips.split(",")) - set(CHIPS))
    if unknown:
        parser.error(f"--chips: found {', '.join(unknown)}, expected some of {', '.join(CHIPS)}")
    for row in (row for name in options.operations or OPERATIONS for row in tuned(name)):
        for chip in (CHIPS[name] for name in options.chips.split(",")):
            try:
                found = best(row, chip)
            except aot.Unavailable as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            print(
                f"{row.operation}/{row.direction}: {json.dumps(found) if found else f'nothing fits {chip.name}'}",
                flush=True,
            )
            if options.write and found:
                write_table(row.operation, row.direction, [found])
    return 0


if __name__ == "__main__":
    sys.exit(main())
