"""Loss in width and depth (McLeish et al. 2025, "Gemstones", arXiv 2502.06857): a sum of one power law per variable.

Depth counts blocks. N follows from width and depth but for embeddings and ratios, so that the four-variable law is
identified only by models that vary those; it is the authors' check of whether N says more than shape does. Names of
constants are ours in order of the columns: the authors print vectors.
"""

from __future__ import annotations

from lab.laws.catalogue.columns import LOSS, D, N
from lab.laws.law import Column, Law, exponent, positive, register

SOURCE = "McLeish et al. 2025, arXiv 2502.06857"
WIDTH = Column("width", "features", "of the residual stream")
DEPTH = Column("depth", "blocks")


def _sum_of_powers(
    name: str, columns: tuple[Column, ...], coefficients: str, exponents: tuple[str, ...], starts
) -> Law:
    terms = list(zip(coefficients, columns, exponents))

    def loss(p, x):
        return p["E"] + sum(p[factor] * x[column.name] ** -p[power] for factor, column, power in terms)

    return register(
        Law(
            name=name,
            family="loss in shape",
            formula="L = E + " + " + ".join(f"{factor} / {column.name}^{power}" for factor, column, power in terms),
            source=SOURCE,
            columns=columns,
            target=LOSS,
            parameters=(
                positive("E", "nats per token", low=1e-8),
                *(positive(factor, "nats per token", low=1e-12) for factor in coefficients),
                *(exponent(power, starts) for power in exponents),
            ),
            predict=loss,
            linear=("E", *coefficients),
        )
    )


WIDTH_DEPTH = _sum_of_powers(
    "width-depth", (WIDTH, DEPTH, D), "ABC", ("alpha", "beta", "gamma"), (0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 1.8)
)
WIDTH_DEPTH_PARAMETERS = _sum_of_powers(
    "width-depth-parameters", (WIDTH, DEPTH, N, D), "ABCF", ("alpha", "beta", "gamma", "zeta"), (0.15, 0.35, 0.7, 1.3)
)
