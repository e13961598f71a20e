"""Wall time of a 24-run sweep (4 batch sizes x 6 learning rates) from the shell, against 24 single-run processes.

    python -m tests.benchmarks.sweep [TOKENS_PER_RUN] [ROUNDS]

Both sides call `lab run` on this file, on the synthetic corpus, with a root of their own whose token cache is ready.
The single-run processes share one root, so that all but the first find their program in the compilation cache; with
`--cold` every process compiles for itself, as processes on machines of their own would.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.config import default_config, override
from lab.sweep.axes import axis, log_spaced, product
from lab.sweep.experiment import Analysis, Experiment, Sweep

BATCHES = (1024, 2048, 4096, 8192)
RATES = log_spaced(1e-3, 3.2e-2, 6)


def sweep() -> Sweep:
    cfg = override(
        default_config(),
        {
            "data.corpus": "synthetic",
            "run.horizon_tokens": 98304,
            "evaluation.points": 4,
            "evaluation.sequences": 64,
            "evaluation.first_tokens": 16384,
        },
    )
    return Sweep(cfg, product(axis("run.batch_tokens", BATCHES), axis("optimizer.learning_rate", RATES)), "a benchmark")


def no_analysis(results) -> Analysis:
    return Analysis((), {}, (), lambda path: path)


EXPERIMENTS = [Experiment("benchmark/24-runs", "none", "24 small runs.", {"tiny": sweep}, no_analysis)]


def lab(root: Path, tokens: int, *overrides: str) -> float:
    """Seconds of one `lab run`."""
    command = [sys.executable, "-m", "lab", "run", __file__, "--root", str(root), "--quiet"]
    began = time.perf_counter()
    subprocess.run([*command, f"--run.horizon_tokens={tokens}", *overrides], check=True, capture_output=True)
    return time.perf_counter() - began


def measure(tokens: int, cold: bool) -> tuple[float, float]:
    """Seconds of the sweep and of the single-run processes."""
    with tempfile.TemporaryDirectory() as scratch:
        roots = [Path(scratch) / name for name in ("pack", "alone")]
        for root in roots:
            plan = [sys.executable, "-m", "lab", "plan", __file__, "--root", str(root)]
            subprocess.run(plan, check=True, capture_output=True)
        together = lab(roots[0], tokens)
        alone = 0.0
        for batch in BATCHES:
            for rate in RATES:
                if cold:
                    subprocess.run(["rm", "-rf", str(roots[1] / "cache" / "xla")], check=True)
                alone += lab(roots[1], tokens, f"--run.batch_tokens={batch}", f"--optimizer.learning_rate={rate}")
        return together, alone


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    tokens, rounds = (numbers + [98304, 1][len(numbers) :])[:2]
    for _ in range(rounds):
        together, alone = measure(tokens, "--cold" in sys.argv)
        times = f"one sweep {together:.1f} s, 24 processes {alone:.1f} s"
        print(f"{tokens} tokens a run: {times}, ratio {alone / together:.2f}", flush=True)
