"""Repeated sampling: problems that at least one of k samples solves, and pass rates too small to see in one.

Coverage c(k) of a set of problems is the mean of 1 - (1 - p_i)^k. Its points at several k come from the same samples
and the same problems, so that an interval from their scatter about a curve is too narrow, and a curve fitted to the
mean says little of the problems that are never solved. `fit_problems` fits the distribution of p_i itself, by maximum
likelihood, from how often each problem was solved; coverage at any k follows from it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import special
from scipy.optimize import minimize

from lab.laws.catalogue.columns import N
from lab.laws.errors import TableError
from lab.laws.law import Column, Law, exponent, positive, real, register
from lab.laws.objective import Objective

SAMPLES = Column("k", "samples", "samples for each problem")
COVERAGE = Column("coverage", "", "share of the problems that at least one of k samples solves")

PASS_AT_K = register(
    Law(
        name="pass-at-k",
        family="repeated sampling",
        formula="coverage = exp(a k^b)",
        source="Brown et al. 2024 (Large Language Monkeys), arXiv 2407.21787",
        columns=(SAMPLES,),
        target=COVERAGE,
        parameters=(
            real("a", "", (-0.3, -1.0, -3.0), -1e3, -1e-9, "ln of the coverage of one sample"),
            real("b", "", (-0.1, -0.3, -1.0), -10.0, 10.0, "below 0: coverage tends to 1"),
        ),
        predict=lambda p, x: jnp.exp(p["a"] * x["k"] ** p["b"]),
        objective=Objective("least-squares", space="linear"),
    )
)


def log_pochhammer(x: Any, a: Any) -> Any:
    """ln (Gamma(x + a) / Gamma(x)) of x, a > 0 to 1e-14, without the cancellation of two log-gammas.

    Stirling's series of both at x + 12, their large terms subtracted by hand. (jax's betaln is off by 1e-8, its second
    derivatives by tenths; derivatives of its gammaln are right and 20 times slower.)
    """
    y = x + 12
    rising = jnp.log1p(a / (x[..., None] + jnp.arange(12))).sum(-1)
    return a * jnp.log(y) + (y + a - 0.5) * jnp.log1p(a / y) - a + _stirling(y + a) - _stirling(y) - rising


def _stirling(y: Any) -> Any:
    z = 1 / y**2
    return (1 / 12 - z * (1 / 360 - z * (1 / 1260 - z * (1 / 1680 - z / 1188)))) / y


def _beta_coverage(p, x):
    fresh, tried = log_pochhammer(jnp.stack([p["beta"] + 0 * x["k"], p["beta"] + x["k"]]), p["alpha"])
    return -jnp.expm1(fresh - tried)


PASS_AT_K_BETA = register(
    Law(
        name="pass-at-k-beta",
        family="repeated sampling",
        formula="coverage = 1 - Beta(alpha, beta + k) / Beta(alpha, beta)",
        source="mean over problems with p ~ Beta(alpha, beta); Schaeffer et al. 2025, arXiv 2502.17578",
        columns=(SAMPLES,),
        target=COVERAGE,
        parameters=(
            positive("alpha", "", (0.1, 0.3, 1.0), 1e-6, 1e4, "1 - coverage falls as k^-alpha"),
            positive("beta", "", (0.5, 2.0, 10.0), 1e-6, 1e8),
        ),
        predict=_beta_coverage,
        objective=Objective("least-squares", space="linear"),
    )
)

PASSUNTIL = register(
    Law(
        name="passuntil",
        family="repeated sampling",
        formula="-ln PU = c N^-alpha",
        source="Hu et al. 2024, arXiv 2310.03262",
        columns=(N,),
        target=Column("PU", "", "pass rate of one sample"),
        parameters=(positive("c", ""), exponent("alpha", (0.05, 0.1, 0.2, 0.4, 0.8))),
        predict=lambda p, x: jnp.exp(-p["c"] * x["N"] ** -p["alpha"]),
        objective=Objective("least-squares"),
    )
)


def pass_at_k(samples: Any, solved: Any, k: int) -> np.ndarray:
    """Unbiased estimate of 1 - (1 - p)^k for each problem [n] (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Args:
      samples, solved: how many were drawn, and how many of them were right, [n].

    Raises:
      TableError: counts that cannot be, or a problem with fewer than k samples.
    """
    samples, solved = _counts(samples, solved)
    if not 1 <= k <= samples.min():
        raise TableError(
            f"found k = {k} and as few as {samples.min()} samples of a problem, expected 1 <= k <= samples"
        )
    steps = np.arange(k)  # 1 - C(n - c, k) / C(n, k), as a product that does not overflow
    left = np.maximum(samples - solved - steps[:, None], 0) / (samples - steps[:, None])
    return 1 - left.prod(0)


def pass_rate(passes: Any, samples: Any) -> Any:
    """Unbiased pass rate of sampling until `passes` >= 2 are seen, after `samples` draws (Haldane 1945).

    Hu et al. 2024 take passes / samples, which is high on average: with few passes the bias shows.
    """
    return (passes - 1) / (samples - 1)


@dataclasses.dataclass(frozen=True)
class Problems:
    """Single-sample pass rates p ~ Beta(alpha, beta) over problems; `covariance` [2, 2] of (ln alpha, ln beta)."""

    alpha: float
    beta: float
    covariance: np.ndarray

    def coverage(self, k: Any) -> np.ndarray:
        """Expected coverage at k samples, any k."""
        unsolved = special.betaln(self.alpha, self.beta + np.asarray(k)) - special.betaln(self.alpha, self.beta)
        return -np.expm1(unsolved)


def fit_problems(samples: Any, solved: Any) -> Problems:
    """The most likely distribution of pass rates, from counts of each problem [n]: beta-binomial maximum likelihood.

    Raises:
      TableError: counts that cannot be, fewer than 3 problems, or all solved always or never (no maximum).
    """
    n, c = _counts(samples, solved)
    if len(n) < 3 or (c == 0).all() or (c == n).all():
        raise TableError(f"found {len(n)} problems, {int(c.sum())} of {int(n.sum())} samples right; expected 3 or more "
                         "problems, neither all solved always nor all never")  # fmt: skip

    def loss(t):
        a, b = np.exp(t)
        likely = special.betaln(c + a, n - c + b) - special.betaln(a, b)
        both = special.digamma(a + b) - special.digamma(n + a + b)
        slope_a = special.digamma(c + a) - special.digamma(a) + both
        slope_b = special.digamma(n - c + b) - special.digamma(b) + both
        return -likely.sum(), -np.array([slope_a.sum() * a, slope_b.sum() * b])

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-14, 14)] * 2, options={"ftol": 1e-14})
    a, b = np.exp(found.x)
    trigamma = functools.partial(special.polygamma, 1)
    both = (trigamma(a + b) - trigamma(n + a + b)).sum()
    bend_a = (trigamma(c + a) - trigamma(a)).sum() + both
    bend_b = (trigamma(n - c + b) - trigamma(b)).sum() + both
    information = -np.array([[bend_a * a * a, both * a * b], [both * a * b, bend_b * b * b]])
    return Problems(float(a), float(b), np.linalg.inv(information))


def _counts(samples: Any, solved: Any) -> tuple[np.ndarray, np.ndarray]:
    n, c = np.atleast_1d(np.asarray(samples)), np.atleast_1d(np.asarray(solved))
    if n.shape != c.shape or not ((c >= 0) & (c <= n) & (n > 0)).all():
        raise TableError(
            "found counts of right samples outside 0..samples, expected 0 <= solved <= samples, samples > 0"
        )
    return n, c
