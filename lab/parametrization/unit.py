"""Unit scaling (Blake et al. 2023, arXiv:2303.11257): every weight, activation and gradient starts at unit variance.

    role              initial std  forward         backward         gradient  learning rate  weight decay  epsilon
    embedding         1            1               -                -         1              1             1
    hidden, residual  1            1/sqrt(fan_in)  1/sqrt(fan_in)   1         1              1             1
    readout, router   1            1/sqrt(fan_in)  1/sqrt(fan_out)  1         1              1             1
    norm, bias,       1            1               -                -         1              0             1
    recurrence

`backward` differs from `forward` only below the readout, which every way to the loss passes, so that gradients stay
right up to one constant a weight. The weights' own gradients are sums over tokens, of unit variance once divided by the
square root of their number: no factor here does that, because the optimizer gets their mean over the batch, whatever
the micro-batch. Activations are divided by
their RMS (`lab.models.units`); the stream is a mean of its summands that keeps unit variance, and the factor of a
branch is applied to its gradient where it leaves the branch, so that inside it gradients have unit variance too. The
gradient of logits (1/sqrt(vocabulary) a prediction) is multiplied by sqrt(vocabulary); those of queries and keys by
1/(score scale x sqrt(head width)), undone below their projections. Exceptions: gradients of embeddings follow the
frequencies of tokens, and those of gains are sums over tokens and features that cancel or not. All of it is for tokens
that are independent of each other; in text they are not, and gradients of weights then add up to several times more
(`unit-scaling/low-precision`, table `initial`: a median of 3.3, at most 7.8).
Learning rates have no rule in width: the paper tunes one for all. Optimizer families do not differ.
"""

from __future__ import annotations

import numpy as np

from lab.models import registry
from lab.parametrization import standard
from lab.parametrization.scales import Context, Parametrization, Subject, WeightScale, register


def embedding(s: Subject) -> WeightScale:
    return WeightScale(weight_decay=1.0)


def hidden(s: Subject) -> WeightScale:
    return WeightScale(forward=s.fan_in**-0.5, weight_decay=1.0, gradient=1.0)


def readout(s: Subject) -> WeightScale:
    return WeightScale(forward=s.fan_in**-0.5, backward=s.fan_out**-0.5, weight_decay=1.0, gradient=1.0)


def stream(branches: np.ndarray) -> dict[str, np.ndarray]:
    """Factors of branches and stream, each [depth, 2], that keep the stream at unit variance.

    Summand i of the final stream is the embedding times 1, or a unit branch times branches / sqrt(2 x depth / 2)
    (u-muP, arXiv:2407.17465, appendix F, in another form): each sum so far is divided by its own RMS.
    """
    variance = np.ravel(branches) ** 2 / len(branches)
    after = 1 + np.cumsum(variance)
    before = after - variance
    branch, skip = (np.sqrt(x / after).reshape(branches.shape) for x in (variance, before))
    return {"branch": branch, "branch_gradient": np.ones_like(branch), "entry_gradient": branch, "skip": skip}


def multipliers(context: Context) -> dict:
    """Those of the config, and what keeps activations and gradients at unit variance."""
    found = context.plain()
    units = registry.units(context.model, context.given.activation_multiplier)
    found |= {name: 1 / rms for name, rms in units.items()}
    found["residual"] = stream(context.branches())
    vocabulary = context.model.vocab_size
    found["readout_gradient"] = found["readout"] * vocabulary**0.5
    if context.tied:
        found["readout"] *= context.tied.fan_out**-0.5
        found["readout_gradient"] = context.given.readout_multiplier
    if context.head_widths:
        found["query_gradient"] = query_gradient(found["attention"])
    return found


def query_gradient(attention: float) -> float:
    """1 over the RMS of the gradients of unit queries and keys, whose scores are multiplied by attention/sqrt(width).

    The gradient of a score at position t is (1/t) sqrt(head width) at unit gradients of the mixed values, a query sums
    t of them: over positions attention x the RMS of the mean of values, which the factor of the latter undoes.
    """
    return 1 / attention


RULES = {"embedding": embedding, "hidden": hidden, "residual": hidden, "readout": readout, "router": readout}
RULES |= dict.fromkeys(standard.VECTORS, standard.vector)

register("unit", Parametrization(RULES, multipliers))
