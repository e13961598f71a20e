"""Mixtures of experts: loss in size, experts, tokens and granularity.

Clark et al. 2022 and Ludziejewski et al. 2025 let the number of experts E saturate at both ends (equation 4 of either):

    1 / Ehat = 1 / (E - 1 + 1 / (1/E_start - 1/E_max)) + 1 / E_max

Ehat is E_start at one expert and tends to E_max; E_start = 1 with E_max far away gives Ehat = E.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lab.laws.catalogue.columns import LOSS, D
from lab.laws.catalogue.hoffmann import EXPONENTS
from lab.laws.law import Column, Derived, Law, Published, exponent, positive, real, register
from lab.laws.objective import Objective

N_ACT = Column("N_act", "parameters", "parameters that a token meets, embedding and unembedding included")
E = Column("E", "experts", "experts of a routed layer; 1 is dense")
SATURATION = (
    positive("E_start", "experts", (2.0, 4.0), 0.1, 30.0, "Ehat of a dense model"),
    positive("E_max", "experts", (100.0, 500.0), 32.0, 1e6, "Ehat of infinitely many experts"),
)


def saturated(experts: Any, start: Any, end: Any) -> Any:
    """Ehat of E experts; `start` < `end`."""
    return 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / end)) + 1 / end)


def _routed(p, x):
    size, experts = jnp.log10(x["N"]), jnp.log10(saturated(x["E"], p["E_start"], p["E_max"]))
    return 10 ** (p["a"] * size + p["b"] * experts + p["c"] * size * experts + p["d"])


def _clark(router: str, a: float, b: float, c: float, d: float, start: float, end: float, cutoff: float) -> Published:
    values = {"a": a, "b": b, "c": c, "d": d, "E_start": start, "E_max": end}
    note = f"read in a digest; the paper states a cutoff of {cutoff:g} parameters, from constants before rounding"
    return Published(f"Clark et al. 2022, table 3, {router}", values, note, recalled=True)


ROUTED = register(
    Law(
        name="routed",
        family="mixtures of experts",
        formula="log10 L = a log10 N + b log10 Ehat + c log10 N log10 Ehat + d",
        source="Clark et al. 2022, arXiv 2202.01169, equation 1",
        columns=(Column("N", "parameters", "size of the dense model that is routed"), E),
        target=LOSS,
        parameters=(
            real("a", "", (-0.05, -0.15), -2, 2),
            real("b", "", (-0.1, -0.3), -2, 2),
            real("c", "", (0.0, 0.02), -1, 1, "above 0: larger models gain less from experts"),
            real("d", "log10 nats per token", (0.5, 1.5), -20, 20),
            *SATURATION,
        ),
        predict=_routed,
        objective=Objective("least-squares"),
        derived=(
            Derived(
                "log10_N_cutoff", "log10 parameters", lambda p: -p["b"] / p["c"], "size beyond which routing harms"
            ),
        ),
        published=(
            _clark("S-BASE", -0.082, -0.108, 0.009, 1.104, 1.847, 314.478, 937e9),
            _clark("RL-R", -0.083, -0.126, 0.012, 1.111, 1.880, 469.982, 85e9),
            _clark("HASH", -0.087, -0.136, 0.012, 1.157, 4.175, 477.741, 83e9),
        ),
    )
)


def effective_parameters(p: Mapping[str, Any], N: Any, experts: Any) -> Any:
    """Size of the dense model with a routed one's loss, by constants of `routed` (Clark et al. 2022, equation 11)."""
    dense = p["a"] + p["c"] * jnp.log10(p["E_start"])
    at = jnp.log10(saturated(experts, p["E_start"], p["E_max"]))
    size = jnp.log10(N)
    return 10 ** ((p["a"] * size + p["b"] * (at - jnp.log10(p["E_start"])) + p["c"] * size * at) / dense)


def at_experts(p: Mapping[str, Any], experts: Any) -> dict[str, Any]:
    """Constants of L = m N_act^mu + n D^nu + c at a fixed number of experts, by constants of `joint-moe` (table 4)."""
    Ehat = saturated(experts, p["E_start"], p["E_max"])
    return {
        "m": p["a"] * Ehat ** p["delta"],
        "mu": p["alpha"] + p["gamma"] * jnp.log(Ehat),
        "n": p["b"] * Ehat ** p["omega"],
        "nu": p["beta"] + p["zeta"] * jnp.log(Ehat),
        "c": p["c"],
    }


def _joint(p, x):
    at = at_experts(p, x["E"])
    return at["m"] * x["N_act"] ** at["mu"] + at["n"] * x["D"] ** at["nu"] + at["c"]


def _share_of_size(p: Mapping[str, Any], experts: float) -> Any:
    """Exponent of N_act in the compute-optimal N_act ~ C^a (equation 7)."""
    at = at_experts(p, experts)
    return at["nu"] / (at["mu"] + at["nu"])


JOINT_MOE = register(
    Law(
        name="joint-moe",
        family="mixtures of experts",
        formula="L = a Ehat^delta N_act^(alpha + gamma ln Ehat) + b Ehat^omega D^(beta + zeta ln Ehat) + c",
        source="Ludziejewski et al. 2025, arXiv 2502.05172, equation 6",
        columns=(N_ACT, D, E),
        target=LOSS,
        parameters=(
            positive("a", "nats per token"),
            real("alpha", "", (-0.1, -0.2, -0.4), -3, 3),
            real("delta", "", (-0.3, 0.0), -5, 5),
            real("gamma", "", (0.0, 0.02), -1, 1),
            positive("b", "nats per token"),
            real("beta", "", (-0.1, -0.2, -0.4), -3, 3),
            real("omega", "", (0.0, 0.5), -5, 5),
            real("zeta", "", (-0.03, 0.0), -1, 1),
            *SATURATION,
            positive("c", "nats per token", low=1e-8, meaning="loss of an infinite model on infinite data"),
        ),
        predict=_joint,
        linear=("a", "b", "c"),
        objective=Objective("huber", delta=0.01),
        derived=(
            Derived("a_dense", "", lambda p: _share_of_size(p, 1.0), "exponent of N_act in N_act ~ C^a, one expert"),
            Derived("a_8", "", lambda p: _share_of_size(p, 8.0), "the same with 8 experts"),
        ),
        published=(
            Published(
                "Ludziejewski et al. 2025, table 3",
                {
                    **{"a": 35.91, "alpha": -0.1889, "delta": -0.2285, "gamma": 0.0098},
                    **{"b": 35.98, "beta": -0.1775, "omega": 0.5529, "zeta": -0.0259},
                    **{"E_start": 2.0732, "E_max": 290.4521, "c": 1.3637},
                },
                "rows weigh less as loss is higher; up to 32 experts; table 4 follows from E_start 2.083, not 2.0732",
            ),
        ),
    )
)

FINE_GRAINED_MOE = register(
    Law(
        name="fine-grained-moe",
        family="mixtures of experts",
        formula="L = c + (g / G^gamma + a) / N^alpha + b / D^beta",
        source="Krajewski et al. 2024, arXiv 2402.07871, equation 9",
        columns=(
            Column("N", "parameters", "all parameters but embeddings"),
            D,
            Column("G", "", "granularity: width of the feed-forward layer over that of an expert"),
        ),
        target=LOSS,
        parameters=(
            positive("c", "nats per token", low=1e-8, meaning="loss of an infinite model on infinite data"),
            positive("g", "nats per token", low=1e-12, meaning="what experts as wide as the layer cost"),
            positive("a", "nats per token", low=1e-12),
            positive("b", "nats per token", low=1e-12),
            exponent("gamma", (0.2, 0.6, 1.5)),
            exponent("alpha", EXPONENTS),
            exponent("beta", EXPONENTS),
        ),
        predict=lambda p, x: (
            p["c"] + (p["g"] * x["G"] ** -p["gamma"] + p["a"]) * x["N"] ** -p["alpha"] + p["b"] * x["D"] ** -p["beta"]
        ),
        linear=("c", "g", "a", "b"),
        published=(
            Published(
                "Krajewski et al. 2024, table of fitted coefficients",
                {"a": 18.1, "alpha": 0.115, "b": 30.8, "beta": 0.147, "g": 2.1, "gamma": 0.58, "c": 0.47},
                "read in a digest",
                recalled=True,
            ),
        ),
    )
)
