"""The neural-tangent parametrization (Jacot et al. 2018, arXiv:1806.07572): unit weights, products over sqrt(fan_in).

    role                        initial std  forward         learning rate: adam, lamb  sgd  decay   epsilon
    embedding                   1            1               1                          1    1       1
    hidden, residual, readout,  1            1/sqrt(fan_in)  1/sqrt(fan_in)             1    1/rate  forward
    router                                   (residual: over sqrt(2 x depth) too)            (lamb: 1)
    norm, bias, recurrence      1            1               1                          1    0       1

Epsilon undoes the factor that `forward` puts into a gradient. Under sgd features stand still as width grows (the kernel
limit). Adam ignores the gradient's size: the rate that keeps the change of the function of one size moves features as
well (Everett et al. 2024, arXiv:2407.05872, table 1), and what is left of the limit are logits of order 1 at
initialization, and scores divided by sqrt(head width), which grow as features move. Logits of a tied readout are
divided by sqrt(width).
"""

from __future__ import annotations

from lab.parametrization import standard
from lab.parametrization.scales import Parametrization, Subject, WeightScale, register


def embedding(s: Subject) -> WeightScale:
    return WeightScale(weight_decay=1.0)


def matrix(s: Subject) -> WeightScale:
    forward = standard.initial_std(s.record)
    rate = 1.0 if s.family == "sgd" else s.fan_in**-0.5
    return WeightScale(1.0, forward, rate, s.fan_in**0.5 if s.family == "adam" else 1.0, epsilon=forward)


RULES = {"embedding": embedding} | dict.fromkeys(("hidden", "residual", "readout", "router"), matrix)
RULES |= dict.fromkeys(standard.VECTORS, standard.vector)

register("ntk", Parametrization(RULES, standard.multipliers))
