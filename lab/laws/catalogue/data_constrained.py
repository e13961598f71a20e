"""Loss when tokens are repeated (Muennighoff et al. 2023, arXiv 2305.16264, equations 5 and 7).

    L = E + A / N'^alpha + B / D'^alpha
    D' = U + U R_D* (1 - exp(-R_D / R_D*)),           R_D = D / U - 1 repeats of U unique tokens
    N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*)),       R_N = N / U_N - 1, U_N = min(N, G^2 U)

G^2 U, with G = (A / B)^(1 / (2 alpha)), is the size that would be compute-optimal for U tokens; parameters beyond it
are excess. The authors take E, A, B and alpha from unrepeated runs and fit only R_D* and R_N* (`fixed` of
`lab.laws.fit.fit`); with all six free the law is fitted to repeated and unrepeated runs at once.
"""

from __future__ import annotations

import jax.numpy as jnp

from lab.laws.catalogue.columns import LOSS, D, N
from lab.laws.law import Column, Law, Published, exponent, positive, register

U = Column("U", "tokens", "unique tokens; D / U is the number of epochs")
REPEATS = (2.0, 5.0, 15.0, 50.0)


def effective(unique, total, limit):
    """[n]: `total` units of which only `unique` are fresh; each repeat is worth less, `limit` of them at most."""
    repeats = jnp.maximum(total / unique - 1, 0.0)
    return unique * (1 - limit * jnp.expm1(-repeats / limit))


def _loss(p, x):
    optimal = (p["A"] / p["B"]) ** (1 / p["alpha"]) * x["U"]
    parameters = effective(jnp.minimum(x["N"], optimal), x["N"], p["R_N*"])
    tokens = effective(jnp.minimum(x["D"], x["U"]), x["D"], p["R_D*"])
    return p["E"] + p["A"] * parameters ** -p["alpha"] + p["B"] * tokens ** -p["alpha"]


DATA_CONSTRAINED = register(
    Law(
        name="data-constrained",
        family="repeated data",
        formula="L = E + A / N'^alpha + B / D'^alpha, D' = U (1 + R_D* (1 - exp(-(D / U - 1) / R_D*))), N' likewise",
        source="Muennighoff et al. 2023, arXiv 2305.16264, equation 5",
        columns=(N, D, U),
        target=LOSS,
        parameters=(
            positive("E", "nats per token", low=1e-8),
            positive("A", "nats per token", (50.0, 500.0, 5000.0), low=1e-12),
            positive("B", "nats per token", (150.0, 1500.0, 15000.0), low=1e-12),
            exponent("alpha", (0.25, 0.35, 0.5)),
            positive("R_D*", "epochs", REPEATS, 1e-3, 1e6, "repeats after which more of them add almost nothing"),
            positive("R_N*", "", REPEATS, 1e-3, 1e6, "the same for excess parameters"),
        ),
        predict=_loss,
        linear=("E",),
        published=(
            Published(
                "Muennighoff et al. 2023, notebook, 182 runs on C4",
                {"E": 1.869144, "A": 520.825, "B": 1487.716, "alpha": 0.3526596, "R_D*": 15.387756, "R_N*": 5.309743},
                "E, A, B, alpha fixed beforehand",
            ),
        ),
    )
)
