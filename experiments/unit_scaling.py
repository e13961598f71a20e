"""Unit Scaling: Out-of-the-Box Low-Precision Training (Blake, Orr and Luschi 2023, arXiv 2303.11257).

The paper's method: every operation gets static factors, forward and backward, that start every weight, activation and
gradient at unit variance; then matrix products take their operands in FP16 or FP8 as they are, with no loss scale. The
paper trains BERT so with no loss of accuracy, and shows the standard deviations of tensors at initialization.

Here the standard and the unit parametrization train in full precision, FP16 and FP8 (E4M3, gradients E5M2, every hidden
product), and runs with statistics give the RMS of every tensor before the first update. Gradients are backpropagated
from the loss summed over the predictions of a micro-batch, which is a loss scale of their number over the paper's mean:
our baseline is the stronger for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import tensors
from experiments.mup_transfer import accelerator
from experiments.transfer import base, rates, seeds, smoke_base
from lab.report.findings import Claim
from lab.sweep.axes import axis, chain, product
from lab.sweep.experiment import Analysis, Experiment, Results, Sweep

PAPER = "Blake, Orr and Luschi 2023, Unit Scaling: Out-of-the-Box Low-Precision Training, arXiv 2303.11257"
NAME, PRECISION = "parametrization.name", "model.precision"
LOW = ("fp16", "fp8")
CLOSE = 0.01
WHY = {
    "fp16": Claim(
        "Unit-scaled training in FP16 loses nothing to full precision (less than 1 % of the loss)", PAPER, 0.0,
        "relative loss difference", "near_zero", CLOSE, recalled=True,
    ),
    "fp8": Claim(
        "Unit-scaled training in FP8 loses nothing to full precision (less than 1 % of the loss)", PAPER, 0.0,
        "relative loss difference", "near_zero", CLOSE, recalled=True,
    ),
    "baseline": Claim(
        "The baseline without scales loses more to FP8 than unit scaling does", PAPER, 1.0,
        "relative loss difference, baseline less unit", "sign", recalled=True,
    ),
    "spread": Claim(
        "At initialization tensors lie nearer to unit scale under unit scaling than in the baseline", PAPER, 1.0,
        "mean |log2 RMS|, baseline less unit", "sign", recalled=True,
    ),
}  # fmt: skip


def sweep(cfg: Any, width: int, centres: Mapping[str, float], reach: int, count: int, note: str) -> Sweep:
    """Both parametrizations at every precision, each at rates about its own centre; and their statistics at the start.

    The runs with statistics make one update.
    """
    precisions = axis(PRECISION, ["none", *LOW])
    wide = axis("model.width", [width])
    runs = [
        product(wide, axis(NAME, [name]), precisions, seeds(count), rates(centre, reach, reach))
        for name, centre in centres.items()
    ]
    start = [
        {
            "evaluation.statistics": True,
            "run.horizon_tokens": cfg.run.batch_tokens,
            "schedule.warmup_tokens": 0,
        }
    ]
    begun = [
        product(wide, axis(NAME, [name]), start, seeds(count), rates(centre, 0, 0)) for name, centre in centres.items()
    ]
    return Sweep(cfg, chain(*runs, *begun), note)


def smoke() -> Sweep:
    """Seconds: checks the path, decides nothing."""
    cfg = smoke_base(**{"model.heads": 2, "model.kv_heads": 2})
    return sweep(cfg, 32, {"standard": 1e-2, "unit": 3e-2}, 0, 2, "seconds on a CPU")


def tiny() -> Sweep:
    centres = {"standard": 1.6e-2, "unit": 6.4e-2}
    return sweep(base(), 64, centres, 1, 3, "two CPU cores, three minutes")


def small() -> Sweep:
    """In float32, which holds every value of FP16; bfloat16 does not."""
    centres = {"standard": 4e-3, "unit": 6.4e-2}
    return sweep(
        accelerator(**{"model.compute_dtype": "float32"}), 512, centres, 2, 3, "one accelerator, within an hour"
    )


def paper() -> Sweep:
    """A decoder of BERT-Large's sizes and tokens (recalled: width 1024, 24 layers, 16 heads; 2^38 tokens or so)."""
    cfg = base(
        **{
            "model.depth": 24,
            "model.heads": 16,
            "model.kv_heads": 16,
            "model.sequence_length": 512,
            "model.vocab_size": 30528,
            "model.remat": "full",
            "data.corpus": "seqio:wikipedia",
            "schedule.warmup_tokens": 2000 * 512 * 512,
            "run.horizon_tokens": 8000 * 512 * 512,
            "run.batch_tokens": 512 * 512,
            "evaluation.sequences": 4096,
            "execution.microbatch_tokens": 128 * 512,
        }
    )
    return sweep(cfg, 1024, {"standard": 1e-3, "unit": 3.2e-2}, 1, 2, "the published setting, as recalled: a TPU pod")


def analyse(results: Results) -> Analysis:
    found = {low: tensors.relative(results.table, [NAME], "none", low) for low in LOW}
    spread = initial(results)
    findings = [tensors.judged(WHY[low], of(found[low], "unit")) for low in LOW]
    findings += [baseline(found["fp8"]), nearer(spread)]
    dtype = results.table["model.compute_dtype"].iloc[0]
    notes = [
        f"full precision is {dtype}; intervals are Student's over seeds",
        "gradients are of a loss summed over predictions, a loss scale of their number over the paper's mean",
        *tensors.edge_notes(found["fp8"], [NAME]),
    ]
    columns = [NAME, tensors.RATE, "run.seed", "none", "fp16", "fp8"]
    inside = spread[spread["rms"].between(0.3, 3)]
    share = inside.groupby(["parametrization", "kind"]).size() / spread.groupby(["parametrization", "kind"]).size()
    start = spread.groupby(["parametrization", "kind"])["rms"].agg(["min", "median", "max"]).add_prefix("RMS ")
    start["within [0.3, 3]"] = share.fillna(0.0)
    cast = spread[spread["cast"]]
    lost = cast.groupby(["parametrization", "kind"])[["flushed", "subnormal", "saturated"]].mean()
    tables = {"losses": found["fp8"][columns], "initial": start.join(lost).reset_index()}
    subtitle = f"{results.table['data.corpus'].iloc[0]}, {len(results.table)} runs"

    def draw(stem: Path) -> Path:
        from experiments.precision_figure import initial_figure

        return initial_figure(found, spread[spread["seed"] == spread["seed"].min()], findings, stem, subtitle)

    return Analysis(findings, tables, notes, draw)


def of(pairs: Any, name: str) -> np.ndarray:
    """Relative differences of one parametrization at its best rate, a number per seed."""
    return pairs.loc[pairs["best"] & (pairs[NAME] == name)].sort_values("run.seed")["relative"].to_numpy()


def baseline(pairs: Any) -> Any:
    """What the baseline loses more than unit scaling, seed by seed."""
    standard, unit = of(pairs, "standard"), of(pairs, "unit")
    if len(standard) != len(unit):
        return tensors.judged(WHY["baseline"], [], blocked="the parametrizations were not trained under the same seeds")
    return tensors.judged(WHY["baseline"], standard - unit)


def initial(results: Results) -> Any:
    """Statistics before the first update of every run that has them, with `parametrization`, `seed`, and `cast`:
    whether a policy casts the tensor."""
    import pandas

    parts = []
    for _, run in tensors.watched(results).iterrows():
        frame = results.statistics(run["run"])
        frame = frame[(frame["step"] == 0) & (frame["rms"] > 0)]
        keys = ["tensor", "kind", "layer"]
        known = set(tensors.operands(frame)[keys].itertuples(index=False, name=None))
        cast = [key in known for key in frame[keys].itertuples(index=False, name=None)]
        parts.append(frame.assign(parametrization=run[NAME], seed=run["run.seed"], cast=cast))
    return pandas.concat(parts, ignore_index=True)


def nearer(spread: Any) -> Any:
    """The distance from unit scale, mean over tensors, one difference per seed."""
    distance = spread.assign(distance=np.abs(np.log2(spread["rms"])))
    wide = distance.pivot_table(index="seed", columns="parametrization", values="distance")
    return tensors.judged(WHY["spread"], wide["standard"] - wide["unit"])


EXPERIMENTS = [
    Experiment(
        id="unit-scaling/low-precision",
        paper=PAPER,
        summary="Standard and unit-scaled training in FP16 and FP8 against full precision, and tensors at the start.",
        scales={make.__name__: make for make in (smoke, tiny, small, paper)},
        analyse=analyse,
    )
]
