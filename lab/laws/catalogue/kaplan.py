"""The laws of Kaplan et al. 2020 (arXiv 2001.08361): equations 1.1, 1.2, 1.4 to 1.6, constants of their appendix A.

N is without embeddings, D in tokens, loss in nats per token. Their fitting objective is not stated; least squares of
log loss is taken here. Constants were read in a transcription of the paper's tables.
"""

from __future__ import annotations

from lab.laws.catalogue.columns import LOSS, B, D, N
from lab.laws.law import Column, Derived, Law, Published, exponent, positive, register
from lab.laws.objective import Objective

SOURCE = "Kaplan et al. 2020, arXiv 2001.08361"
SQUARES = Objective("least-squares")
SCALES = (1e6, 1e10, 1e13, 1e16)  # of the N or D at which a term would be one nat
SMALL = (0.03, 0.07, 0.15, 0.3)
S_MIN = Column("S_min", "steps", "updates that a batch far above the critical one would have needed")


def _single(name: str, x: Column, scale: str, power: str, published: dict[str, float]) -> Law:
    return register(
        Law(
            name=name,
            family="loss in N and D",
            formula=f"L = ({scale} / {x.name})^{power}",
            source=f"{SOURCE}, equations 1.1 and 1.2",
            columns=(x,),
            target=LOSS,
            parameters=(positive(scale, x.unit, SCALES), exponent(power, SMALL)),
            predict=lambda p, columns: (p[scale] / columns[x.name]) ** p[power],
            objective=SQUARES,
            published=(Published(f"{SOURCE}, table 5", published),),
        )
    )


KAPLAN_N = _single("kaplan-n", N, "N_c", "alpha_N", {"N_c": 8.8e13, "alpha_N": 0.076})
KAPLAN_D = _single("kaplan-d", D, "D_c", "alpha_D", {"D_c": 5.4e13, "alpha_D": 0.095})

KAPLAN = register(
    Law(
        name="kaplan",
        family="loss in N and D",
        formula="L = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D",
        source=f"{SOURCE}, equation 1.5",
        columns=(N, D),
        target=LOSS,
        parameters=(
            positive("N_c", "parameters", SCALES),
            positive("D_c", "tokens", SCALES),
            exponent("alpha_N", SMALL),
            exponent("alpha_D", SMALL),
        ),
        predict=lambda p, x: ((p["N_c"] / x["N"]) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / x["D"]) ** p["alpha_D"],
        objective=SQUARES,
        derived=(
            Derived("alpha_N/alpha_D", "", lambda p: p["alpha_N"] / p["alpha_D"], "data must grow as N to this", True),
        ),
        published=(
            Published(
                f"{SOURCE}, table 2",
                {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103, "alpha_N/alpha_D": 0.74},
            ),
        ),
    )
)

KAPLAN_STEPS = register(
    Law(
        name="kaplan-steps",
        family="loss in N and steps",
        formula="L = (N_c / N)^alpha_N + (S_c / S_min)^alpha_S",
        source=f"{SOURCE}, equation 1.6",
        columns=(N, S_MIN),
        target=LOSS,
        parameters=(
            positive("N_c", "parameters", SCALES),
            positive("S_c", "steps", (1e2, 1e3, 1e4)),
            exponent("alpha_N", SMALL),
            exponent("alpha_S", (0.2, 0.4, 0.7, 1.0)),
        ),
        predict=lambda p, x: (p["N_c"] / x["N"]) ** p["alpha_N"] + (p["S_c"] / x["S_min"]) ** p["alpha_S"],
        objective=SQUARES,
        published=(Published(f"{SOURCE}, table 3", {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76}),),
    )
)

KAPLAN_CRITICAL_BATCH = register(
    Law(
        name="kaplan-critical-batch",
        family="critical batch size",
        formula="B = B_* / L^(1 / alpha_B)",
        source=f"{SOURCE}, equation 1.4",
        columns=(LOSS,),
        target=B,
        parameters=(positive("B_*", "tokens"), exponent("alpha_B", (0.1, 0.2, 0.4, 0.8))),
        predict=lambda p, x: p["B_*"] * x["loss"] ** (-1 / p["alpha_B"]),
        linear=("B_*",),
        objective=SQUARES,
        published=(Published(f"{SOURCE}, table 5", {"B_*": 2.1e8, "alpha_B": 0.21}, "equation 1.4 rounds to 2e8"),),
    )
)
