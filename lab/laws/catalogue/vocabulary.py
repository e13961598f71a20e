"""Loss and vocabulary size (Tao et al. 2024, arXiv 2407.13623).

Approach 3: the unigram-normalised loss, which is negative and so has no logarithm,

    Lu = -E + A1 / Nnv^alpha1 + A2 / Nv^alpha2 + B / D^alpha1

Nnv: parameters outside the vocabulary, Nv = vocabulary size x embedding width, D: tokens. The authors give the first
two in millions, D in billions, and minimise Huber(1e-3) of the plain residual. D follows from characters by a
polynomial in the logarithm of the vocabulary size; whether that size is counted in units or in thousands moves alpha2
from 0.67 to 1.06, so D is a column here and the conversion is the caller's to state.

Approach 1: of the runs at each budget C the best one's Nv, a power law in C.
"""

from __future__ import annotations

from lab.laws.catalogue.columns import C, D
from lab.laws.catalogue.power import power_law
from lab.laws.law import Column, Law, Published, exponent, positive, register
from lab.laws.objective import Objective

SOURCE = "Tao et al. 2024, arXiv 2407.13623"
NNV = Column("Nnv", "parameters", "outside embedding and head")
NV = Column("Nv", "parameters", "vocabulary size x embedding width")
LU = Column("Lu", "nats per token", "loss minus that of a unigram model", positive=False)
EXPONENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4)


def _loss(p, x):
    rates = p["A1"] * x["Nnv"] ** -p["alpha1"] + p["B"] * x["D"] ** -p["alpha1"]
    return rates + p["A2"] * x["Nv"] ** -p["alpha2"] - p["E"]


VOCABULARY = register(
    Law(
        name="vocabulary",
        family="vocabulary size",
        formula="Lu = -E + A1 / Nnv^alpha1 + A2 / Nv^alpha2 + B / D^alpha1",
        source=f"{SOURCE}, approach 3",
        columns=(NNV, NV, D),
        target=LU,
        parameters=(
            positive("E", "nats per token", low=1e-8),
            positive("A1", "nats per token", low=1e-12),
            positive("A2", "nats per token", low=1e-12),
            positive("B", "nats per token", low=1e-12),
            exponent("alpha1", EXPONENTS),
            exponent("alpha2", EXPONENTS),
        ),
        predict=_loss,
        linear=("E", "A1", "A2", "B"),
        objective=Objective("huber", delta=1e-3, space="linear"),
        published=(
            Published(
                f"{SOURCE}, approach 3",
                {"E": 5.5327847, "A1": 1.8313852 * 1e6**0.4466063, "A2": 0.1958424 * 1e6**0.6707375}
                | {"B": 2.1241123 * 1e9**0.4466063, "alpha1": 0.4466063, "alpha2": 0.6707375},
                "printed for Nnv and Nv in millions and D in billions; D from the vocabulary size in thousands",
            ),
        ),
    )
)

VOCABULARY_ISOFLOP = power_law(
    "vocabulary-isoflop",
    C,
    NV,
    "k",
    "a",
    "vocabulary size",
    f"{SOURCE}, approach 1",
    published=(Published(f"{SOURCE}, approach 1", {"k": 0.2041233, "a": 0.4163623}),),
)
