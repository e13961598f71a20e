"""Interleaved rounds in processes of their own, medians, spread."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


class RandomCorpus:
    """Tokens without a cache: a speed does not depend on what they say."""

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def batch(self, split: str, seed: int, length: int, start: int, count: int) -> np.ndarray:
        return np.random.default_rng(start).integers(0, self.vocabulary, (count, length + 1)).astype(np.int32)

    def sequences(self, split: str, length: int) -> int:
        return 64


def timed(call: Callable[[], None], repeats: int = 9) -> float:
    """Median milliseconds of a call, after two that do not count."""
    times = []
    for index in range(repeats + 2):
        start = time.perf_counter()
        call()
        if index >= 2:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def milliseconds(module: str, side: str) -> float:
    """Runs one side of a benchmark in a fresh process; its last line is a number of milliseconds."""
    done = subprocess.run([sys.executable, "-m", module, side], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{module} {side} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def interleaved(module: str, sides: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Each side once a round, so that a noisy neighbour troubles all of them alike."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for index in range(rounds):
        for side in sides:
            found[side].append(milliseconds(module, side))
            print(f"round {index + 1}/{rounds}  {side:14} {found[side][-1]:8.2f} ms", file=sys.stderr, flush=True)
    return found


def table(found: Mapping[str, Sequence[float]], against: str) -> str:
    """Median, range and ratio to `against` (above 1: faster than it)."""
    base = statistics.median(found[against])
    lines = [f"{'side':16}{'median ms':>10}{'range':>18}{'speed against ' + against:>28}"]
    for side, values in found.items():
        middle = statistics.median(values)
        span = f"{min(values):.2f}-{max(values):.2f}"
        lines.append(f"{side:16}{middle:10.2f}{span:>18}{base / middle:28.2f}")
    return "\n".join(lines)
