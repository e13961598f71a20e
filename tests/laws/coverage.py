"""How often a 90 % interval holds the truth, for every law and every constant: simulated rows, fitted as a user would.

    python -m tests.laws.coverage [LAW ...] [--draws 200] [--seed 0] [--out tests/laws/coverage.md]

Each draw is fitted from the law's own starts and profiled (`lab.laws.intervals.settled`, what `lab fit` prints). Of a
right interval 200 draws show 85 to 95 % with probability 0.98, 1,000 draws with 1.00. Lines of laws that are not
named stay as they are in the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lab.laws.fit import fit
from lab.laws.intervals import settled
from lab.laws.simulate import Simulation
from tests.laws.simulated import simulations

LEVEL = 0.9
LOW, HIGH = 0.85, 0.95
TABLE = Path(__file__).with_name("coverage.md")
HEAD = f"""# Coverage of {LEVEL:.0%} profile intervals

Share of draws whose interval holds the truth, constants first, then derived quantities. Expected: {LOW} to {HIGH}.
"open": largest share, over a law's quantities, of intervals without an end on one side. Made by
`python -m tests.laws.coverage`.

| law | rows | noise | draws | lowest | highest | open | coverage of each | s / draw | made |
|---|---|---|---|---|---|---|---|---|---|
"""


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Of one law: share of intervals that hold the truth and that are open, by quantity; seconds per draw."""

    simulation: Simulation
    draws: int
    held: dict[str, float]
    open: dict[str, float]
    unconverged: int
    seconds: float

    @property
    def right(self) -> bool:
        return all(LOW <= share <= HIGH for share in self.held.values())

    @property
    def line(self) -> str:
        shares = list(self.held.values())
        each = ", ".join(f"{name} {share:.3f}" for name, share in self.held.items())
        noise = f"{self.simulation.noise:g} {(self.simulation.objective or self.simulation.law.objective).space}"
        numbers = f"{min(shares):.3f} | {max(shares):.3f} | {max(self.open.values()):.3f}"
        size = len(self.simulation.target)
        made = f"{datetime.date.today()}, {platform.machine()} {os.cpu_count()} cores, jax {version('jax')}"
        fields = (self.simulation.name, size, noise, self.draws, numbers, each, f"{self.seconds:.2f}", made)
        return "| " + " | ".join(map(str, fields)) + " |"


def coverage(simulation: Simulation, draws: int, seed: int = 0) -> Coverage:
    """Fits and profiles `draws` simulated tables; seeds `seed`, `seed` + 1, ..."""
    truth = simulation.truth
    held = {name: np.zeros(draws, bool) for name in truth}
    open_ended = {name: np.zeros(draws, bool) for name in truth}
    unconverged, began = 0, time.perf_counter()
    for i in range(draws):
        found, intervals = settled(fit(simulation.law, simulation.rows(seed + i), simulation.objective), level=LEVEL)
        unconverged += not found.certificate.converged
        for name, interval in intervals.items():
            held[name][i] = interval.contains(truth[name])
            open_ended[name][i] = not np.isfinite([interval.low, interval.high]).all()
    shares = [{name: float(each.mean()) for name, each in table.items()} for table in (held, open_ended)]
    return Coverage(simulation, draws, *shares, unconverged, (time.perf_counter() - began) / draws)


def lines_of(path: Path) -> dict[str, str]:
    """By law, the lines that the file has."""
    rows = path.read_text().split("|---|\n")[-1].splitlines() if path.exists() else []
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows if row.startswith("| ")}


def merge(path: Path, lines: dict[str, str]) -> None:
    """Writes lines by law beside those that the file has."""
    known = lines_of(path) | lines
    partial = path.with_suffix(".part")
    partial.write_text(HEAD + "\n".join(known[name] for name in sorted(known)) + "\n")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("laws", nargs="*", metavar="LAW")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    known = simulations()
    unknown = sorted(set(arguments.laws) - set(known))
    if unknown:
        parser.error(f"no simulation of {', '.join(unknown)}; there are {', '.join(known)}")
    for name in arguments.laws or known:
        found = coverage(known[name], arguments.draws, arguments.seed)
        print(found.line, "" if found.right else "<- OUTSIDE", f"({found.unconverged} not converged)", flush=True)
        merge(arguments.out, {name: found.line})


if __name__ == "__main__":
    main()
