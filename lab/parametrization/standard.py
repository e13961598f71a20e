"""The standard parametrization: what most code bases do. Its best learning rate shrinks as width grows.

    role        initial std                   forward  learning rate  weight decay  epsilon
    embedding   1                             1        1              1             1
    hidden      1/sqrt(fan_in)                1        1              1             1
    residual    1/sqrt(fan_in x 2 x depth)    1        1              1             1
    readout     1/sqrt(fan_in)                1        1              1             1
    router      1/sqrt(fan_in)                1        1              1             1
    recurrence  1                             1        1              0             1
    norm        1 (gains of 1)                1        1              0             1
    bias        1 (biases of 0)               1        1              0             1

`residual` weights write to the residual stream, which sums 2 x depth of them (GPT-2, section 2.3). Optimizer families
do not differ. Scores are divided by sqrt(head width). A tied readout has no scale of its own: logits are multiplied by
1/sqrt(width).
"""

from __future__ import annotations

from lab.parametrization.scales import Context, Parametrization, Subject, WeightScale, register

EMBEDDING_STD = 1.0
VECTORS = ("recurrence", "norm", "bias")


def initial_std(record) -> float:
    """The initial scale of the table above, of a weight whose axes are as large as the record says."""
    if record.role == "embedding":
        return EMBEDDING_STD
    if record.role in VECTORS:
        return 1.0
    summed = 1 if record.role != "residual" or record.depth is None else 2 * record.shape[record.depth]
    return (record.size(record.fan_in) * summed) ** -0.5


def matrix(subject: Subject) -> WeightScale:
    """A row of the table above that has weight decay."""
    return WeightScale(initial_std(subject.record), weight_decay=1.0)


def vector(subject: Subject) -> WeightScale:
    """A gain, a bias or a decay."""
    return WeightScale()


def multipliers(context: Context) -> dict:
    """The config's, and that of a tied readout."""
    found = context.plain()
    if context.tied:
        found["readout"] *= context.tied.fan_out**-0.5
    return found


RULES = dict.fromkeys(("embedding", "hidden", "residual", "readout", "router"), matrix) | dict.fromkeys(VECTORS, vector)

register("standard", Parametrization(RULES, multipliers))
