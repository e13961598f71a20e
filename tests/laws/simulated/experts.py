"""Mixtures of experts, precision and fine-tuning."""

from __future__ import annotations

import numpy as np

from lab.laws.simulate import Simulation
from tests.laws.simulated.loss import HOFFMANN, grid, scattered

EXPERTS = 2.0 ** np.arange(10)
PARTS = ("w", "a", "kv")


def bits() -> dict[str, np.ndarray]:
    """Sizes and tokens, at 16 bits, with each part in turn and all together at fewer."""
    rows = [(16.0, 16.0, 16.0)]
    for low in (3.0, 4.0, 6.0, 8.0):
        rows += [tuple(low if i in parts else 16.0 for i in range(3)) for parts in ((0,), (1,), (2,), (0, 1, 2))]
    columns = grid(N=np.geomspace(3e6, 3e9, 4), D=np.geomspace(3e8, 3e11, 4), row=np.arange(len(rows)))
    table = np.array(rows)[columns.pop("row")]
    return columns | {f"P_{part}": table[:, i] for i, part in enumerate(PARTS)}


SIMULATIONS = (
    Simulation(
        "routed",
        {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.847, "E_max": 314.478},
        grid(N=np.geomspace(1.5e7, 1.3e9, 6), E=EXPERTS),
        0.002,
    ),
    Simulation(
        "joint-moe",
        {"a": 35.91, "alpha": -0.1889, "delta": -0.2285, "gamma": 0.0098}
        | {"b": 35.98, "beta": -0.1775, "omega": 0.5529, "zeta": -0.0259}
        | {"E_start": 2.0732, "E_max": 290.4521, "c": 1.3637},
        grid(N_act=np.geomspace(1e7, 1e10, 5), D=np.geomspace(1e8, 1e11, 5), E=np.array([1.0, 2, 8, 32, 128, 512])),
        0.003,
    ),
    Simulation(
        "fine-grained-moe",
        {"c": 0.47, "g": 2.1, "a": 18.1, "b": 30.8, "gamma": 0.58, "alpha": 0.115, "beta": 0.147},
        grid(N=np.geomspace(1e7, 1e11, 5), D=np.geomspace(1e8, 1e12, 5), G=2.0 ** np.arange(7)),
        0.002,
    ),
    Simulation(
        "upcycling",
        {"A": 800.0, "alpha1": 0.25, "alpha2": 0.3, "alpha3": 0.009, "E": 1.9},
        grid(D1=np.geomspace(1e8, 3e11, 8), D2=np.geomspace(1e8, 3e11, 8)),
        0.003,
    ),
    Simulation("sparse-average", HOFFMANN, scattered(200, 11, N_average=(2e7, 5e9), D=(2e8, 5e11)), 0.01),
    Simulation(
        "precision",
        {**HOFFMANN, "gamma_w": 2.67, "gamma_a": 2.21, "gamma_kv": 0.96},
        bits(),
        0.01,
    ),
    Simulation(
        "post-training-quantization",
        {"C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907},
        grid(N=np.geomspace(3e7, 2.2e8, 4), D=np.geomspace(1.5e9, 2.6e10, 6), P_post=np.arange(3.0, 7.0)),
        0.1,
    ),
    Simulation(
        "rectified",
        {"B": 365.0, "D_l": 166.0, "beta": 0.6, "E": 0.8},
        {"D": np.repeat(200.0 * 2.0 ** np.arange(14), 3)},
        0.01,
    ),
    Simulation(
        "fine-tuning",
        {"A": 200.0, "alpha": 0.2, "beta": 0.08, "E": 0.6},
        grid(X=np.geomspace(1e8, 1e11, 8), D_f=np.geomspace(1e3, 1e8, 8)),
        0.01,
    ),
)
