"""Fitting the Chinchilla points: ours against the procedure of Hoffmann et al. and Besiroglu et al., side by side.

    python -m tests.benchmarks.laws [--share 0.1] [--rounds 3]

Theirs, written anew with scipy: the sum of Huber(1e-3) of log residuals in log form, L-BFGS-B with
finite-difference gradients from 4,500 starts; then 4,000 resamples, each by BFGS from the published constants. Ours:
`lab.laws.fit.fit`, and every one of the same resamples solved to its optimum. With `--share`, theirs does that share of
its starts and resamples and is scaled up, which the table says. Reads the data set `chinchilla_svg`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from scipy.optimize import minimize
from scipy.special import huber

from lab.laws import datasets
from lab.laws.fit import fit
from lab.laws.intervals import bootstrap
from lab.laws.law import law
from lab.laws.solve import Rows

TEX = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])  # ln A, ln B, ln E, alpha, beta
COLD = ["fit", "hoffmann", "chinchilla_svg", "--where", "loss < 3.4451", "--bootstrap", "4000", "--json"]


def points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and loss of the 240 rows, in the file's order: Besiroglu et al. leave out the five of highest loss."""
    frame = datasets.load("chinchilla_svg")
    frame = frame.drop(frame["loss"].nlargest(5).index)
    return frame["params"].to_numpy(), (frame["flops"] / (6 * frame["params"])).to_numpy(), frame["loss"].to_numpy()


def theirs(theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray) -> float:
    ln_a, ln_b, ln_e, alpha, beta = theta
    predicted = np.log(np.exp(ln_a - alpha * log_n) + np.exp(ln_b - beta * log_d) + np.exp(ln_e))
    return huber(1e-3, predicted - log_loss).sum()


def their_grid(data: tuple, share: float) -> tuple[float, float, int]:
    """Seconds for all starts (scaled up), best objective, starts made."""
    starts = np.array(
        [
            (a, b, e, alpha, beta)
            for alpha, beta, e, a, b in itertools.product(
                np.arange(0, 2.01, 0.5), np.arange(0, 2.01, 0.5), np.arange(-1, 1.01, 0.5), *[np.arange(0, 26, 5.0)] * 2
            )
        ]
    )
    some = starts[np.random.default_rng(0).permutation(len(starts))[: max(1, round(share * len(starts)))]]
    began = time.perf_counter()
    best = min(minimize(theirs, start, data, method="L-BFGS-B").fun for start in some)
    return (time.perf_counter() - began) * len(starts) / len(some), best, len(some)


def their_bootstrap(data: tuple, draws: np.ndarray, share: float) -> tuple[float, np.ndarray]:
    """Seconds for all resamples (scaled up), and the constants of those that were made."""
    some = draws[: max(1, round(share * len(draws)))]
    began = time.perf_counter()
    found = [minimize(theirs, TEX, tuple(x[index] for x in data), method="BFGS").x for index in some]
    return (time.perf_counter() - began) * len(draws) / len(some), np.array(found)


def timed(work, rounds: int) -> tuple[list[float], object]:
    """Seconds of each round after a first one that compiles, and the last answer."""
    answer, seconds = work(), []
    for _ in range(rounds):
        began = time.perf_counter()
        answer = work()
        seconds.append(time.perf_counter() - began)
    return seconds, answer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    n, d, loss = points()
    logs = (np.log(n), np.log(d), np.log(loss))
    rows = Rows({"N": n, "D": d}, loss, np.ones(len(n)), np.zeros(len(n), bool))
    np.random.seed(42)
    draws = np.array([np.random.choice(len(n), len(n), replace=True) for _ in range(4000)])
    counts = np.stack([np.bincount(index, minlength=len(n)) for index in draws]).astype(float)

    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        lab = [sys.executable, "-m", "lab", *COLD]
        subprocess.run(lab, check=True, capture_output=True, env={**os.environ, "WINDTUNNEL_ROOT": root})
        cold = time.perf_counter() - began
    fits, ours = timed(lambda: fit(law("hoffmann"), rows), options.rounds)
    grid, best, made = their_grid(logs, options.share)
    print(f"objective: theirs {best:.13f} ({made} starts), ours {ours.objective_value:.13f}")
    quick = statistics.median(fits)
    spread = f"({min(fits):.3f}-{max(fits):.3f})"
    print(f"optimum:   theirs {grid:7.1f} s, ours {quick:.3f} s {spread}, ratio {grid / quick:.0f}")
    boots, resamples = timed(lambda: bootstrap(ours, counts), options.rounds)
    slow, their_constants = their_bootstrap(logs, draws, options.share)
    quick = statistics.median(boots)
    spread = f"({min(boots):.2f}-{max(boots):.2f})"
    print(f"resamples: theirs {slow:7.1f} s, ours {quick:.2f} s {spread}, ratio {slow / quick:.0f}")
    mine = np.array([theirs(t, *(x[i] for x in logs)) for t, i in zip(_tex_order(resamples), draws)])
    other = np.array([theirs(t, *(x[i] for x in logs)) for t, i in zip(their_constants, draws)])
    worse = (mine[: len(other)] > other * (1 + 1e-8)).sum()
    print(f"resamples where ours is above theirs: {worse} of {len(other)}; converged {resamples.converged:.4f}")
    print(f"cold start of lab {' '.join(COLD)}: {cold:.1f} s")


def _tex_order(resamples) -> np.ndarray:
    """Our constants [R, 5] in the order ln A, ln B, ln E, alpha, beta."""
    q = resamples.quantities
    return np.stack([np.log(q["A"]), np.log(q["B"]), np.log(q["E"]), q["alpha"], q["beta"]], 1)


if __name__ == "__main__":
    main()
