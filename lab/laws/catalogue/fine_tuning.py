"""Fine-tuning: loss in the examples that a pre-trained model is shown."""

from __future__ import annotations

from lab.laws.catalogue.columns import LOSS
from lab.laws.law import Column, Derived, Law, exponent, positive, register

RECTIFIED = register(
    Law(
        name="rectified",
        family="fine-tuning",
        formula="L = B / (D_l + D^beta) + E",
        source="Lin et al. 2024, arXiv 2402.02314",
        columns=(Column("D", "examples", "fine-tuning examples, in a unit that is kept"),),
        target=LOSS,
        parameters=(
            positive("B", "nats per token x examples^beta", low=1e-12),
            positive("D_l", "examples^beta", (1.0, 10.0, 100.0, 1e3, 1e4), 1e-6, 1e12, "pre-learned data size"),
            exponent("beta", (0.2, 0.4, 0.6, 0.9, 1.3)),
            positive("E", "nats per token", low=1e-8, meaning="loss after infinitely many examples"),
        ),
        predict=lambda p, x: p["B"] / (p["D_l"] + x["D"] ** p["beta"]) + p["E"],
        linear=("B", "E"),
        derived=(
            Derived("L_0", "nats per token", lambda p: p["E"] + p["B"] / p["D_l"], "loss before fine-tuning"),
            Derived(
                "D_turn",
                "examples",
                lambda p: p["D_l"] ** (1 / p["beta"]),
                "examples at which the excess loss has halved: from the pre-power phase to the power phase",
                log=True,
            ),
        ),
    )
)

FINE_TUNING = register(
    Law(
        name="fine-tuning",
        family="fine-tuning",
        formula="L = A X^-alpha D_f^-beta + E",
        source="Zhang et al. 2024, arXiv 2402.17193",
        columns=(
            Column("X", "any", "what is scaled: model size, pre-training tokens or tuned parameters"),
            Column("D_f", "examples", "fine-tuning examples"),
        ),
        target=LOSS,
        parameters=(
            positive("A", "nats per token"),
            exponent("alpha", (0.05, 0.1, 0.2, 0.4, 0.8)),
            exponent("beta", (0.05, 0.1, 0.2, 0.4, 0.8)),
            positive("E", "nats per token", low=1e-8),
        ),
        predict=lambda p, x: p["A"] * x["X"] ** -p["alpha"] * x["D_f"] ** -p["beta"] + p["E"],
        linear=("A", "E"),
        derived=(
            Derived(
                "alpha_over_beta", "", lambda p: p["alpha"] / p["beta"], "ln D_f that a unit of ln X is worth", True
            ),
        ),
    )
)
