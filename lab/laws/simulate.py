"""Rows drawn from a law whose constants are known: what fits and intervals are judged by.

    Simulation("power", {"c": 2.0, "p": -0.3}, {"x": x}, noise=0.05).rows(seed=0)

In "log" space the target is multiplied by exp(noise z), in "linear" space noise z is added, with z standard normal: the
errors that the objective presumes, of one size for all rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from lab.laws.errors import LawError
from lab.laws.fit import predict
from lab.laws.law import Law, law
from lab.laws.objective import Objective
from lab.laws.solve import Rows, exact


@dataclasses.dataclass(frozen=True, eq=False)
class Simulation:
    """A law by name, its true constants (natural units), the design [n] by column, and the size of the noise.

    `objective`: what the rows will be fitted with, if not the law's own; its space is the noise's.
    """

    name: str
    constants: Mapping[str, float]
    columns: Mapping[str, np.ndarray]
    noise: float
    objective: Objective | None = None

    def __post_init__(self):
        missing = [column.name for column in self.law.columns if column.name not in self.columns]
        if missing:
            raise LawError(f"law {self.name}: the design lacks {', '.join(missing)}; it has {', '.join(self.columns)}")
        if not self.noise >= 0:
            raise LawError(f"found noise {self.noise}, expected 0 or more")

    @property
    def law(self) -> Law:
        return law(self.name)

    @property
    def truth(self) -> dict[str, float]:
        """Constants and derived quantities by name."""
        with exact():
            return {**self.constants, **{d.name: float(d.value(self.constants)) for d in self.law.derived}}

    @property
    def target(self) -> np.ndarray:
        """[n] without noise."""
        return predict(self.law, np.array(self.law.search(self.constants)), self.columns)

    def rows(self, seed: int) -> Rows:
        """One draw; equal seeds give equal rows."""
        target = self.target
        z = np.random.default_rng(seed).standard_normal(len(target))
        space = (self.objective or self.law.objective).space
        target = target * np.exp(self.noise * z) if space == "log" else target + self.noise * z
        columns = {name: np.asarray(values, float) for name, values in self.columns.items()}
        return Rows(columns, target, np.ones(len(target)), np.zeros(len(target), bool))
