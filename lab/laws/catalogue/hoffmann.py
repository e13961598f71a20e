"""L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv 2203.15556, equation 2 and section D.3).

With C = 6 N D the loss is least at N = G (C / 6)^a, D = (C / 6)^b / G, where a = beta / (alpha + beta), b = 1 - a and
G = (alpha A / (beta B))^(1 / (alpha + beta)) (their equation 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from lab.laws.catalogue.columns import LOSS, D, N
from lab.laws.law import Derived, Law, Published, exponent, positive, register

COLUMNS = (N, D)
EXPONENTS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.9, 1.3)
BUDGETS = (1e21, 5.76e23)  # FLOPs; the second is Gopher's, at which Chinchilla was trained
TERMS = (
    positive("E", "nats per token", low=1e-8, meaning="loss of an infinite model on infinite data"),
    positive("A", "nats per token", low=1e-12),
    positive("B", "nats per token", low=1e-12),
)


def _falling(x, exponent):
    """x ** -exponent, which in float64 takes twice as long."""
    return jnp.exp(-exponent * jnp.log(x))


def frontier(alpha: str, beta: str) -> tuple[Derived, ...]:
    """The compute-optimal quantities of a law with exponents of these names (one name for a shared exponent)."""

    def a(p):
        return p[beta] / (p[alpha] + p[beta])

    def G(p):
        return (p[alpha] * p["A"] / (p[beta] * p["B"])) ** (1 / (p[alpha] + p[beta]))

    def ratio(budget: float) -> Callable[[Mapping[str, Any]], Any]:
        return lambda p: (budget / 6) ** (1 - 2 * a(p)) / G(p) ** 2

    found = [Derived("G", "", G, "N = G (C / 6)^a is compute-optimal", log=True)]
    if alpha != beta:
        found.insert(0, Derived("a", "", a, "exponent of N in the compute-optimal N ~ C^a"))
        for budget in BUDGETS:
            about = f"compute-optimal D / N at {budget:g} FLOPs, C = 6 N D"
            found.append(Derived(f"D/N at {budget:g}", "tokens per parameter", ratio(budget), about, log=True))
    else:
        found.append(Derived("D/N", "tokens per parameter", ratio(6.0), "compute-optimal at every budget", log=True))
    return tuple(found)


HOFFMANN = register(
    Law(
        name="hoffmann",
        family="loss in N and D",
        formula="L = E + A / N^alpha + B / D^beta",
        source="Hoffmann et al. 2022, arXiv 2203.15556, equation 2",
        columns=COLUMNS,
        target=LOSS,
        parameters=(*TERMS, exponent("alpha", EXPONENTS), exponent("beta", EXPONENTS)),
        predict=lambda p, x: p["E"] + p["A"] * _falling(x["N"], p["alpha"]) + p["B"] * _falling(x["D"], p["beta"]),
        linear=("E", "A", "B"),
        derived=frontier("alpha", "beta"),
        published=(
            Published(
                "Hoffmann et al. 2022, TeX source",
                {"E": 1.693374, "A": 406.401, "B": 410.723, "alpha": 0.33917084, "beta": 0.2849083, "a": 0.456526},
                "printed rounded as 1.69, 406.4, 410.7, 0.34, 0.28",
            ),
            Published(
                "Besiroglu et al. 2024, arXiv 2404.10102, table 1",
                {"E": 1.81686, "A": 482.00572, "B": 2085.4342, "alpha": 0.34781, "beta": 0.36585},
                "Chinchilla's points read off a figure; a Huber density whose scale is fitted too, hence close to lad",
            ),
            Published(
                "Besiroglu et al. 2024, arXiv 2404.10102, notebook, grid search",
                {"E": 1.817236, "A": 477.8417, "B": 2143.8638, "alpha": 0.347313, "beta": 0.367183},
                "the same points under Hoffmann's objective",
            ),
            Published(
                "Li et al. 2025, arXiv 2502.18969",
                {"E": 1.807738, "A": 51.35704, "B": 467784.85, "alpha": 0.2001958, "beta": 0.6356968},
                "261 last checkpoints, N with embeddings",
            ),
        ),
    )
)

HOFFMANN_SHARED = register(
    Law(
        name="hoffmann-shared",
        family="loss in N and D",
        formula="L = E + A / N^alpha + B / D^alpha",
        source="one exponent, as in Muennighoff et al. 2023, arXiv 2305.16264",
        columns=COLUMNS,
        target=LOSS,
        parameters=(*TERMS, exponent("alpha", EXPONENTS)),
        predict=lambda p, x: p["E"] + p["A"] * _falling(x["N"], p["alpha"]) + p["B"] * _falling(x["D"], p["alpha"]),
        linear=("E", "A", "B"),
        derived=frontier("alpha", "alpha"),
        published=(
            Published(
                "Muennighoff et al. 2023, arXiv 2305.16264",
                {"E": 1.869144, "A": 520.825, "B": 1487.716, "alpha": 0.3526596},
                "C4",
            ),
            Published(
                "Li et al. 2025, arXiv 2502.18969",
                {"E": 2.545024, "A": 33529.13, "B": 251555.77, "alpha": 0.60338},
                "261 last checkpoints, N with embeddings",
            ),
        ),
    )
)
