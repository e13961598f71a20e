"""Maximal-update parametrization in width (Yang et al. 2022, Tensor Programs V, arXiv:2203.03466, table 8).

With r the width over the base width (r_in of a weight's fan-in, r_out of its fan-out, from its record and the base
model's), at the base width everything equals `standard`, and the best learning rate stays where it is as width grows:

    role              initial std   forward  learning rate: adam  lamb          sgd         epsilon
    embedding         of the base   1        1                    1             r_out       1/r_out
    hidden, residual  of the base   1        1/r_in               1/sqrt(r_in)  r_out/r_in  1/r_out
                      /sqrt(r_in)
    readout, router   of the base   1/r_in   1                    1             r_in        1/r_in
    norm, bias,       1             1        1                    1             r_out       1/r_out
    recurrence

"of the base" is the initial std that `standard` has at the base width. Weight decay is 1 over the learning rate's
factor (0 for norm, bias and recurrence), so that learning rate x weight decay does not depend on width; LAMB decays
inside the ratio of norms, where decay x weight is to keep its proportion to a direction of size 1: sqrt(r_in) again.
Hidden sgd rates are the table's 1 where both fans grow alike and stay right where one does not (keys of a fixed number
of heads). Epsilon follows the size of the gradient that it is added to. Scores are multiplied by sqrt(base head width /
head width) beside 1/sqrt(head width): 1/head width in all. Logits of a tied readout are multiplied by 1/sqrt(base
width) x 1/r; they start at the size that a token's own embedding in the stream gives them.
A router is a readout onto experts; a recurrence weight is a bias that is not decayed.
"""

from __future__ import annotations

from lab.parametrization import standard
from lab.parametrization.scales import Context, Parametrization, Subject, WeightScale, register

LOGITS_AT_INIT = -0.5  # exponent of width: a readout of unit variance divided by r_in


def _rate(subject: Subject, adam: float, lamb: float, sgd: float) -> float:
    return {"adam": adam, "lamb": lamb, "sgd": sgd}[subject.family]


def embedding(s: Subject) -> WeightScale:
    rate = _rate(s, 1.0, 1.0, s.r_out)
    return WeightScale(standard.initial_std(s.base), learning_rate=rate, weight_decay=1 / rate, epsilon=1 / s.r_out)


def hidden(s: Subject) -> WeightScale:
    rate = _rate(s, 1 / s.r_in, s.r_in**-0.5, s.r_out / s.r_in)
    std = standard.initial_std(s.base) * s.r_in**-0.5
    return WeightScale(std, learning_rate=rate, weight_decay=1 / rate, epsilon=1 / s.r_out)


def readout(s: Subject) -> WeightScale:
    rate = _rate(s, 1.0, 1.0, s.r_in)
    std = standard.initial_std(s.base)
    return WeightScale(std, forward=1 / s.r_in, learning_rate=rate, weight_decay=1 / rate, epsilon=1 / s.r_in)


def vector(s: Subject) -> WeightScale:
    return WeightScale(learning_rate=_rate(s, 1.0, 1.0, s.r_out), epsilon=1 / s.r_out)


def multipliers(context: Context) -> dict:
    """Factors of scores and logits that keep their updates of one size at every width."""
    found = context.plain()
    if context.head_widths:
        here, base = context.head_widths
        found["attention"] *= (base / here) ** 0.5
    if context.tied:
        found["readout"] *= context.tied.base.size(context.tied.base.fan_out) ** 0.5 / context.tied.fan_out
    return found


RULES = {"embedding": embedding, "hidden": hidden, "residual": hidden, "readout": readout, "router": readout}
RULES |= dict.fromkeys(standard.VECTORS, vector)

register("mup", Parametrization(RULES, multipliers, base=("width",), exponents={"initial logits": LOGITS_AT_INIT}))
