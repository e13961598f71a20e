"""Seconds until `lab list` answers, and until the first update of a `tiny` sweep is made on a prepared token cache.

    python -m tests.benchmarks.startup [ROUNDS]

The first update is timed from the start of the process to its first line of progress, with an empty compilation cache
and with a filled one.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SWEEP = "critical-batch-size/fixed-model"
LAB = [sys.executable, "-m", "lab"]


def seconds_to_list() -> float:
    began = time.perf_counter()
    subprocess.run([*LAB, "list"], check=True, capture_output=True)
    return time.perf_counter() - began


def seconds_to_first_update(root: Path) -> float:
    """From the command to the first line that reports a tick; the process is then stopped."""
    began = time.perf_counter()
    with subprocess.Popen([*LAB, "run", SWEEP, "--root", str(root)], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if " tick " in line:
                seconds = time.perf_counter() - began
                process.kill()
                return seconds
    raise SystemExit("the sweep ended before it reported a tick")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        subprocess.run([*LAB, "plan", SWEEP, "--root", str(root)], check=True, capture_output=True)
        found: dict[str, list[float]] = {"lab list": [], "first update, cold": [], "first update, compiled before": []}
        for _ in range(rounds):
            found["lab list"].append(seconds_to_list())
            for name in ("cache/xla", "runs", "packs"):
                shutil.rmtree(root / name, ignore_errors=True)
            found["first update, cold"].append(seconds_to_first_update(root))
            for name in ("runs", "packs"):
                shutil.rmtree(root / name, ignore_errors=True)
            found["first update, compiled before"].append(seconds_to_first_update(root))
        for name, values in found.items():
            print(f"{name:32}{statistics.median(values):6.2f} s  ({min(values):.2f}-{max(values):.2f})")


if __name__ == "__main__":
    main()
