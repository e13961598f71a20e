"""Tensor Programs V (Yang et al. 2022, arXiv 2203.03466): muP carries the learning rate from narrow to wide models.

    width        loss against learning rate at widths, in the standard parametrization and in muP
    other-axes   the same in muP along batch size, horizon, depth and weight decay, for which width rules say nothing

Heads have one width and grow in number (see `transfer.headed`); muP compares with the narrowest. Each width has one
grid in muP. In the standard parametrization the best rate falls at most as 1 / width: its grids begin two steps under
that guess and all reach over the narrowest model's best rate, whose regret is wanted at the widest. A grid
whose lowest loss is at an end extends itself. Statistics and their intervals: see `experiments.transfer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import transfer
from lab.report.findings import Claim
from lab.report.text import quantity
from lab.sweep.axes import Point, chain, powers
from lab.sweep.experiment import Analysis, Experiment, Results, Sweep

YANG = "Yang et al. 2022, Tensor Programs V, arXiv 2203.03466"
BJORCK = "Bjorck et al. 2024, Scaling Optimal LR Across Token Horizons, arXiv 2409.19913"
MALLADI = "Malladi et al. 2022, On the SDEs and Scaling Rules for Adaptive Gradient Algorithms, arXiv 2205.10287"
DEPTH = "Yang et al. 2023, Tensor Programs VI, arXiv 2310.02244"
DECAY = "Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, arXiv 1711.05101"

NAME, WIDTH = "parametrization.name", "model.width"
FALLS = -0.5  # standard: the slope is to lie under this
SAME, CHEAP = 0.1, 0.005  # muP: |slope| and regret are to lie under these

SLOPE, REGRET = "slope of ln lr* on ln {}", "excess loss, as a fraction"
WIDTH_CLAIMS = {
    "slope": Claim(
        "muP: the best learning rate does not depend on the width (slope within 0.1)", YANG, 0.0, SLOPE.format("width"),
        "near_zero", SAME, recalled=True,
    ),
    "regret": Claim(
        "muP: the narrowest model's best learning rate costs the widest less than 0.5 % of its loss", YANG, 0.0, REGRET,
        "near_zero", CHEAP, recalled=True,
    ),
    "standard": Claim(
        "Standard: the best learning rate falls with the width at least as width^-0.5 (Adam's theory: width^-1)", YANG,
        -1.0 - FALLS, SLOPE.format("width") + ", plus 0.5", "sign", recalled=True,
    ),
}  # fmt: skip
AXIS_CLAIMS = {
    "batch": [
        Claim("The best learning rate grows with the batch (Adam's theory: as its root)", MALLADI, 0.5,
              SLOPE.format("batch"), "sign", recalled=True),
    ],
    "horizon": [
        Claim("The best learning rate falls with the horizon", BJORCK, -0.32, SLOPE.format("horizon"), "sign",
              recalled=True),
        Claim("The best learning rate falls as horizon^-0.32", BJORCK, -0.32, SLOPE.format("horizon"), "equals", SAME,
              recalled=True),
    ],
    "depth": [
        Claim("Without a rule for depth the best learning rate falls with the depth", DEPTH, -1.0,
              SLOPE.format("depth") + ", sign only", "sign", recalled=True),
    ],
    "coupled decay": [
        Claim("Weight decay coupled with the learning rate: the best rate falls as decay grows", DECAY, -1.0,
              SLOPE.format("decay") + ", sign only", "sign", recalled=True),
    ],
    "independent decay": [
        Claim("Independent weight decay: the best learning rate does not depend on it (slope within 0.1)", DECAY, 0.0,
              SLOPE.format("decay"), "near_zero", SAME, recalled=True),
    ],
}  # fmt: skip


def widths(cfg: ConfigDict, values: Sequence[int], best: float, seeds: int, note: str, extensions: int = 0) -> Sweep:
    """Both parametrizations at these widths, their grids about `best`, the guess at the narrowest."""
    points: list[Point] = []
    for width in values:
        guess = best * values[0] / width
        up = max(3, round(np.log2(2 * best / guess)))
        grids = {"mup": transfer.rates(best, 2, 3), "standard": transfer.rates(guess, 2, up)}
        for name, grid in grids.items():
            points += transfer.family([{WIDTH: width, NAME: name}], grid, seeds)
    return Sweep(cfg, points, note, {}, extensions)


def width_smoke() -> Sweep:
    return widths(transfer.headed(transfer.smoke_base(), 4), (8, 16), 0.12, 1, "seconds on a CPU")


def width_tiny() -> Sweep:
    return widths(transfer.headed(transfer.base()), powers(32, 256), 2.4e-2, 2, "two CPU cores, about ten minutes", 2)


def width_small() -> Sweep:
    cfg = transfer.headed(accelerator(**{"parametrization.base_width": 64}), 32)
    return widths(cfg, powers(64, 2048), 1.6e-2, 2, "one accelerator, within an hour", 2)


def accelerator(**changes: Any) -> ConfigDict:
    """One accelerator: Python source of all installed packages, 512 updates of 16,384 tokens."""
    fixed = {
        "model.sequence_length": 256,
        "model.compute_dtype": "bfloat16",
        "data.corpus": "pysource-all",
        "run.horizon_tokens": 512 * 16384,
        "run.batch_tokens": 16384,
        "schedule.warmup_tokens": 40 * 16384,
        "evaluation.sequences": 1024,
        "execution.microbatch_tokens": 4096,
    }
    return transfer.base(**{**fixed, **changes})


def width_paper() -> Sweep:
    """The paper's first figure as recalled: two layers, WikiText-2, widths 128 to 8192, five passes."""
    cfg = transfer.base(
        **{
            "model.sequence_length": 256,
            "model.vocab_size": 33280,
            "model.compute_dtype": "bfloat16",
            "data.corpus": "seqio:wikitext2",
            "parametrization.base_width": 128,
            "optimizer.beta2": 0.999,
            "schedule.name": "constant",
            "schedule.warmup_tokens": 0,
            "run.horizon_tokens": 2048 * 5120,
            "run.batch_tokens": 5120,
            "evaluation.sequences": 768,
            "execution.microbatch_tokens": 5120,
            "execution.pack_runs": 4,
        }
    )
    note = "the published setting, as recalled: a node of accelerators"
    return widths(transfer.headed(cfg, 32), powers(128, 8192), 4e-3, 2, note, 1)


def analyse_width(results: Results) -> Analysis:
    found = {name: transfer.study(name, rows, WIDTH) for name, rows in results.table.groupby(NAME)}
    findings = [transfer.verdict(WIDTH_CLAIMS[what], found["mup"], what) for what in ("slope", "regret")]
    findings.append(transfer.verdict(WIDTH_CLAIMS["standard"], found["standard"], shift=FALLS))
    ordered = [found["standard"], found["mup"]]
    return transfer.report("Learning rate across widths", ordered, findings, results)


def other_axes(
    cfg: ConfigDict,
    best: float,
    batches: Sequence[int],
    horizons: Sequence[int],
    depths: Sequence[int],
    decays: Sequence[float],
    seeds: int,
    note: str,
    width: int,
    extensions: int = 0,
) -> Sweep:
    """One axis at a time about one setting of `width`, which is swept once; depth at the base width.

    `best` is the guess for that setting. Decays are coupled ones; an independent decay is that times `best`, so that
    both decay alike at the guess. Warm-up is one share of every horizon. Grids move with the guesses that the best rate
    grows as the root of the batch and falls as the cube root of the horizon and as the root of the depth.
    """
    run, share = cfg.run, cfg.schedule.warmup_tokens / cfg.run.horizon_tokens
    plain = {"optimizer.weight_decay": 0.0, "optimizer.decay": "coupled"}
    still = {WIDTH: width, "model.depth": cfg.model.depth, "run.batch_tokens": run.batch_tokens}
    still |= {"run.horizon_tokens": run.horizon_tokens, **plain}

    def along(key: str, power: float, values: Sequence[int], centre: int) -> list[tuple[Point, float]]:
        return [({key: value}, best * (value / centre) ** power) for value in values]

    decayed = {"coupled": [float(d) for d in decays], "independent": [float(f"{d * best:.4g}") for d in decays]}
    axes = {
        "batch": ("run.batch_tokens", along("run.batch_tokens", 0.5, batches, run.batch_tokens), {}),
        "horizon": ("run.horizon_tokens", along("run.horizon_tokens", -1 / 3, horizons, run.horizon_tokens), {}),
        "depth": (
            "model.depth", along("model.depth", -0.5, depths, cfg.model.depth),
            {WIDTH: cfg.parametrization.base_width},
        ),
    } | {
        f"{kind} decay": ("optimizer.weight_decay", [({"optimizer.weight_decay": d}, best) for d in values],
                          {"optimizer.decay": kind})
        for kind, values in decayed.items()
    }  # fmt: skip
    points: list[list[Point]] = []
    for _, sizes, where in axes.values():
        for point, guess in sizes:
            whole = {NAME: "mup", **still, **where, **point}
            whole["schedule.warmup_tokens"] = int(share * whole["run.horizon_tokens"])
            points.append(transfer.family([whole], transfer.rates(guess, 2, 3), seeds))
    where = {name: {k: v for k, v in (still | where).items() if k != size} for name, (size, _, where) in axes.items()}
    sizes = {name: size for name, (size, _, _) in axes.items()}
    return Sweep(cfg, chain(*points), note, {"where": where, "sizes": sizes}, extensions)


def axes_smoke() -> Sweep:
    cfg = transfer.headed(transfer.smoke_base(), 4)
    return other_axes(cfg, 0.12, (128, 256), (1024, 2048), (1, 2), (0.5, 2.0), 1, "seconds on a CPU", width=8)


def axes_tiny() -> Sweep:
    cfg, note = transfer.headed(transfer.base()), "two CPU cores, about ten minutes"
    horizons = [98304 * 2**k // 4 for k in range(5)]
    return other_axes(cfg, 2.4e-2, (128, 512, 2048), horizons, (2, 4, 8, 16), (0.5, 2.0, 8.0), 2, note, 64, 1)


def axes_small() -> Sweep:
    cfg = transfer.headed(accelerator(**{"parametrization.base_width": 128}), 64)
    horizons = [512 * 16384 * 2**k // 4 for k in range(5)]
    note = "one accelerator, within an hour"
    return other_axes(cfg, 1.6e-2, powers(4096, 65536), horizons, powers(2, 32), (0.5, 2.0, 8.0), 2, note, 256, 1)


def axes_paper() -> Sweep:
    """Horizons of Bjorck et al. at their smallest size, as recalled; the other axes about the shortest."""
    cfg = transfer.base(
        **{
            "model.depth": 12,
            "model.sequence_length": 2048,
            "model.vocab_size": 50304,
            "model.compute_dtype": "bfloat16",
            "data.corpus": "seqio:c4",
            "parametrization.base_width": 384,
            "parametrization.base_depth": 12,
            "schedule.name": "cosine",
            "schedule.warmup_tokens": 10**9,
            "run.horizon_tokens": 50_000 * 2**19,
            "run.batch_tokens": 2**19,
            "evaluation.sequences": 4096,
            "execution.microbatch_tokens": 2**17,
            "execution.pack_runs": 4,
        }
    )
    horizons = [50_000 * 2**19 * 2**k for k in range(3)]
    note = "the published setting, as recalled: a TPU pod"
    cfg = transfer.headed(cfg, 64)
    return other_axes(cfg, 4e-3, powers(2**17, 2**21), horizons, (12, 24, 48), (0.5, 2.0, 8.0), 1, note, 768, 1)


def analyse_axes(results: Results) -> Analysis:
    where, sizes = results.settings["where"], results.settings["sizes"]
    found, findings = [], []
    for name, claims in AXIS_CLAIMS.items():
        rows = transfer.of(results.table, where[name])
        if "decay" in name:
            rows = rows[rows["optimizer.weight_decay"] > 0]
        found.append(transfer.study(name, rows, sizes[name]))
        longest = quantity(rows["run.horizon_tokens"].max())
        caveats = (f"Horizons here end at {longest} tokens; the paper's begin at 25B, recalled",) * (name == "horizon")
        findings += [transfer.verdict(claim, found[-1], caveats=caveats) for claim in claims]
    return transfer.report("Learning rate across other axes, in muP", found, findings, results)


ALL_AXES = (
    WIDTH, "model.depth", "run.batch_tokens", "run.horizon_tokens", "optimizer.weight_decay", "optimizer.decay",
)  # fmt: skip

EXPERIMENTS = [
    Experiment(
        id="mup-transfer/width",
        paper=YANG,
        summary="Whether the best learning rate stays as width grows: standard against muP.",
        scales={"smoke": width_smoke, "tiny": width_tiny, "small": width_small, "paper": width_paper},
        analyse=analyse_width,
        extend=partial(transfer.extend, by=(NAME, WIDTH)),
    ),
    Experiment(
        id="mup-transfer/other-axes",
        paper=f"{YANG}; {BJORCK}",
        summary="What does not transfer in muP: the best learning rate along batch, horizon, depth and weight decay.",
        scales={"smoke": axes_smoke, "tiny": axes_tiny, "small": axes_small, "paper": axes_paper},
        analyse=analyse_axes,
        extend=partial(transfer.extend, by=ALL_AXES),
    ),
]
