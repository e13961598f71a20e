"""Loss curves under any learning-rate schedule; `lab.laws.schedules` makes the columns from a history."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lab.laws.law import Column, Law, Published, exponent, positive, register

LOSS = Column("loss", "nats per token")
AREA = Column("S1", "sum of learning rates", "over all updates so far, warm-up included")
EXPONENTS = (0.25, 0.5, 0.8)


def _annealing(p, x):
    return p["L0"] + p["A"] * x["S1"] ** -p["alpha"] - p["C"] * x["S2"]


ANNEALING = register(
    Law(
        name="annealing",
        family="schedules and loss curves",
        formula="L = L0 + A S1^-alpha - C S2, S2 with a decay of 0.999 per update",
        source="Tissue et al. 2024, arXiv 2408.11029, equation 1",
        columns=(AREA, Column("S2", "sum of learning rates", "annealing area", positive=False)),
        target=LOSS,
        parameters=(
            positive("L0", "nats per token", low=1e-8),
            positive("A", "nats per token", low=1e-12),
            exponent("alpha", (0.1, 0.2, 0.35, 0.5, 0.8, 1.2)),
            positive("C", "nats per token per learning rate", low=1e-12),
        ),
        predict=_annealing,
        linear=("L0", "A", "C"),
    )
)


@jax.custom_jvp
def drops_effect(log_c, gamma, beta, drop, log_lr, reach):
    """sum_k drop_k (1 - (1 + C lr_k^-gamma S_k)^-beta), [n] of drop, log_lr, reach [n, K].

    Its derivatives with respect to the three constants (alone) are written out: nine sums over the same powers, where
    automatic ones would carry a tangent of every constant of the law through [n, K], to the second order.
    """
    return jnp.sum(drop * (1 - _powers(log_c, gamma, beta, log_lr, reach)[1]), -1)


def _powers(log_c, gamma, beta, log_lr, reach):
    """z = C lr^-gamma S, (1 + z)^-beta and ln(1 + z)."""
    z = jnp.exp(log_c - gamma * log_lr) * reach
    log = jnp.log1p(z)
    return z, jnp.exp(-beta * log), log


@jax.custom_jvp
def _slopes(log_c, gamma, beta, drop, log_lr, reach):
    """Derivatives of `drops_effect` with respect to ln C, gamma and beta, each [n]."""
    z, left, log = _powers(log_c, gamma, beta, log_lr, reach)
    by_z = drop * beta * left * z / (1 + z)
    return jnp.sum(by_z, -1), jnp.sum(-log_lr * by_z, -1), jnp.sum(drop * log * left, -1)


@drops_effect.defjvp
def _first_order(primals, tangents):
    slopes = _slopes(*primals)
    return drops_effect(*primals), sum(slope * step for slope, step in zip(slopes, tangents[:3]))


@_slopes.defjvp
def _second_order(primals, tangents):
    _, _, beta, drop, log_lr, _ = primals
    z, left, log = _powers(*primals[:3], *primals[4:])
    share = z / (1 + z)
    zz = drop * beta * left * share * (1 - (beta + 1) * share)  # along ln z twice
    zb = drop * left * share * (1 - beta * log)
    cc, cg, gg, cb, gb, bb = (
        jnp.sum(values, -1) for values in (zz, -log_lr * zz, log_lr**2 * zz, zb, -log_lr * zb, -drop * log**2 * left)
    )
    c, g, b = tangents[:3]
    return _slopes(*primals), (cc * c + cg * g + cb * b, cg * c + gg * g + gb * b, cb * c + gb * g + bb * b)


def _multi_power(p, x):
    data = x["drop"], jnp.log(x["drop_lr"]), x["drop_sum"]
    effect = drops_effect(jnp.log(p["C"]), p["gamma"], p["beta"], *data)
    return p["L0"] + p["A"] * x["S1"] ** -p["alpha"] - p["B"] * effect


MULTI_POWER = register(
    Law(
        name="multi-power",
        family="schedules and loss curves",
        formula="L = L0 + A S1^-alpha - B sum_k drop_k (1 - (1 + C lr_k^-gamma S_k)^-beta), S_k the sum since drop k",
        source="Luo et al. 2025, arXiv 2503.12811, equations 2 to 4",
        columns=(
            AREA,
            Column("drop", "learning rate", "[n, K] lr before minus after each drop", positive=False),
            Column("drop_lr", "learning rate", "[n, K] after each drop"),
            Column("drop_sum", "sum of learning rates", "[n, K] since each drop", positive=False),
        ),
        target=LOSS,
        parameters=(
            positive("L0", "nats per token", low=1e-8),
            positive("A", "nats per token", low=1e-12),
            exponent("alpha", EXPONENTS),
            positive("B", "nats per token per learning rate", low=1e-12),
            positive("C", "", (0.3, 2.0, 12.0), low=1e-12, high=1e12),
            exponent("beta", EXPONENTS),
            exponent("gamma", EXPONENTS),
        ),
        predict=_multi_power,
        linear=("L0", "A", "B"),
        published=(
            Published(
                "Luo et al. 2025, repository, 25M parameters",
                {"L0": 3.04045406, "A": 0.52468604, "alpha": 0.50786857, "B": 363.78751622, "C": 2.06560812,
                 "beta": 0.58279013, "gamma": 0.64142257},
                "AdamW, at most 200 steps",
            ),
            Published(
                "Luo et al. 2025, repository, 100M parameters",
                {"L0": 2.6514477, "A": 0.60115152, "alpha": 0.45295811, "B": 437.9464276, "C": 2.13245612,
                 "beta": 0.59785199, "gamma": 0.65523644},
                "AdamW, at most 200 steps",
            ),
        ),
    )
)  # fmt: skip
