"""Depthwise Hyperparameter Transfer in Residual Networks (Bordelon et al. 2023, arXiv 2309.16620).

Loss against learning rate at depths, in muP alone and with branches multiplied by 1/sqrt(depth) (depth-muP, as there
and in Tensor Programs VI) and by 1/depth (CompleteP, Dey et al. 2025). The base depth is the smallest and the width
the base width, so that the three differ in their rules for depth alone; muP keeps the usual initial scale
1/sqrt(2 depth) of what writes to the stream. Statistics and their intervals: see `experiments.transfer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ml_collections import ConfigDict

from experiments import transfer
from experiments.mup_transfer import CHEAP, NAME, REGRET, SAME, SLOPE, accelerator
from lab.report.findings import Claim
from lab.sweep.axes import powers
from lab.sweep.experiment import Analysis, Experiment, Results, Sweep

BORDELON = "Bordelon et al. 2023, Depthwise Hyperparameter Transfer in Residual Networks, arXiv 2309.16620"
DEY = "Dey et al. 2025, Don't be lazy: CompleteP, arXiv 2505.01618"
DEPTH, SLOPE_UNIT = "model.depth", SLOPE.format("depth")

CLAIMS = {
    ("mup", "slope"): Claim(
        "muP alone: the best learning rate falls with the depth", BORDELON, -1.0, SLOPE_UNIT + ", sign only", "sign",
        recalled=True,
    ),
} | {
    (name, what): Claim(text.format(rule), source, 0.0, unit, "near_zero", tolerance, recalled=True)
    for name, rule, source in (("depth-mup", "1/sqrt(depth)", BORDELON), ("completep", "1/depth", DEY))
    for what, text, unit, tolerance in (
        ("slope", "Branches times {}: the best learning rate does not depend on the depth (slope within 0.1)",
         SLOPE_UNIT, SAME),
        ("regret", "Branches times {}: the shallowest model's best learning rate costs the deepest less than 0.5 %",
         REGRET, CHEAP),
    )
}  # fmt: skip


def depths(cfg: ConfigDict, values: Sequence[int], best: float, seeds: int, note: str, extensions: int = 0) -> Sweep:
    """Three rules at these depths. muP's grid moves with the guess that its best rate falls as the root of the depth,
    as in `mup-transfer/other-axes`, which shares those runs; the other two have one grid."""
    points = []
    for depth in values:
        for name in ("mup", "depth-mup", "completep"):
            guess = best * (depth / values[0]) ** (-0.5 if name == "mup" else 0.0)
            size = {"model.width": cfg.parametrization.base_width, DEPTH: depth, NAME: name}
            points += transfer.family([size], transfer.rates(guess, 2, 3), seeds)
    return Sweep(cfg, points, note, {}, extensions)


def smoke() -> Sweep:
    return depths(transfer.headed(transfer.smoke_base(), 4), (1, 2), 0.12, 1, "seconds on a CPU")


def tiny() -> Sweep:
    return depths(transfer.headed(transfer.base()), (2, 4, 8, 16), 2.4e-2, 2, "two CPU cores, about ten minutes", 2)


def small() -> Sweep:
    cfg = transfer.headed(accelerator(**{"parametrization.base_width": 128}), 64)
    return depths(cfg, powers(2, 64), 1.6e-2, 2, "one accelerator, within an hour", 2)


def paper() -> Sweep:
    """CompleteP's language models as recalled (Bordelon et al. train on images): width 256, depths 2 to 128, 300M
    tokens."""
    cfg = transfer.base(
        **{
            "model.sequence_length": 2048,
            "model.vocab_size": 50304,
            "model.compute_dtype": "bfloat16",
            "data.corpus": "seqio:c4",
            "parametrization.base_width": 256,
            "schedule.warmup_tokens": 30 * 2**18,
            "run.horizon_tokens": 1144 * 2**18,
            "run.batch_tokens": 2**18,
            "evaluation.sequences": 1024,
            "execution.microbatch_tokens": 2**16,
            "execution.pack_runs": 4,
        }
    )
    note = "the published setting, as recalled: a node of accelerators"
    return depths(transfer.headed(cfg, 64), powers(2, 128), 8e-3, 2, note, 1)


def analyse(results: Results) -> Analysis:
    found = {name: transfer.study(name, rows, DEPTH) for name, rows in results.table.groupby(NAME)}
    findings = [transfer.verdict(claim, found[name], what) for (name, what), claim in CLAIMS.items()]
    ordered = [found[name] for name in ("mup", "depth-mup", "completep")]
    return transfer.report("Learning rate across depths", ordered, findings, results)


EXPERIMENTS = [
    Experiment(
        id="depth-transfer/residual",
        paper=f"{BORDELON}; {DEY}",
        summary="Whether the best learning rate stays as depth grows: no rule, 1/sqrt(depth), 1/depth.",
        scales={"smoke": smoke, "tiny": tiny, "small": small, "paper": paper},
        analyse=analyse,
        extend=partial(transfer.extend, by=(NAME, DEPTH)),
    )
]
