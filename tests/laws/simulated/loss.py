"""Laws of the loss in size, data, compute, repetition, shape and vocabulary; downstream error."""

from __future__ import annotations

import numpy as np

from lab.laws.simulate import Simulation


def grid(**axes: np.ndarray) -> dict[str, np.ndarray]:
    """All combinations, each column [n]."""
    return dict(zip(axes, (each.ravel() for each in np.meshgrid(*axes.values(), indexing="ij"))))


def scattered(n: int, seed: int, **ranges: tuple[float, float]) -> dict[str, np.ndarray]:
    """n points, log-uniform and independent."""
    rng = np.random.default_rng(seed)
    return {name: np.exp(rng.uniform(np.log(low), np.log(high), n)) for name, (low, high) in ranges.items()}


def isoflop() -> dict[str, np.ndarray]:
    """Nine budgets, seven sizes each, within a factor of 8 of N = 0.2 C^0.49."""
    columns = grid(C=np.geomspace(1e18, 1e22, 9), off=np.geomspace(1 / 8, 8, 7))
    return {"C": columns["C"], "N": 0.2 * columns["C"] ** 0.49 * columns["off"]}


def repeated() -> dict[str, np.ndarray]:
    """Sizes, unique tokens and epochs from 1 to 256, so that excess and repetition are both seen to saturate."""
    epochs = np.array([1.0, 4, 16, 64, 256])
    columns = grid(N=np.geomspace(2e7, 2e10, 6), U=np.geomspace(1e8, 3e10, 4), epochs=epochs)
    return {"N": columns["N"], "U": columns["U"], "D": columns["U"] * columns["epochs"]}


def shapes() -> dict[str, np.ndarray]:
    """Widths, depths and tokens; N / (width^2 depth) varies from 2 to 60, by the width of the feed-forward part."""
    columns = scattered(140, 5, width=(64, 8192), depth=(2, 128), D=(1e8, 1e12), ratio=(2, 60))
    columns["N"] = columns.pop("ratio") * columns["width"] ** 2 * columns["depth"]
    return columns


HOFFMANN = {"E": 1.8172, "A": 477.8, "B": 2143.4, "alpha": 0.3473, "beta": 0.3672}
SHARED = {"E": 1.869, "A": 520.8, "B": 1487.7, "alpha": 0.35266}
SIZES = scattered(80, 1, N=(4e7, 1.5e10), D=(2e8, 5e11))
LOSSES = {"loss": np.linspace(2.0, 5.5, 60)}

SIMULATIONS = (
    Simulation("power", {"c": 3.0, "p": -0.4}, {"x": np.geomspace(1, 1e4, 24)}, 0.05),
    Simulation("power-offset", {"E": 1.7, "c": 6.0, "p": 0.35}, {"x": np.geomspace(1, 1e5, 60)}, 0.01),
    Simulation("kaplan-n", {"N_c": 8.8e13, "alpha_N": 0.076}, {"N": np.geomspace(1e5, 1e9, 30)}, 0.01),
    Simulation("kaplan-d", {"D_c": 5.4e13, "alpha_D": 0.095}, {"D": np.geomspace(2e7, 2e10, 30)}, 0.01),
    Simulation(
        "kaplan",
        {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
        grid(N=np.geomspace(4e5, 7e8, 8), D=np.geomspace(2e7, 2e10, 8)),
        0.01,
    ),
    Simulation(
        "kaplan-steps",
        {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
        grid(N=np.geomspace(1e6, 1e9, 6), S_min=np.geomspace(1e3, 3e5, 10)),
        0.01,
    ),
    Simulation("hoffmann", HOFFMANN, SIZES, 0.005),
    Simulation("hoffmann-shared", SHARED, SIZES, 0.005),
    Simulation(
        "isoflop", {"E": 1.7, "F": 1200.0, "gamma": 0.155, "kappa": 0.012, "k": 0.2, "a": 0.49}, isoflop(), 0.003
    ),
    Simulation("isoflop-parameters", {"k": 0.2, "a": 0.49}, {"C": np.geomspace(1e18, 1e22, 9)}, 0.08),
    Simulation("isoflop-tokens", {"k": 0.83, "b": 0.51}, {"C": np.geomspace(1e18, 1e22, 9)}, 0.08),
    Simulation("isoflop-loss", {"E": 1.7, "F": 1200.0, "gamma": 0.155}, {"C": np.geomspace(1e17, 1e24, 40)}, 0.003),
    Simulation(
        "over-training",
        {"E": 1.51, "a": 141.0, "b": 190.0, "eta": 0.121},
        grid(C=np.geomspace(1e17, 1e22, 10), M=np.array([5.0, 20, 80, 160, 320, 640])),
        0.01,
    ),
    Simulation("downstream-exponential", {"epsilon": 0.85, "k": 2.08, "gamma": 0.756}, LOSSES, 0.01),
    Simulation("downstream-sigmoid", {"a": -0.55, "k": 2.5, "L0": 3.4, "b": 0.8}, LOSSES, 0.01),
    Simulation("data-constrained", {**SHARED, "R_D*": 15.4, "R_N*": 5.3}, repeated(), 0.005),
    Simulation(
        "width-depth",
        {"E": 1.8, "A": 60.0, "B": 1.2, "C": 2000.0, "alpha": 0.75, "beta": 0.9, "gamma": 0.37},
        {name: values for name, values in shapes().items() if name != "N"},
        0.003,
    ),
    Simulation(
        "width-depth-parameters",
        {"E": 1.8, "A": 60.0, "B": 2.0, "C": 400.0, "F": 2000.0}
        | {"alpha": 0.9, "beta": 1.0, "gamma": 0.35, "zeta": 0.37},
        shapes(),
        0.003,
    ),
    Simulation(
        "vocabulary",
        {"E": 5.53, "A1": 1.83, "A2": 0.196, "B": 2.12, "alpha1": 0.447, "alpha2": 0.67},
        scattered(120, 7, Nnv=(30, 3000), Nv=(0.5, 300), D=(0.05, 50)),
        0.01,
    ),
    Simulation("vocabulary-isoflop", {"k": 0.204, "a": 0.416}, {"C": np.geomspace(1e17, 1e21, 12)}, 0.15),
)
