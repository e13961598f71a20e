"""Maximal-update parametrization in width (Yang et al. 2022, Tensor Programs V, arXiv:2203.03466, table 8).

With r the width over the base width (r_in of a weight's fan-in, r_out of its fan-out, from its record and the base
model's), at the base width everything equals `standard`, and the best learning rate stays where it is as width grows:

    role              initial std        forward   learning rate: adam   sgd      weight decay: adam   sgd
    embedding         of the base        1         1                     r_out    1                    1/r_out
    hidden, residual  of the base x      1         1/r_in                r_out    r_in                 1/r_out
                      1/sqrt(r_in)                                       /r_in                         x r_in
    readout           of the base        1/r_in    1                     r_in     1                    1/r_in
    norm, bias        1                  1         1                     r_out    0                    0

"of the base" is the initial std that `standard` has at the base width. Hidden sgd rates are r_out / r_in, which is the
table's 1 where both grow alike and stays right where one does not (keys of a fixed number of heads). Weight decay is
such that learning rate x weight decay does not depend on width. Scores are multiplied by
sqrt(base head width / head width) beside 1/sqrt(head width): 1/head width in all. Logits of a tied readout are
multiplied by 1/sqrt(base width) x 1/r.
"""

from __future__ import annotations

from lab.models.weight import Record
from lab.parametrization import standard
from lab.parametrization.scales import Parametrization, WeightScale, register


def _ratio(record: Record, base: Record, axes: tuple[int, ...]) -> float:
    return record.size(axes) / base.size(axes)


def weight(record: Record, base: Record, family: str) -> WeightScale:
    """One row of the table above."""
    r_in, r_out = _ratio(record, base, record.fan_in), _ratio(record, base, record.fan_out)
    std = standard.initial_std(base)
    if record.role == "readout":
        rate = r_in if family == "sgd" else 1.0
        return WeightScale(std, forward=1 / r_in, learning_rate=rate, weight_decay=1 / rate)
    if record.role in ("hidden", "residual"):
        rate = r_out / r_in if family == "sgd" else 1 / r_in
        return WeightScale(std * r_in**-0.5, learning_rate=rate, weight_decay=1 / rate)
    rate = r_out if family == "sgd" else 1.0
    return WeightScale(std, learning_rate=rate, weight_decay=1 / rate if record.role == "embedding" else 0.0)


def _head_width(record: Record) -> int | None:
    return record.shape[record.axes.index("head_width")] if "head_width" in record.axes else None


def activations(pairs: list[tuple[Record, Record]]) -> dict[str, float]:
    """Factors of scores and logits that keep their updates of one size at every width."""
    heads = [(_head_width(record), _head_width(base)) for record, base in pairs if _head_width(record)]
    attention = (heads[0][1] / heads[0][0]) ** 0.5 if heads else 1.0
    tied = standard.table(pairs)
    readout = tied[1].size(tied[1].fan_out) ** 0.5 / tied[0].size(tied[0].fan_out) if tied else 1.0
    return {"attention": attention, "readout": readout}


register("mup", Parametrization(weight, activations, uses_base=True))
