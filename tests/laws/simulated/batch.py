"""Critical batch size, optimal learning rate and batch."""

from __future__ import annotations

import numpy as np

from lab.laws.simulate import Simulation
from tests.laws.simulated.loss import grid

BATCHES = 2.0 ** np.arange(6, 15)
CELLS = grid(N=np.geomspace(2e8, 1.1e9, 5), D=np.geomspace(2e9, 1e11, 5))


def sweep() -> dict[str, np.ndarray]:
    """The same 3 learning rates and 3 batches in every (N, D) cell, so that the optimum lies elsewhere in each."""
    axes = {"lr": np.geomspace(3e-4, 6e-3, 3), "B": np.geomspace(8e4, 2e6, 3)}
    return grid(**axes, N=np.geomspace(6e7, 1e9, 4), D=np.geomspace(2e9, 1e11, 4))


SIMULATIONS = (
    Simulation("critical-batch", {"a": 2100.0, "b": 1.1e7}, {"B": BATCHES}, 0.03),
    Simulation("mccandlish", {"S_min": 2100.0, "E_min": 1.1e7}, {"B": BATCHES}, 0.03),
    Simulation("kaplan-critical-batch", {"B_*": 2.1e8, "alpha_B": 0.21}, {"loss": np.geomspace(2.5, 8, 24)}, 0.3),
    Simulation("critical-batch-parameters", {"c": 93.2, "p": 0.468}, {"N": np.geomspace(85, 1200, 8)}, 0.05),
    Simulation("critical-batch-tokens", {"c": 17.75, "p": 0.47}, {"D": np.geomspace(1e3, 5e4, 8)}, 0.05),
    Simulation("step-law-lr", {"c": 1.79, "alpha": -0.713, "beta": 0.307}, CELLS, 0.2),
    Simulation("step-law-batch", {"d": 0.58, "gamma": 0.571}, CELLS, 0.2),
    Simulation("lr-horizon", {"c": 1.2, "beta": 0.32}, {"D": np.geomspace(2e10, 8e11, 8)}, 0.1),
    Simulation(
        "lr-surface",
        {"E": 1.8, "A_N": 480.0, "A_D": 2100.0, "alpha_N": 0.35, "alpha_D": 0.37}
        | {"lr0": 8e-4, "alpha": -0.713, "beta": 0.307, "B0": 3e5, "gamma": 0.571}
        | {"h_lr": 0.02, "h_B": 0.01, "rho": -0.4},
        sweep(),
        0.003,
    ),
)
