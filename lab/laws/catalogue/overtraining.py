"""Loss of over-trained models, and error of downstream tasks as a function of loss (Gadre et al. 2024, 2403.08540).

With M = D / N tokens per parameter and C = 6 N D, a shared exponent alpha = 2 eta turns E + A / N^alpha + B / D^alpha
into their equation 4, E + (a M^eta + b M^-eta) C^-eta: over-training moves the intercept, not the slope in C. They fit
by plain least squares from many starts.
"""

from __future__ import annotations

import jax.numpy as jnp

from lab.laws.catalogue.columns import LOSS, C
from lab.laws.law import Column, Derived, Law, Published, exponent, positive, real, register
from lab.laws.objective import Objective

GADRE = "Gadre et al. 2024, arXiv 2403.08540"
PLAIN = Objective("least-squares", space="linear")
M = Column("M", "tokens per parameter", "D / N")
ERROR = Column("error", "fraction", "top-1 error, mean over tasks", positive=False)
ACCURACY = Column("accuracy", "fraction", positive=False)


def _recalled(corpus: str, **values: float) -> Published:
    return Published(f"{GADRE}, {corpus}", values, recalled=True)


def _loss(p, x):
    ratio = x["M"] ** p["eta"]
    return p["E"] + (p["a"] * ratio + p["b"] / ratio) * x["C"] ** -p["eta"]


OVER_TRAINING = register(
    Law(
        name="over-training",
        family="loss in C and tokens per parameter",
        formula="L = E + (a M^eta + b M^-eta) C^-eta",
        source=f"{GADRE}, equation 4",
        columns=(C, M),
        target=LOSS,
        parameters=(
            positive("E", "nats per token", low=1e-8),
            positive("a", "nats per token", low=1e-12),
            positive("b", "nats per token", low=1e-12),
            exponent("eta", (0.03, 0.06, 0.1, 0.13, 0.17, 0.22, 0.3, 0.5)),
        ),
        predict=_loss,
        linear=("E", "a", "b"),
        objective=PLAIN,
        derived=(
            Derived("M*", "tokens per parameter", lambda p: (p["b"] / p["a"]) ** (0.5 / p["eta"]), "optimal", log=True),
        ),
        published=(
            _recalled("C4", E=1.51, a=141, b=190, eta=0.121),
            _recalled("RedPajama", E=1.84, a=212, b=367, eta=0.136),
            _recalled("RefinedWeb", E=1.73, a=157, b=246, eta=0.127),
        ),
    )
)

DOWNSTREAM_EXPONENTIAL = register(
    Law(
        name="downstream-exponential",
        family="downstream error and loss",
        formula="error = epsilon - k exp(-gamma L)",
        source=f"{GADRE}, equation 5",
        columns=(LOSS,),
        target=ERROR,
        parameters=(
            real("epsilon", "fraction", meaning="error of a model that knows nothing"),
            positive("k", "fraction", low=1e-12),
            positive("gamma", "1 / nats", (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0), low=1e-4, high=1e3),
        ),
        predict=lambda p, x: p["epsilon"] - p["k"] * jnp.exp(-p["gamma"] * x["loss"]),
        linear=("epsilon", "k"),
        objective=PLAIN,
        published=(
            _recalled("C4", epsilon=0.850, k=2.08, gamma=0.756),
            _recalled("RedPajama", epsilon=0.857, k=2.21, gamma=0.715),
            _recalled("RefinedWeb", epsilon=0.865, k=2.21, gamma=0.707),
        ),
    )
)

DOWNSTREAM_SIGMOID = register(
    Law(
        name="downstream-sigmoid",
        family="downstream error and loss",
        formula="accuracy = a / (1 + exp(-k (L - L0))) + b",
        source="Bhagia et al. 2024, arXiv 2412.04403, step 2",
        columns=(LOSS,),
        target=ACCURACY,
        parameters=(
            real("a", "fraction", meaning="rise from small to large loss; negative where accuracy falls with loss"),
            positive("k", "1 / nats", (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), low=1e-3, high=1e4, meaning="steepness"),
            real("L0", "nats per token", (0.5, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 4.0), -50, 50, "loss at half of the rise"),
            real("b", "fraction", meaning="accuracy at small loss"),
        ),
        predict=lambda p, x: p["a"] / (1 + jnp.exp(-p["k"] * (x["loss"] - p["L0"]))) + p["b"],
        linear=("a", "b"),
        objective=PLAIN,
    )
)
