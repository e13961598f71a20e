"""The nine loss curves of Luo et al. 2025 per model size: their learning-rate histories, the split, the six metrics.

The files hold losses every 128 updates with the learning rate at that update; laws need that of every update. It is
built from the schedules as the authors state them (warm-up of 2160 updates from 0 to 3e-4, lowest 3e-5) and checked
against every learning rate in the file. Update t's loss is that of the history up to and including lr[t].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lab.laws.errors import TableError

PAPER = "Luo et al. 2025, A Multi-Power Law for Loss Curve Prediction Across Learning Rate Schedules, arXiv 2503.12811"
SIZES = ("25M", "100M")
WARMUP, PEAK, LOWEST = 2160, 3e-4, 3e-5
DECAY_FROM, DROP_AT = 20_000, 8_000
TRAIN = ("cosine_24000", "constant_24000", "wsdcon_9")
TEST = ("constant_72000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_18")
METRICS = ("R2", "MAE", "RMSE", "mean relative error", "worst relative error")


def history(curve: str, updates: int) -> np.ndarray:
    """Learning rate of every update [updates] of a curve named as in the files."""
    kind, *numbers = curve.split("_")
    t = np.arange(WARMUP, updates)
    if kind == "cosine":
        share = (t - WARMUP) / (int(numbers[0]) - WARMUP)
        later = LOWEST + 0.5 * (PEAK - LOWEST) * (1 + np.cos(np.pi * share))
    elif kind == "constant":
        later = np.full(len(t), PEAK)
    elif kind == "wsdcon":
        later = np.where(t < DROP_AT, PEAK, int(numbers[0]) * 1e-5)
    else:
        share = np.clip((t - DECAY_FROM) / (int(numbers[1]) - DECAY_FROM), 0, 1)
        later = PEAK * (LOWEST / PEAK) ** share if kind == "wsd" else PEAK + (LOWEST - PEAK) * share
    return np.concatenate([np.linspace(0.0, PEAK, WARMUP), later])


def curves(table: Any) -> dict[str, dict[str, Any]]:
    """Per curve: `columns` of `lab.laws.schedules`, `history` [T], and `loss`, `step`, `lr` [n].

    Raises:
      TableError: a learning rate in the file that is not the schedule's.
    """
    from lab.laws.schedules import columns

    found = {}
    for name in (*TRAIN, *TEST):
        rows = table[table["curve"] == name]
        steps, lr = rows["step"].to_numpy(), history(name, int(rows["step"].max()) + 1)
        gap = np.abs(lr[steps] / rows["lr"].to_numpy() - 1).max()
        if gap > 1e-6:
            raise TableError(f"curve {name}: found learning rates {gap:.1e} off the stated schedule, expected none")
        loss = rows["loss"].to_numpy(float)
        found[name] = {"columns": columns(lr, steps), "history": lr, "loss": loss, "step": steps, "lr": lr[steps]}
    return found


def with_area(data: dict[str, dict[str, Any]], decay: float, since: int) -> dict[str, dict[str, Any]]:
    """The same curves with an S2 of this decay that counts changes after update `since` only."""
    from lab.laws.schedules import annealing_area

    found = {}
    for name, curve in data.items():
        area = annealing_area(curve["history"], decay, since)[curve["step"]]
        found[name] = {**curve, "columns": {**curve["columns"], "S2": area}}
    return found


def rows_of(data: dict[str, dict[str, Any]], names: Any, every: int = 1) -> Any:
    """Rows of the named curves, every so-manieth point of each."""
    from lab.laws.schedules import stack
    from lab.laws.solve import Rows

    chosen = stack([data[name]["columns"] for name in names])
    loss = np.concatenate([data[name]["loss"] for name in names])
    keep = np.concatenate([np.arange(len(data[name]["loss"])) % every == 0 for name in names])
    chosen = {name: np.ascontiguousarray(values[keep]) for name, values in chosen.items()}
    return Rows(chosen, loss[keep], np.ones(keep.sum()), np.zeros(keep.sum(), bool))


def labels_of(data: dict[str, dict[str, Any]], names: Any, every: int = 1) -> np.ndarray:
    """The curve of each row of `rows_of`."""
    return np.concatenate([np.full(-(-len(data[name]["loss"]) // every), name) for name in names])


def metrics(loss: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """What the paper reports of one curve; relative errors are of the loss."""
    off = predicted - loss
    values = (
        1 - (off**2).sum() / ((loss - loss.mean()) ** 2).sum(),
        np.abs(off).mean(),
        np.sqrt((off**2).mean()),
        np.abs(off / loss).mean(),
        np.abs(off / loss).max(),
    )
    return dict(zip(METRICS, map(float, values)))


def plain_ticks(left: Any, right: Any, errors: tuple[float, ...]) -> None:
    """Numbers instead of powers on logarithmic axes of updates and of errors; room for the names of curves."""
    left.figure.subplots_adjust(wspace=0.42)
    for axis, values in ((left, (3_000, 10_000, 30_000, 72_000)), (right, errors)):
        axis.set_xticks([], minor=True)
        axis.set_xticks(values, [f"{value:,g}" for value in values])


def held_out(law: Any, values: dict[str, float], data: dict[str, dict[str, Any]], names: Any = TEST) -> Any:
    """A frame with the metrics of each named curve under a law with these constants."""
    import pandas

    from lab.laws.fit import predict

    theta = np.array(law.search(values))
    rows = []
    for name in names:
        columns = {c.name: data[name]["columns"][c.name] for c in law.columns}
        rows.append({"curve": name, **metrics(data[name]["loss"], predict(law, theta, columns))})
    return pandas.DataFrame(rows)
