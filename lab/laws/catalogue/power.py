"""Power laws of one variable, with and without a floor."""

from __future__ import annotations

from lab.laws.law import Column, Derived, Law, Published, exponent, positive, real, register
from lab.laws.objective import Objective

X, Y = Column("x", "any"), Column("y", "any")
SLOPES = (-1.0, -0.5, -0.2, 0.2, 0.5, 1.0)
LINE = Objective("least-squares")  # of logs: ordinary regression of ln y on ln x


def power_law(
    name: str,
    x: Column,
    y: Column,
    coefficient: str = "c",
    power: str = "p",
    family: str = "power laws",
    source: str = "-",
    derived: tuple[Derived, ...] = (),
    published: tuple[Published, ...] = (),
    falling: bool = False,
) -> Law:
    """Registers y = coefficient x^power; of a `falling` law the paper prints the power without its minus sign."""
    sign = -1.0 if falling else 1.0
    return register(
        Law(
            name=name,
            family=family,
            formula=f"{y.name} = {coefficient} {x.name}^{'-' if falling else ''}{power}",
            source=source,
            columns=(x,),
            target=y,
            parameters=(positive(coefficient), real(power, "", SLOPES, -10, 10)),
            predict=lambda p, columns: p[coefficient] * columns[x.name] ** (sign * p[power]),
            linear=(coefficient,),
            objective=LINE,
            derived=derived,
            published=published,
        )
    )


POWER = power_law("power", X, Y)

POWER_OFFSET = register(
    Law(
        name="power-offset",
        family="power laws",
        formula="y = E + c x^-p",
        source="-",
        columns=(X,),
        target=Y,
        parameters=(
            positive("E", meaning="floor"),
            positive("c"),
            exponent("p", (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0)),
        ),
        predict=lambda p, x: p["E"] + p["c"] * x["x"] ** -p["p"],
        linear=("E", "c"),
        objective=LINE,
    )
)
