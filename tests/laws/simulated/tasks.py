"""Losses from losses, repeated sampling, and tasks from benchmarks."""

from __future__ import annotations

import numpy as np

from lab.laws.simulate import Simulation

SAMPLES = np.unique(np.round(np.geomspace(1, 1e4, 24)))


def models() -> dict[str, np.ndarray]:
    """Components of 120 models, spread as those of published benchmarks: the first is far the strongest."""
    scores = np.random.default_rng(13).standard_normal((120, 3)) * (0.4, 0.12, 0.08)
    return {f"PC{i + 1}": scores[:, i] for i in range(3)}


SIMULATIONS = (
    Simulation(
        "loss-to-loss",
        {"K": 1.1, "kappa": 0.85, "E0": 1.7, "E1": 0.8},
        {"L0": 1.7 + np.geomspace(0.1, 6, 48)},
        0.003,
    ),
    Simulation("pass-at-k", {"a": -2.1, "b": -0.38}, {"k": SAMPLES}, 0.01),
    Simulation("pass-at-k-beta", {"alpha": 0.35, "beta": 2.4}, {"k": SAMPLES}, 0.01),
    Simulation("passuntil", {"c": 900.0, "alpha": 0.27}, {"N": np.geomspace(3e7, 2.4e9, 12)}, 0.1),
    Simulation(
        "observational",
        {"alpha": -0.5, "beta_1": 5.0, "beta_2": 3.0, "beta_3": -2.0, "h": 0.9},
        models(),
        0.02,
    ),
    Simulation("capability", {"theta": 0.11, "nu": -5.6}, {"C": np.geomspace(1e20, 1e25, 12)}, 0.05),
)
