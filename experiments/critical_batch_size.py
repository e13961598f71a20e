"""How Does Critical Batch Size Scale in Pre-training? (Zhang et al. 2024, arXiv 2410.21676).

The paper's method. Train at a constant learning rate after a warm-up, averaging the weights exponentially in place of a
decay, so that one run serves every horizon. The reference batch sets the target: the validation loss of the averaged
weights at horizon D, at its best learning rate. For every batch size B, tune the learning rate and read off the steps S
to that target; fit ln S = ln(a + b/B). The critical batch B* is where S exceeds linear scaling from the reference batch
by 20 %. Three panels vary what the horizon and the model are:

    chinchilla    N and D = 20 N grow together        published B* = 93.20 N^0.468 (N in millions, sequences of 512)
    fixed-model   one N, D grows                      published B* = 17.75 D^0.47
    fixed-data    one D, N grows                      published B* = 621.3 N^0.087

and one experiment puts the last two beside each other. Our reference batch is smaller than the paper's by about as much
as our B* is: the definition depends on it, so the limit of small batches is reported beside it, and the gradient noise
scale (McCandlish et al. 2018) as a second estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from lab.config import default_config, override
from lab.models import counts
from lab.sweep.axes import Point, axis, powers, product
from lab.sweep.experiment import Experiment, Sweep

PAPER = "Zhang et al. 2024, How Does Critical Batch Size Scale in Pre-training?, arXiv 2410.21676"
TOKENS_PER_PARAMETER = 20
PAPER_SIZES = {(768, 12): 12, (1024, 12): 16, (1024, 24): 16, (1536, 21): 24, (2048, 24): 32}  # (width, depth): heads

Size = tuple[int, int]  # width, depth


def base(**changes: Any) -> ConfigDict:
    """What every run of the paper shares: QK-norm, GELU, RoPE, clipping at 1, averaging in place of any decay."""
    fixed = {
        "model.norm": "layer",
        "model.qk_norm": True,
        "optimizer.beta1": 0.9,
        "optimizer.beta2": 0.99,
        "optimizer.weight_decay": 0.0,
        "schedule.name": "constant",
        "averaging.name": "exponential",
    }
    return override(default_config(), {**fixed, **changes})


def non_embedding(cfg: ConfigDict) -> int:
    return counts.parameters(override(cfg, {"model.vocab_size": cfg.model.vocab_size or 1}).model)["non_embedding"]


def sizes(values: Sequence[Size], head_width: int) -> list[Point]:
    """One point per model size; heads of one width."""
    return [
        {
            "model.width": w,
            "model.depth": d,
            "model.head_width": head_width,
            "model.heads": w // head_width,
            "model.kv_heads": w // head_width,
        }
        for w, d in values
    ]


def rates(centre: float, power: float, factors: Sequence[float], reference: int) -> list[Point]:
    """Learning rates about centre * (batch / reference) ^ power, each factor a point of every batch's own grid.

    Theory has power 1/2 for Adam; at our smallest batches the optimum was seen to move faster. The grid extends itself
    where this guess is off.
    """

    def rate(factor: float, cfg: ConfigDict) -> float:
        return float(f"{centre * factor * (cfg.run.batch_tokens / reference) ** power:.4g}")

    return axis("optimizer.learning_rate", [partial(rate, factor) for factor in factors])


def overhead(tokens: float, knee: float, batch: int) -> float:
    """What a batch is expected to need in multiples of D, a quarter more than the overhead law: 1.25 + B / (b / a).

    b / a is guessed as `knee` tokens at D = 100,000 and grows as the root of D. A wrong guess costs time or leaves
    cells censored; it enters no result.
    """
    return 1.25 + batch / (knee * (tokens / 1e5) ** 0.5)


def horizon(tokens: float | None, knee: float, cfg: ConfigDict) -> int:
    """Tokens to train, in whole batches, so that every batch size can reach the target."""
    wanted = TOKENS_PER_PARAMETER * non_embedding(cfg) if tokens is None else tokens
    wanted *= overhead(wanted, knee, cfg.run.batch_tokens)
    return max(1, round(wanted / cfg.run.batch_tokens)) * cfg.run.batch_tokens


def sweep(
    cfg: ConfigDict,
    models: list[Point],
    batches: Sequence[int],
    reference: int,
    centre: float,
    factors: Sequence[float],
    seeds: int,
    tokens: float | None,
    knee: float,
    slack: float,
    note: str,
    power: float = 0.5,
    horizons: Sequence[float] = (),
    extensions: int = 0,
    warmup: float = 0.25,
) -> Sweep:
    """Sizes x batch sizes x learning rates x seeds.

    Args:
      batches, reference: batch sizes and the reference one, in tokens.
      centre, power, factors: the grid of learning rates, see `rates`.
      tokens: D of every size; None for 20 tokens per parameter.
      knee, slack: see `overhead`; batches that are expected to need more than `slack` times D are left out.
      horizons: D of the groups where one run serves several (fixed-model).
      seeds: pairs of initial weights and data order, the same for every batch size.
      warmup: of the reference batch's horizon, as the paper's schedule has it; the smallest horizon counts.
    """

    def warmup_tokens(cfg: ConfigDict) -> int:
        return int(warmup * (min(horizons, default=tokens) or TOKENS_PER_PARAMETER * non_embedding(cfg)))

    def affordable(model: Point) -> list[Point]:
        wanted = tokens or TOKENS_PER_PARAMETER * non_embedding(override(cfg, model))
        return [{**model, "run.batch_tokens": b} for b in batches if overhead(wanted, knee, b) <= slack]

    points = product(
        [point for model in models for point in affordable(model)],
        axis("run.horizon_tokens", [partial(horizon, tokens, knee)]),
        axis("schedule.warmup_tokens", [warmup_tokens]),
        [{"run.seed": seed, "run.data_seed": seed} for seed in range(seeds)],
        rates(centre, power, factors, reference),
    )
    settings = {
        "reference_tokens": reference,
        "tokens": tokens,
        "horizons": list(horizons),
        "centre": centre,
        "power": power,
        "models": [(model["model.width"], model["model.depth"]) for model in models],
        "warmup_tokens": None if tokens is None else int(warmup * min(horizons, default=tokens)),
    }
    return Sweep(cfg, points, note, settings, extensions)


def smoke(panel: str) -> Sweep:
    """Seconds: checks the path, decides nothing. On the synthetic corpus, so that nothing has to be prepared."""
    cfg = base(
        **{
            "model.sequence_length": 32,
            "data.corpus": "synthetic",
            "evaluation.points": 8,
            "evaluation.first_tokens": 2048,
            "evaluation.sequences": 16,
            "execution.microbatch_tokens": 128,
        }
    )
    models = sizes([(8, 1)] if panel == "fixed-model" else [(8, 1), (16, 1)], 8)
    horizons = (8192, 16384) if panel == "fixed-model" else ()
    tokens = {"chinchilla": None, "fixed-model": 16384, "fixed-data": 16384}[panel]
    return sweep(
        cfg, models, (128, 256, 512), 128, 1e-2, (1.0, 2.0), 1, tokens, 1e6, 2.0, "seconds on a CPU", horizons=horizons
    )


def tiny(panel: str) -> Sweep:
    """Two CPU cores, ten minutes a panel.

    The critical batch of so short a training is a few hundred tokens, so the reference batch is two sequences of 64.
    muP carries the learning rate over the sizes, so that one narrow grid serves them all.
    """
    cfg = base(
        **{
            "model.sequence_length": 64,
            "parametrization.name": "mup",
            "parametrization.base_width": 32,
            "averaging.window_tokens": 16384,
            "evaluation.first_tokens": 32768,
            "evaluation.points": 32,
            "evaluation.sequences": 192,
            "execution.microbatch_tokens": 512,
        }
    )
    rest = {"reference": 128, "centre": 5e-3, "power": 0.75, "factors": (0.5, 1.0, 2.0), "seeds": 2, "extensions": 1}
    rest |= {"knee": 1150, "slack": 2.6}
    rest["note"] = "two CPU cores, at most ten minutes"
    batches = powers(128, 4096)
    if panel == "fixed-model":
        horizons = (1e5, 2e5, 4e5, 8e5)
        return sweep(cfg, sizes([(32, 2)], 8), batches, tokens=8e5, horizons=horizons, **rest)
    models = sizes([(16, 1), (16, 2), (24, 2), (32, 2)], 8)
    return sweep(cfg, models, batches, tokens=None if panel == "chinchilla" else 3e5, **rest)


def small(panel: str) -> Sweep:
    """One accelerator, within twenty minutes."""
    cfg = base(
        **{
            "model.sequence_length": 256,
            "model.compute_dtype": "bfloat16",
            "parametrization.name": "mup",
            "data.corpus": "pysource-all",
            "averaging.window_tokens": 131072,
            "evaluation.first_tokens": 524288,
            "evaluation.points": 40,
            "evaluation.sequences": 512,
            "execution.microbatch_tokens": 16384,
        }
    )
    rest = {"reference": 1024, "centre": 4e-3, "power": 0.6, "factors": (0.5, 1.0, 2.0), "seeds": 1, "extensions": 1}
    rest |= {"knee": 2300, "slack": 2.6}
    rest["note"] = "one accelerator, within twenty minutes"
    batches = powers(1024, 131072)
    if panel == "fixed-model":
        horizons = (2.5e6, 5e6, 10e6, 20e6)
        return sweep(cfg, sizes([(128, 4)], 32), batches, tokens=20e6, horizons=horizons, **rest)
    models = sizes([(64, 3), (96, 4), (128, 6)], 32)
    return sweep(cfg, models, batches, tokens=None if panel == "chinchilla" else 10e6, **rest)


def paper(panel: str) -> Sweep:
    """The published setting: 85M to 1.2B parameters, C4, sequences of 512, batches of 64 to 16,384 sequences."""
    cfg = base(
        **{
            "model.sequence_length": 512,
            "model.vocab_size": 50304,
            "model.compute_dtype": "bfloat16",
            "data.corpus": "seqio:c4",
            "averaging.window_tokens": 100 * 131072,
            "evaluation.first_tokens": 100_000_000,
            "evaluation.points": 100,
            "evaluation.sequences": 25600,
            "execution.microbatch_tokens": 131072,
        }
    )
    models = [
        {"model.width": w, "model.depth": d, "model.heads": h, "model.kv_heads": h} for (w, d), h in PAPER_SIZES.items()
    ]
    chosen = {"chinchilla": models, "fixed-model": models[2:3], "fixed-data": models}[panel]
    tokens = {"chinchilla": None, "fixed-model": 24.576e9, "fixed-data": 3.072e9}[panel]
    horizons = (3.072e9, 6.144e9, 12.288e9, 24.576e9) if panel == "fixed-model" else ()
    batches = [512 * sequences for sequences in powers(64, 16384)]
    return sweep(
        cfg,
        chosen,
        batches,
        reference=131072,
        centre=3.16e-3,
        factors=(0.316, 1.0, 3.16),
        seeds=1,
        tokens=tokens,
        knee=8400,  # 1.1 million tokens at the 85M model's D, as the authors' table has it
        slack=10.0,
        note="the published setting: a TPU pod",
        horizons=horizons,
    )


def together(make: Any) -> Sweep:
    """Both panels that hold one thing fixed; their runs are those panels' own and are trained once."""
    parts = {panel: make(panel) for panel in ("fixed-model", "fixed-data")}
    first = parts["fixed-model"]
    points = [point for part in parts.values() for point in part.points]
    settings = {panel: part.settings for panel, part in parts.items()}
    return Sweep(first.base, points, first.note, settings, first.extensions)


def study(name: str, *arguments: Any) -> Any:
    """Calls a function of `cbs_study`, which loads pandas and scipy: not for `lab list`."""
    from experiments import cbs_study

    return getattr(cbs_study, name)(*arguments)


SUMMARIES = {
    "chinchilla": "Critical batch size where model and data grow together.",
    "fixed-model": "Critical batch size of one model as its data grow.",
    "fixed-data": "Critical batch size at one amount of data as the model grows.",
}

EXPERIMENTS = [
    Experiment(
        id=f"critical-batch-size/{panel}",
        paper=PAPER,
        summary=summary,
        scales={make.__name__: partial(make, panel) for make in (smoke, tiny, small, paper)},
        analyse=partial(study, "analyse", panel),
        extend=partial(study, "extend", panel),
        published=partial(study, "published", panel) if panel == "chinchilla" else None,
    )
    for panel, summary in SUMMARIES.items()
] + [
    Experiment(
        id="critical-batch-size/data-or-size",
        paper=PAPER,
        summary="Whether the critical batch size follows the data or the model: the last two beside each other.",
        scales={make.__name__: partial(together, make) for make in (smoke, tiny, small, paper)},
        analyse=partial(study, "compare"),
        extend=partial(study, "extend_parts"),
    )
]
