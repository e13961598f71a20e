"""True constants and designs of every law in the catalogue, one module a family of papers.

Each module gives SIMULATIONS, a tuple of `lab.laws.simulate.Simulation`. A design is one on which the constants are
identified: it spans what a published sweep spans, or more where those are known not to identify the law.
"""

from __future__ import annotations

import importlib
import pkgutil

from lab.laws.simulate import Simulation


def simulations() -> dict[str, Simulation]:
    """By law. A law has one."""
    found: dict[str, Simulation] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        for simulation in importlib.import_module(f"{__name__}.{module}").SIMULATIONS:
            if simulation.name in found:
                raise ValueError(f"law {simulation.name} is simulated twice")
            found[simulation.name] = simulation
    return found
