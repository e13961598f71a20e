"""IsoFLOP: models of several sizes at each of several budgets (Hoffmann et al. 2022, section 3.2; Porian et al. 2024).

`isoflop` reads such a table whole. Along each budget ln L is a parabola in ln N, the minimum moves as N* = k C^a and
the least loss falls to a floor, E + F / C^gamma:

    ln L = ln(E + F / C^gamma) + kappa (ln N - ln(k C^a))^2

One curvature for all budgets is what makes it one law; `lab.laws.isoflop` has the procedures that fit each budget by
itself. `isoflop-parameters`, `isoflop-tokens` and `isoflop-loss` read the optima that those give, one row a budget.
"""

from __future__ import annotations

import jax.numpy as jnp

from lab.laws.catalogue.columns import LOSS, C, D, N
from lab.laws.catalogue.power import LINE, power_law
from lab.laws.law import Derived, Law, Published, exponent, positive, real, register

FAMILY = "IsoFLOP optima"
SOURCE = "Hoffmann et al. 2022, arXiv 2203.15556, section 3.2"
PORIAN = "Porian et al. 2024, arXiv 2406.19146, RefinedWeb"
BUDGET = 1e21  # FLOPs at which optima are given beside the constants


def _loss(p, x):
    off = jnp.log(x["N"]) - jnp.log(p["k"]) - p["a"] * jnp.log(x["C"])
    return (p["E"] + p["F"] * x["C"] ** -p["gamma"]) * jnp.exp(p["kappa"] * off**2)


def _optimum(coefficient: str, power: str, what: str, unit: str) -> Derived:
    def value(p):
        return p[coefficient] * BUDGET ** p[power]

    return Derived(f"{what}* at {BUDGET:g}", unit, value, f"compute-optimal {what} at {BUDGET:g} FLOPs", log=True)


ISOFLOP = register(
    Law(
        name="isoflop",
        family=FAMILY,
        formula="L = (E + F / C^gamma) exp(kappa ln(N / (k C^a))^2)",
        source=f"{SOURCE}, all budgets at once",
        columns=(C, N),
        target=LOSS,
        parameters=(
            positive("E", "nats per token", low=1e-8),
            positive("F", "nats per token", low=1e-12),
            exponent("gamma", (0.05, 0.1, 0.2, 0.4)),
            positive("kappa", "", (0.003, 0.01, 0.03), low=1e-8, high=10, meaning="curvature of ln L in ln N"),
            positive("k", "parameters", (1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0, 1e3)),
            real("a", "", (0.35, 0.45, 0.5, 0.55, 0.65, 0.75), -2, 3),
        ),
        predict=_loss,
        linear=("E", "F"),
        objective=LINE,
        derived=(_optimum("k", "a", "N", "parameters"),),
    )
)

ISOFLOP_PARAMETERS = power_law(
    "isoflop-parameters",
    C,
    N,
    "k",
    "a",
    FAMILY,
    SOURCE,
    (_optimum("k", "a", "N", "parameters"),),
    (
        Published(f"{SOURCE}, parabolas", {"a": 0.49}, "(0.462, 0.534)", recalled=True),
        Published("Kaplan et al. 2020, arXiv 2001.08361, table 6", {"a": 0.73}, "N without embeddings"),
        Published(f"{PORIAN}, Kaplan's setting", {"a": 0.835}, "(0.824, 0.846)"),
        Published(f"{PORIAN}, lr, batch and beta2 tuned", {"a": 0.497}, "(0.491, 0.505)"),
    ),
)

ISOFLOP_TOKENS = power_law(
    "isoflop-tokens",
    C,
    D,
    "k",
    "b",
    FAMILY,
    SOURCE,
    (_optimum("k", "b", "D", "tokens"),),
    (
        Published(f"{SOURCE}, parabolas", {"b": 0.51}, "(0.483, 0.529)", recalled=True),
        Published("Kaplan et al. 2020, arXiv 2001.08361, table 6", {"b": 0.27}),
    ),
)

ISOFLOP_LOSS = register(
    Law(
        name="isoflop-loss",
        family=FAMILY,
        formula="L* = E + F / C^gamma",
        source=f"saturating loss at the optimum; {PORIAN}",
        columns=(C,),
        target=LOSS,
        parameters=(
            positive("E", "nats per token", low=1e-8),
            positive("F", "nats per token", low=1e-12),
            exponent("gamma", (0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)),
        ),
        predict=lambda p, x: p["E"] + p["F"] * x["C"] ** -p["gamma"],
        linear=("E", "F"),
        objective=LINE,
    )
)
