"""Optimal learning rate and batch size as runs grow.

What is held fixed while the optimum is sought decides the exponents: `step-law-lr` and `step-law-batch` ("Step Law",
Li et al. 2025, arXiv 2503.04715) tune lr and batch together, `lr-horizon` (Bjorck et al. 2024, arXiv 2409.19913) tunes
lr at one batch size. All three read a table of optima, one row a cell. `lr-surface` reads the runs themselves: a bowl
in (ln lr, ln B) around an optimum that moves,

    ln L = ln(E + A_N / N^alpha_N + A_D / D^alpha_D) + (h_lr u^2 + 2 rho sqrt(h_lr h_B) u v + h_B v^2) / 2
    u = ln(lr / lr*), v = ln(B / B*),   lr* = lr0 (N / 1e9)^alpha (D / 1e10)^beta,   B* = B0 (D / 1e10)^gamma

Positive h_lr and h_B with |rho| < 1 exclude the saddles that a free quadratic can end in. It holds near the optimum:
runs that diverged, or lie far above the best of their cell, are to be left out.
"""

from __future__ import annotations

import jax.numpy as jnp

from lab.laws.catalogue.columns import LOSS, B, D, N
from lab.laws.catalogue.power import LINE, power_law
from lab.laws.law import Column, Derived, Law, Published, exponent, positive, real, register

FAMILY = "learning rate and batch size"
STEP_LAW = "Li et al. 2025, arXiv 2503.04715"
LR = Column("lr", "", "peak learning rate")
SIZE, HORIZON = 1e9, 1e10  # parameters and tokens at which optima are given
TUNED = {"alpha": -0.713, "beta": 0.307, "c": 1.79}
BATCH = {"gamma": 0.571, "d": 0.58}

STEP_LAW_LR = register(
    Law(
        name="step-law-lr",
        family=FAMILY,
        formula="lr = c N^alpha D^beta",
        source=f"{STEP_LAW}, equation 6",
        columns=(N, D),
        target=LR,
        parameters=(
            positive("c"),
            real("alpha", "", (-0.8, -0.3, 0.0), -5, 5),
            real("beta", "", (-0.3, 0.0, 0.3), -5, 5),
        ),
        predict=lambda p, x: p["c"] * x["N"] ** p["alpha"] * x["D"] ** p["beta"],
        linear=("c",),
        objective=LINE,
        derived=(
            Derived(
                "lr* at 1B, 10B",
                "",
                lambda p: p["c"] * SIZE ** p["alpha"] * HORIZON ** p["beta"],
                "optimum of 1e9 parameters after 1e10 tokens",
                log=True,
            ),
        ),
        published=(Published(f"{STEP_LAW}, table 2", TUNED, "N without embeddings; cosine to a fixed final lr"),),
    )
)

STEP_LAW_BATCH = power_law(
    "step-law-batch",
    D,
    B,
    "d",
    "gamma",
    FAMILY,
    f"{STEP_LAW}, equation 6",
    (Derived("B* at 10B", "as B", lambda p: p["d"] * HORIZON ** p["gamma"], "optimum after 1e10 tokens", log=True),),
    (
        Published(f"{STEP_LAW}, table 2", BATCH, "B in tokens"),
        Published(
            "Bergsma et al. 2025, arXiv 2505.13738, B_opt",
            {"d": 0.0306, "gamma": 0.383},
            "B in sequences",
            recalled=True,
        ),
    ),
)

LR_HORIZON = power_law(
    "lr-horizon",
    D,
    LR,
    "c",
    "beta",
    FAMILY,
    "Bjorck et al. 2024, arXiv 2409.19913",
    published=(Published("Bjorck et al. 2024, arXiv 2409.19913", {"beta": 0.32}, recalled=True),),
    falling=True,
)


def _surface(p, x):
    size, horizon = jnp.log(x["N"] / SIZE), jnp.log(x["D"] / HORIZON)
    u = jnp.log(x["lr"]) - jnp.log(p["lr0"]) - p["alpha"] * size - p["beta"] * horizon
    v = jnp.log(x["B"]) - jnp.log(p["B0"]) - p["gamma"] * horizon
    cross = 2 * p["rho"] * jnp.sqrt(p["h_lr"] * p["h_B"]) * u * v
    least = p["E"] + p["A_N"] * x["N"] ** -p["alpha_N"] + p["A_D"] * x["D"] ** -p["alpha_D"]
    return least * jnp.exp(0.5 * (p["h_lr"] * u**2 + cross + p["h_B"] * v**2))


LR_SURFACE = register(
    Law(
        name="lr-surface",
        family=FAMILY,
        formula="ln L = ln(E + A_N / N^alpha_N + A_D / D^alpha_D) + a quadratic in ln(lr / lr*), ln(B / B*)",
        source="a quadratic bowl around the optima of Step Law's form",
        columns=(LR, B, N, D),
        target=LOSS,
        parameters=(
            positive("E", "nats per token", low=1e-8),
            positive("A_N", "nats per token", low=1e-12),
            positive("A_D", "nats per token", low=1e-12),
            exponent("alpha_N", (0.2, 0.5)),
            exponent("alpha_D", (0.2, 0.5)),
            positive("lr0", "", (1e-4, 5e-4, 2e-3, 8e-3), meaning="optimal lr of 1e9 parameters after 1e10 tokens"),
            real("alpha", "", (-0.7, -0.2), -5, 5),
            real("beta", "", (-0.3, 0.0, 0.3), -5, 5),
            positive("B0", "as B", (100, 1e3, 3e4, 3e5, 3e6), meaning="optimal batch after 1e10 tokens"),
            real("gamma", "", (0.2, 0.6), -5, 5),
            positive("h_lr", "", (0.003, 0.03), low=1e-8, high=10, meaning="curvature of ln L in ln lr"),
            positive("h_B", "", (0.003, 0.03), low=1e-8, high=10, meaning="curvature of ln L in ln B"),
            real("rho", "", (0.0,), -0.999, 0.999, "tilt of the bowl: negative where a larger batch wants a larger lr"),
        ),
        predict=_surface,
        linear=("E", "A_N", "A_D"),
        objective=LINE,
        derived=(
            Derived("c", "", lambda p: p["lr0"] * SIZE ** -p["alpha"] * HORIZON ** -p["beta"], "of Step Law", log=True),
            Derived("d", "as B", lambda p: p["B0"] * HORIZON ** -p["gamma"], "of Step Law", log=True),
        ),
        published=(Published(f"{STEP_LAW}, table 2", TUNED | BATCH, "from optima, not from a surface; B in tokens"),),
    )
)
