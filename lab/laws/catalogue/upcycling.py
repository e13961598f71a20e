"""Upcycling: a dense model trained on D1 tokens becomes a mixture of experts that is trained on D2 more."""

from __future__ import annotations

import math

import jax.numpy as jnp

from lab.laws.catalogue.columns import LOSS
from lab.laws.law import Column, Derived, Law, exponent, positive, real, register

DENSE_TOKENS = 1e11  # at which the slope in D2 is reported


def _upcycled(p, x):
    slope = -p["alpha2"] + p["alpha3"] * jnp.log(x["D1"])
    return p["A"] * x["D1"] ** -p["alpha1"] * x["D2"] ** slope + p["E"]


UPCYCLING = register(
    Law(
        name="upcycling",
        family="mixtures of experts",
        formula="L = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + E",
        source="Liew et al. 2025, arXiv 2502.03009",
        columns=(
            Column("D1", "tokens", "tokens of the dense model before it is upcycled"),
            Column("D2", "tokens", "tokens of the mixture after"),
        ),
        target=LOSS,
        parameters=(
            positive("A", "nats per token"),
            exponent("alpha1", (0.1, 0.2, 0.4, 0.8)),
            real("alpha2", "", (0.1, 0.3, 0.6, 1.0), -10, 10),
            real("alpha3", "", (0.0, 0.01, 0.03), -1, 1, "above 0: longer dense training slows what follows"),
            positive("E", "nats per token", low=1e-8),
        ),
        predict=_upcycled,
        linear=("A", "E"),
        derived=(
            Derived(
                "slope_D2",
                "",
                lambda p: -p["alpha2"] + p["alpha3"] * math.log(DENSE_TOKENS),
                "exponent of D2 after 1e11 dense tokens",
            ),
        ),
    )
)
