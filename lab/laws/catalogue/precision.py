"""Precision: parameters that few bits leave in effect, and what rounding a trained model costs (Kumar et al. 2024).

The printed constants belong to a form with offsets, exp(-P / gamma + n), that the paper's equations leave out
(appendix K), and to tied exponents, alpha = beta.
"""

from __future__ import annotations

import jax.numpy as jnp

from lab.laws.catalogue.columns import LOSS, D, N
from lab.laws.catalogue.hoffmann import EXPONENTS, TERMS
from lab.laws.law import Column, Derived, Law, Published, exponent, positive, register
from lab.laws.objective import Objective

SOURCE = "Kumar et al. 2024, arXiv 2411.04330"
PARTS = {"w": "weights", "a": "activations", "kv": "keys and values"}
BITS = (0.7, 1.5, 3.0)


def effective_share(p, x):
    """Share of the parameters in effect, in 0..1: the product over parts of 1 - exp(-P / gamma)."""
    share = 1.0
    for part in PARTS:
        share = share * -jnp.expm1(-x[f"P_{part}"] / p[f"gamma_{part}"])
    return share


def _loss(p, x):
    size = x["N"] * effective_share(p, x)
    return p["A"] * size ** -p["alpha"] + p["B"] * x["D"] ** -p["beta"] + p["E"]


PRECISION = register(
    Law(
        name="precision",
        family="precision",
        formula="L = A N_eff^-alpha + B D^-beta + E, N_eff = N prod_{w, a, kv} (1 - exp(-P / gamma))",
        source=f"{SOURCE}, section 4.2",
        columns=(N, D, *(Column(f"P_{part}", "bits", f"training precision of {name}") for part, name in PARTS.items())),
        target=LOSS,
        parameters=(
            *TERMS,
            exponent("alpha", EXPONENTS),
            exponent("beta", EXPONENTS),
            *(positive(f"gamma_{part}", "bits", BITS, 1e-3, 100.0, f"of {name}") for part, name in PARTS.items()),
        ),
        predict=_loss,
        linear=("A", "B", "E"),
        derived=(
            Derived("a", "", lambda p: p["beta"] / (p["alpha"] + p["beta"]), "exponent of N_eff in N_eff ~ C^a"),
            Derived(
                "share_at_4",
                "",
                lambda p: effective_share(p, {f"P_{part}": 4.0 for part in PARTS}),
                "parameters in effect with 4 bits everywhere",
            ),
        ),
        published=(
            Published(
                "Kumar et al. 2024, table 2",
                {
                    **{"A": 4.299e3, "alpha": 0.4965, "B": 1.806e4, "beta": 0.4965, "E": 2.7648},
                    **{"gamma_w": 2.6745, "gamma_a": 2.2102, "gamma_kv": 0.9578},
                },
                "fitted with offsets n of 0.3037, 1.4072 and 2.4185 that this form does not have",
            ),
        ),
    )
)

POST_TRAINING_QUANTIZATION = register(
    Law(
        name="post-training-quantization",
        family="precision",
        formula="delta_PTQ = C_T D^gamma_D / N^gamma_N exp(-P_post / gamma_post)",
        source=f"{SOURCE}, equation 2",
        columns=(N, D, Column("P_post", "bits", "precision of the weights after training")),
        target=Column("delta_PTQ", "nats per token", "loss after rounding the weights, less that before"),
        parameters=(
            positive("C_T", "nats per token"),
            exponent("gamma_D", (0.2, 0.5, 1.0)),
            exponent("gamma_N", (0.2, 0.5, 1.0)),
            positive("gamma_post", "bits", (0.3, 0.6, 1.2), 1e-3, 100.0),
        ),
        predict=lambda p, x: (
            p["C_T"] * x["D"] ** p["gamma_D"] * x["N"] ** -p["gamma_N"] * jnp.exp(-x["P_post"] / p["gamma_post"])
        ),
        linear=("C_T",),
        objective=Objective("least-squares"),
        published=(
            Published(
                "Kumar et al. 2024, table 2",
                {"C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907},
                "fitted with an offset b of 1.1277 in the exponent, which C_T takes up here",
            ),
        ),
    )
)
