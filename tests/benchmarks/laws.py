"""Fitting the Chinchilla points: ours against the procedure of Hoffmann et al. and Besiroglu et al., side by side.

    python -m tests.benchmarks.laws [--share 0.05] [--rounds 5]

Theirs, written anew with scipy: the sum of Huber(1e-3) of log residuals in log form, L-BFGS-B with
finite-difference gradients from 4,500 starts; then 4,000 resamples, each by BFGS from the published constants. Ours:
`lab.laws.fit.fit`, and every one of the same resamples solved to its optimum. The two take turns: in each round theirs
does another `--share` of its starts or resamples and is scaled up, which the table says. Reads `chinchilla_svg`.
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


def their_starts() -> np.ndarray:
    """The 4,500 starts [S, 5], shuffled, so that any share of them is a fair one."""
    powers, floors, factors = np.arange(0, 2.01, 0.5), np.arange(-1, 1.01, 0.5), np.arange(0, 26, 5.0)
    grid = itertools.product(powers, powers, floors, factors, factors)
    starts = np.array([(a, b, e, alpha, beta) for alpha, beta, e, a, b in grid])
    return starts[np.random.default_rng(0).permutation(len(starts))]


def side_by_side(theirs_some, ours_all, of: int, share: float, rounds: int):
    """Rounds of some of theirs, then all of ours: prints nothing, ours compiled before.

    Args:
      theirs_some: a slice of its work -> one result each; round i does the i-th share of `of`.

    Returns:
      (seconds of all of theirs, of ours) per round, theirs scaled up; their results [of those made]; our last answer.
    """
    answer, seconds, results = ours_all(), [], []
    some = max(1, round(share * of))
    for i in range(rounds):
        part = slice(i * some % of, i * some % of + some)
        began = time.perf_counter()
        made = theirs_some(part)
        between = time.perf_counter()
        answer = ours_all()
        seconds.append(((between - began) * of / len(made), time.perf_counter() - between))
        results += made
    return seconds, results, answer


def said(what: str, seconds: list[tuple[float, float]]) -> str:
    ratios = sorted(slow / quick for slow, quick in seconds)
    slow, quick = (statistics.median(side) for side in zip(*seconds))
    ends = f"({min(q for _, q in seconds):.3f}-{max(q for _, q in seconds):.3f})"
    ratio = f"{statistics.median(ratios):.0f} ({ratios[0]:.0f}-{ratios[-1]:.0f})"
    return f"{what}: theirs {slow:.1f} s, ours {quick:.3f} s {ends}, ratio {ratio} over {len(seconds)} rounds"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=0.05, help="of theirs, in each round")
    parser.add_argument("--rounds", type=int, default=5)
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
    starts = their_starts()
    seconds, found, ours = side_by_side(
        lambda part: [minimize(theirs, start, logs, method="L-BFGS-B").fun for start in starts[part]],
        lambda: fit(law("hoffmann"), rows), len(starts), options.share, options.rounds,
    )  # fmt: skip
    print(said("optimum", seconds))
    print(f"objective: theirs {min(found):.13f} ({len(found)} starts), ours {ours.objective_value:.13f}")
    seconds, found, resamples = side_by_side(
        lambda part: [minimize(theirs, TEX, tuple(x[i] for x in logs), method="BFGS").x for i in draws[part]],
        lambda: bootstrap(ours, counts), len(draws), options.share, options.rounds,
    )  # fmt: skip
    print(said("4,000 resamples", seconds))
    mine = np.array([theirs(t, *(x[i] for x in logs)) for t, i in zip(_tex_order(resamples), draws[: len(found)])])
    other = np.array([theirs(t, *(x[i] for x in logs)) for t, i in zip(found, draws)])
    worse = (mine > other * (1 + 1e-8)).sum()
    print(f"resamples where ours is above theirs: {worse} of {len(other)}; converged {resamples.converged:.4f}")
    print(f"cold start of lab {' '.join(COLD)}: {cold:.1f} s")


def _tex_order(resamples) -> np.ndarray:
    """Our constants [R, 5] in the order ln A, ln B, ln E, alpha, beta."""
    q = resamples.quantities
    return np.stack([np.log(q["A"]), np.log(q["B"]), np.log(q["E"]), q["alpha"], q["beta"]], 1)


if __name__ == "__main__":
    main()
