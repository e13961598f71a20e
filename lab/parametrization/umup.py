"""u-muP, unit-scaled maximal update (Blake et al. 2024, arXiv:2407.17465, table 2): no base model, unit variance.

    role              initial std  forward         backward         learning rate: adam, lamb, sgd
    embedding         1            1               -                1/sqrt(fan_out)
    hidden, residual  1            1/sqrt(fan_in)  1/sqrt(fan_in)   1/sqrt(fan_in) x 1/sqrt(layers)
    readout, router   1            1/fan_in        1/sqrt(fan_out)  1
    norm, bias,       1            1               -                1 (in the stack: x 1/sqrt(layers))
    recurrence

Weight decay is 1 over the learning rate's factor (for LAMB, which decays inside its ratio of norms, 1; 0 for norm, bias
and recurrence), epsilon 1, `gradient` 1: the rest is as in `unit`. Gradients do not depend on width, so that sgd has
Adam's rules; the paper has none for it, and `lab check parametrization umup --optimizer sgd` has not been seen to pass.
Scores are multiplied by 1/head width in all.

The paper's five multipliers, each 1 by default, are config keys: `activation_multiplier` (alpha_ffn-act),
`attention_multiplier` (alpha_attn-softmax), `residual_multiplier` (alpha_res), `residual_ratio` (alpha_res-attn-ratio)
and `readout_multiplier` (alpha_loss-softmax). The embedding's learning rate is the paper's finding, not theory: its
updates shrink as 1/sqrt(width), which `exponents` declares. A tied table keeps that rate, so that what it adds to
logits shrinks with it: the paper does not tie, and at large widths this should not be done.
"""

from __future__ import annotations

from lab.parametrization import standard, unit
from lab.parametrization.mup import LOGITS_AT_INIT
from lab.parametrization.scales import Context, Parametrization, Subject, WeightScale, register


def decay(s: Subject, rate: float) -> float:
    """Of a weight of unit variance whose learning rate has the factor `rate`."""
    return 1.0 if s.family == "lamb" else 1 / rate


def embedding(s: Subject) -> WeightScale:
    rate = s.fan_out**-0.5
    return WeightScale(learning_rate=rate, weight_decay=decay(s, rate))


def hidden(s: Subject) -> WeightScale:
    rate = (s.fan_in * s.layers) ** -0.5
    return WeightScale(forward=s.fan_in**-0.5, learning_rate=rate, weight_decay=decay(s, rate), gradient=1.0)


def readout(s: Subject) -> WeightScale:
    return WeightScale(forward=1 / s.fan_in, backward=s.fan_out**-0.5, weight_decay=1.0, gradient=1.0)


def vector(s: Subject) -> WeightScale:
    return WeightScale(learning_rate=s.layers**-0.5)


def multipliers(context: Context) -> dict:
    """Those of `unit`, with scores over the head width and logits of a tied readout over the width."""
    found = unit.multipliers(context)
    if context.head_widths:
        found["attention"] *= context.head_widths[0] ** -0.5
        found["query_gradient"] = unit.query_gradient(found["attention"])
    if context.tied:
        found["readout"] *= context.tied.fan_out**-0.5
    return found


RULES = {"embedding": embedding, "hidden": hidden, "residual": hidden, "readout": readout, "router": readout}
RULES |= dict.fromkeys(standard.VECTORS, vector)
EXPONENTS = {"initial logits": LOGITS_AT_INIT, "change embedded": -0.5, "update embedding": -0.5}

register("umup", Parametrization(RULES, multipliers, exponents=EXPONENTS))
