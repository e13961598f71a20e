"""What a law is: a formula with named, bounded parameters, the columns it reads, and how its paper fits it.

    power = register(Law(
        name="power", formula="y = c x^p", source="-", columns=(Column("x", "any"),), target=Column("y", "any"),
        parameters=(positive("c", starts=(1.0,)), real("p", starts=(-1.0, -0.3, 0.3, 1.0))),
        predict=lambda p, x: p["c"] * x["x"] ** p["p"], linear=("c",)))

`predict` takes scalars by parameter name and arrays [n] by column name and gives the target [n]; it is written in
operators and `jax.numpy`, so that its derivatives are exact.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from lab.laws.errors import LawError
from lab.laws.objective import Objective


@dataclasses.dataclass(frozen=True)
class Column:
    """A column that a law reads. `positive`: a value of zero or less is an error, as it has no logarithm."""

    name: str
    unit: str
    meaning: str = ""
    positive: bool = True


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A constant of a law.

    Attributes:
      low, high: bounds in natural units, closed.
      log: searched as its logarithm; `low` is then above 0.
      starts: where searches begin, in natural units; ignored for a linear parameter, which is solved for.
    """

    name: str
    unit: str
    low: float
    high: float
    log: bool
    starts: tuple[float, ...]
    meaning: str = ""

    def __post_init__(self):
        if not self.low < self.high or (self.log and not self.low > 0):
            raise LawError(
                f"parameter {self.name}: found bounds {self.low} to {self.high}, expected low < high, and > 0"
            )
        if not self.starts or not all(self.low <= start <= self.high for start in self.starts):
            raise LawError(f"parameter {self.name}: starts {self.starts} must lie within {self.low} to {self.high}")

    @property
    def box(self) -> tuple[float, float]:
        """Bounds of the coordinate that is searched."""
        return (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)


def positive(name: str, unit: str = "", starts=(1.0,), low=1e-30, high=1e30, meaning="") -> Parameter:
    """A parameter above zero, searched as its logarithm."""
    return Parameter(name, unit, low, high, True, tuple(starts), meaning)


def real(name: str, unit: str = "", starts=(0.0,), low=-math.inf, high=math.inf, meaning="") -> Parameter:
    """A parameter that is searched as it is."""
    return Parameter(name, unit, low, high, False, tuple(starts), meaning)


def exponent(name: str, starts=(0.1, 0.25, 0.5, 1.0), low=1e-4, high=5.0, meaning="") -> Parameter:
    """An exponent above zero, searched as its logarithm."""
    return Parameter(name, "", low, high, True, tuple(starts), meaning)


@dataclasses.dataclass(frozen=True)
class Derived:
    """A quantity that follows from a law's parameters (scalars by name), for example a = beta / (alpha + beta)."""

    name: str
    unit: str
    value: Callable[[Mapping[str, Any]], Any]
    meaning: str = ""
    log: bool = False  # positive; its interval is searched in logarithms


@dataclasses.dataclass(frozen=True)
class Published:
    """Constants as a source prints them. `recalled`: the number was not re-read."""

    source: str
    values: Mapping[str, float]
    note: str = ""
    recalled: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """See the module's text.

    Attributes:
      target: the column that `predict` gives.
      linear: parameters in which `predict` is linear, once the others are fixed; they are solved for at each start.
      objective: what the paper minimises.
      derived: quantities reported beside the constants, with intervals of their own.
    """

    name: str
    formula: str
    source: str
    columns: tuple[Column, ...]
    target: Column
    parameters: tuple[Parameter, ...]
    predict: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    linear: tuple[str, ...] = ()
    objective: Objective = Objective("huber", delta=1e-3)
    derived: tuple[Derived, ...] = ()
    published: tuple[Published, ...] = ()
    family: str = ""

    def __post_init__(self):
        known = {parameter.name for parameter in self.parameters}
        if not set(self.linear) <= known:
            raise LawError(f"law {self.name}: linear {self.linear} are not all among its parameters {sorted(known)}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)

    def natural(self, theta: Any) -> dict[str, Any]:
        """Search coordinates [..., p] -> values by name; numpy and jax arrays alike."""
        import jax.numpy as jnp

        values = {}
        for i, parameter in enumerate(self.parameters):
            values[parameter.name] = jnp.exp(theta[..., i]) if parameter.log else theta[..., i]
        return values

    def search(self, values: Mapping[str, float]) -> list[float]:
        """Values by name -> search coordinates [p].

        Raises:
          LawError: a parameter is missing, unknown or not positive where it must be.
        """
        if set(values) != set(self.names):
            raise LawError(f"law {self.name}: found parameters {sorted(values)}, expected {sorted(self.names)}")
        for parameter in self.parameters:
            if parameter.log and not values[parameter.name] > 0:
                raise LawError(f"law {self.name}: found {parameter.name} = {values[parameter.name]}, expected > 0")
        return [math.log(values[p.name]) if p.log else float(values[p.name]) for p in self.parameters]


_LAWS: dict[str, Law] = {}


def register(law: Law) -> Law:
    """Makes a law known by its name; gives it back.

    Raises:
      LawError: the name is taken.
    """
    if law.name in _LAWS:
        raise LawError(f"law {law.name!r} is registered twice")
    _LAWS[law.name] = law
    return law


def laws() -> dict[str, Law]:
    """Every registered law by name."""
    from lab.laws import catalogue  # noqa: F401  its modules register themselves

    return dict(_LAWS)


def law(name: str) -> Law:
    """The law of a name.

    Raises:
      LawError: unknown, with the known ones that begin so, or else the nearest.
    """
    known = laws()
    if name not in known:
        near = [each for each in known if each.startswith(f"{name}-")] or difflib.get_close_matches(name, known, 1)
        meant = f", did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise LawError(f"unknown law {name!r}{meant}; `lab laws` lists them")
    return known[name]
