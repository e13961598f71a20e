"""The standard parametrization: what most code bases do. Its best learning rate shrinks as width grows.

    role       initial std                   forward  learning rate  weight decay
    embedding  1                             1        1              1
    hidden     1/sqrt(fan_in)                1        1              1
    residual   1/sqrt(fan_in x 2 x depth)    1        1              1
    readout    1/sqrt(fan_in)                1        1              1
    norm       1 (gains of 1)                1        1              0
    bias       1 (biases of 0)               1        1              0

`residual` weights write to the residual stream, which sums 2 x depth of them (GPT-2, section 2.3). Optimizer families
do not differ. A tied readout has no scale of its own: logits are multiplied by 1/sqrt(width).
"""

from __future__ import annotations

from lab.models.weight import Record
from lab.parametrization.scales import Parametrization, WeightScale, register

EMBEDDING_STD = 1.0


def initial_std(record: Record) -> float:
    """The initial scale of the table above, of a weight whose axes are as large as the record says."""
    if record.role == "embedding":
        return EMBEDDING_STD
    if record.role in ("norm", "bias"):
        return 1.0
    summed = 1 if record.role != "residual" or record.depth is None else 2 * record.shape[record.depth]
    return (record.size(record.fan_in) * summed) ** -0.5


def weight(record: Record, base: Record, family: str) -> WeightScale:
    """One row of the table above."""
    return WeightScale(initial_std(record), weight_decay=0.0 if record.role in ("norm", "bias") else 1.0)


def table(pairs: list[tuple[Record, Record]]) -> tuple[Record, Record] | None:
    """The embedding that is the readout too, where no weight is one of its own; None otherwise."""
    roles = {record.role: (record, base) for record, base in pairs}
    return None if "readout" in roles else roles.get("embedding")


def activations(pairs: list[tuple[Record, Record]]) -> dict[str, float]:
    """Factors of scores and logits: 1, but for a tied readout."""
    tied = table(pairs)
    return {"attention": 1.0, "readout": tied[0].size(tied[0].fan_out) ** -0.5 if tied else 1.0}


register("standard", Parametrization(weight, activations, uses_base=False))
