"""One loss from another: shifted power laws between data sets (Brandfonbrener et al. 2024, arXiv 2411.12925).

    train-to-train   L0, L1: training losses of two models on two data sets, paired by N and D (equal compute)
    train-to-test    L0, L1: training and test loss of one model
    test-to-test     L0, L1: losses on one test set of two models trained on two data sets, paired by N and D

`paired` brings tables into these columns. E0 and E1 are the irreducible losses. The paper takes those of training
losses from laws L(N, D) of each data set; that is `fixed={"E0": ..., "E1": ...}` of a fit. With both free, one curve
must tell its own asymptotes: the intervals say whether it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lab.laws.errors import TableError
from lab.laws.law import Column, Law, positive, real, register

LOSS_TO_LOSS = register(
    Law(
        name="loss-to-loss",
        family="loss to loss",
        formula="L1 = K (L0 - E0)^kappa + E1",
        source="Brandfonbrener et al. 2024, arXiv 2411.12925",
        columns=(Column("L0", "nats per token", "loss that predicts"),),
        target=Column("L1", "nats per token", "loss that is predicted"),
        parameters=(
            positive("K", ""),
            positive("kappa", "", (0.5, 0.8, 1.0, 1.3, 2.0), 0.01, 20.0, "ratio of the two exponents in compute"),
            real("E0", "nats per token", (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0), 0.0, 50.0, "below every L0"),
            real("E1", "nats per token", (0.5,), 0.0, 50.0),
        ),
        predict=lambda p, x: p["K"] * (x["L0"] - p["E0"]) ** p["kappa"] + p["E1"],
        linear=("K", "E1"),
    )
)


def paired(first: Any, second: Any, loss0: str, loss1: str, on: Sequence[str] = ("N", "D")) -> Any:
    """A frame with columns `on`, L0 and L1: rows of two frames of runs, matched by equal values of `on`.

    Args:
      first, second: frames with columns `on`; for train-to-test the same one twice.
      loss0: column of `first`; loss1: of `second`.

    Raises:
      TableError: a column is missing, a run occurs twice, or nothing matches.
    """
    on = list(on)
    for frame, loss in ((first, loss0), (second, loss1)):
        missing = [name for name in [*on, loss] if name not in frame]
        if missing:
            raise TableError(f"found no column {missing[0]!r}, expected it beside {', '.join(map(str, frame.columns))}")
        if frame.duplicated(on).any():
            raise TableError(f"found runs with equal {', '.join(on)}, expected one each; average or filter seeds first")
    left, right = (frame[[*on, loss]] for frame, loss in ((first, loss0), (second, loss1)))
    left, right = left.rename(columns={loss0: "L0"}), right.rename(columns={loss1: "L1"})
    joined = left.merge(right, on=on)
    if not len(joined):
        raise TableError(f"found no runs with equal {', '.join(on)} in both tables, expected pairs; check the units")
    return joined
