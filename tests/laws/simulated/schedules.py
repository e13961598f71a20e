"""Loss curves under schedules: a constant learning rate, then one drop to each of several lower ones."""

from __future__ import annotations

import numpy as np

from lab.laws.schedules import columns, stack
from lab.laws.simulate import Simulation

PEAK, UPDATES, DROP_AT = 1e-3, 20_000, 6_000
SHARES = (1.0, 0.5, 0.2, 0.08, 0.03)  # of the peak, after the drop


def design() -> dict[str, np.ndarray]:
    """Points before the drop and, ever further apart, after it, of five runs."""
    steps = np.r_[np.geomspace(300, DROP_AT - 1, 6), DROP_AT + np.geomspace(10, UPDATES - DROP_AT - 1, 12)].astype(int)
    histories = [np.where(np.arange(UPDATES) < DROP_AT, PEAK, share * PEAK) for share in SHARES]
    return stack([columns(lr, steps) for lr in histories])


def of(*names: str) -> dict[str, np.ndarray]:
    """The design's columns of these names."""
    everything = design()
    return {name: everything[name] for name in names}


SIMULATIONS = (
    Simulation("annealing", {"L0": 2.6, "A": 0.5, "alpha": 0.5, "C": 0.2}, of("S1", "S2"), 0.002),
    Simulation(
        "multi-power",
        {"L0": 3.0, "A": 0.5, "alpha": 0.5, "B": 360.0, "C": 2.0, "beta": 0.6, "gamma": 0.6},
        of("S1", "drop", "drop_lr", "drop_sum"),
        0.001,
    ),
)
