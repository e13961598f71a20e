"""u-muP in FP8, out of the box (Blake et al. 2024, arXiv 2407.17465, section 4.2 and its figures of FP8 training).

The paper's method: because u-muP's tensors start and stay at an RMS of about 1, operands of hidden matrix products are
cast to FP8 as they are (E4M3 for weights and activations, E5M2 for gradients), with no scale. Here every hidden product
is cast; the paper's large runs leave some critical ones in BF16 (recalled). The same runs with and without casts are
compared pair by pair, at the reference's best learning rate of each width; runs with statistics say where the RMS of
every operand lies in FP8's range while the model trains.

The reference computes in BF16 on accelerators. On a CPU it is float32 with no casts, and so is what is not cast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import tensors
from experiments.mup_transfer import accelerator
from experiments.transfer import base, rates, seeds, smoke_base
from lab.config import override
from lab.report.findings import Claim
from lab.sweep.axes import Point, axis, product
from lab.sweep.experiment import Analysis, Experiment, Results, Sweep

PAPER = "Blake et al. 2024, u-muP: The Unit-Scaled Maximal Update Parametrization, arXiv 2407.17465"
PAPER_SIZES = {(2048, 16): 16, (3072, 24): 24, (4096, 32): 32}  # (width, depth): heads; about 1B, 3B, 7B, recalled
CLOSE, SATURATED = 0.01, 0.001

LOSS = Claim(
    "u-muP trained in FP8 out of the box loses less than 1 % to the reference", PAPER, 0.0, "relative loss difference",
    "near_zero", CLOSE, recalled=True,
)  # fmt: skip
WIDEST = dataclasses.replace(LOSS, text="The same at the widest model alone")
RANGE = Claim(
    "The RMS of every operand stays inside FP8's normal range while u-muP trains", PAPER, 1.0,
    "bits to the nearer end of the range", "sign", recalled=True,
)  # fmt: skip
OVERFLOW = Claim(
    "No operand of u-muP saturates in FP8 (largest share of a tensor's values, over training)", PAPER, 0.0, "share",
    "near_zero", SATURATED, recalled=True,
)  # fmt: skip


def sweep(cfg: Any, sizes: Sequence[Point], grid: Sequence[Point], count: int, points: int, note: str) -> Sweep:
    """Sizes x rates x seeds with and without casts, and FP8 with statistics at the last size and the middle rate."""
    both = axis("model.precision", ["none", "fp8"])
    pairs = product(list(sizes), both, seeds(count), list(grid))
    watched = {
        "model.precision": "fp8",
        "evaluation.statistics": True,
        "evaluation.points": points,
        "evaluation.first_tokens": cfg.run.batch_tokens,
    }
    middle = grid[len(grid) // 2]
    watch = product([sizes[-1]], [watched], seeds(count), [middle])
    return Sweep(override(cfg, {"parametrization.name": "umup"}), [*pairs, *watch], note)


def smoke() -> Sweep:
    """Seconds: checks the path, decides nothing."""
    cfg = smoke_base(**{"model.heads": 2, "model.kv_heads": 2})
    return sweep(cfg, axis("model.width", [32]), rates(1.0, 0, 0), 4, 4, "seconds on a CPU")


def tiny() -> Sweep:
    note = "two CPU cores, five minutes"
    return sweep(base(), axis("model.width", [32, 64, 128]), rates(0.5, 1, 1), 3, 16, note)


def small() -> Sweep:
    note = "one accelerator, within an hour"
    return sweep(accelerator(), axis("model.width", [128, 256, 512, 1024]), rates(0.5, 2, 2), 2, 32, note)


def paper() -> Sweep:
    """About 1B to 7B parameters on SlimPajama, 300G tokens in batches of 1024 sequences of 4096 (recalled)."""
    cfg = base(
        **{
            "model.sequence_length": 4096,
            "model.vocab_size": 65536,
            "model.gated": True,
            "model.activation": "silu",
            "model.compute_dtype": "bfloat16",
            "model.remat": "full",
            "data.corpus": "seqio:slimpajama",
            "optimizer.weight_decay": 2**-13,
            "optimizer.decay": "independent",
            "schedule.name": "cosine",
            "schedule.final_fraction": 0.1,
            "schedule.warmup_tokens": 2000 * 1024 * 4096,
            "run.horizon_tokens": 72000 * 1024 * 4096,
            "run.batch_tokens": 1024 * 4096,
            "evaluation.sequences": 1024,
            "execution.microbatch_tokens": 128 * 4096,
            "execution.pack_runs": 1,
        }
    )
    sizes = [
        {"model.width": w, "model.depth": d, "model.heads": h, "model.kv_heads": h} for (w, d), h in PAPER_SIZES.items()
    ]
    return sweep(cfg, sizes, rates(1.0, 0, 0), 1, 100, "the published setting, as recalled: a TPU pod")


def analyse(results: Results) -> Analysis:
    import pandas

    group = ["model.width", "model.depth"]
    found = tensors.relative(results.table, group, "none", "fp8")
    frames = {run: tensors.operands(results.statistics(run)) for run in tensors.watched(results)["run"]}
    dtype = results.table["model.compute_dtype"].iloc[0]
    caveats = [] if dtype == "bfloat16" else [f"the reference computes in {dtype} and not in bfloat16, as the paper's"]
    best = found[found["best"]]
    widest = best["model.width"] == best["model.width"].max()
    findings = [
        tensors.judged(LOSS, best.groupby(group)["relative"].mean(), caveats),
        tensors.judged(WIDEST, best.loc[widest, "relative"], caveats),
        tensors.judged(RANGE, [tensors.margin(frame) for frame in frames.values()]),
        tensors.judged(OVERFLOW, [frame["saturated"].max() for frame in frames.values()]),
    ]
    width = int(results.table["model.width"].max())
    notes = [
        "intervals are Student's: over means of widths, seeds of one width being no independent sample of widths; over "
        "seeds at the widest and for statistics",
        f"statistics are of width {width}, of {len(frames)} runs in FP8",
        *tensors.edge_notes(found, group),
    ]
    by_kind = pandas.concat(frames.values()).groupby(["kind"])
    shares = by_kind[["flushed", "subnormal", "saturated"]].agg(["mean", "max"])
    shares.columns = [" ".join(column) for column in shares.columns]
    spread = by_kind["rms"].agg(["min", "median", "max"]).add_prefix("RMS ")
    columns = [*group, tensors.RATE, "run.seed", "none", "fp8", "relative", "best"]
    tables = {"pairs": found[columns], "range": spread.join(shares).reset_index()}
    subtitle = f"{results.table['data.corpus'].iloc[0]}, {len(results.table)} runs"

    def draw(stem: Path) -> Path:
        from experiments.precision_figure import training_figure

        run = next(iter(frames))
        row = results.table.set_index("run").loc[run]
        return training_figure(found, frames[run], row, findings, stem, subtitle)

    return Analysis(findings, tables, notes, draw)


EXPERIMENTS = [
    Experiment(
        id="umup/fp8",
        paper=PAPER,
        summary="u-muP trained with plain FP8 casts against the reference, and its tensors in FP8's range.",
        scales={make.__name__: make for make in (smoke, tiny, small, paper)},
        analyse=analyse,
    )
]
