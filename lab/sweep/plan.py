"""From points to runs to packs, and what they will cost. No jax here: a plan is made on any laptop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from lab.config import digest, identity, microbatch_tokens, shape, validate, with_vocabulary
from lab.models import counts
from lab.sweep.axes import Point, apply


@dataclasses.dataclass(frozen=True)
class Run:
    """One point of a sweep: its identity and its resolved config."""

    id: str
    cfg: ConfigDict


def make_runs(base: ConfigDict, points: Iterable[Point], vocab_size: int, corpus_digest: str) -> list[Run]:
    """The runs of a sweep, each identity once, in the order of the points.

    Raises:
      ConfigError: for the first point that cannot be meant.
    """
    runs: dict[str, Run] = {}
    for point in points:
        cfg = with_vocabulary(validate(apply(base, point)), vocab_size)
        run = Run(identity(cfg, corpus_digest), cfg)
        runs.setdefault(run.id, run)
    return list(runs.values())


def make_packs(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of equal shape together, the longest first, at most `execution.pack_runs` in one."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(digest(shape(run.cfg)), []).append(run)
    packs = []
    for group in groups.values():
        group = sorted(group, key=lambda run: (-run.cfg.run.horizon_tokens, run.cfg.run.batch_tokens))
        limit = group[0].cfg.execution.pack_runs
        packs += [group[i : i + limit] for i in range(0, len(group), limit)]
    return packs


def whole_tokens(cfg: ConfigDict) -> int:
    """Tokens that a run trains on: whole updates only."""
    return cfg.run.horizon_tokens // cfg.run.batch_tokens * cfg.run.batch_tokens


def cost(runs: Sequence[Run], train_tokens: int | None = None) -> dict[str, Any]:
    """What a sweep will take; static, from the configs alone.

    Returns:
      `runs`, `packs`, `tokens` (trained), `flops` (forward and backward, attention counted; evaluations apart as
      `evaluation_flops`), `state_bytes` (weights, optimizer, accumulator and average of the largest pack, at rest),
      `epochs` (largest number of passes over the corpus, where its size is given).
    """
    packs = make_packs(runs)
    per_token = {run.id: counts.flops_per_token(run.cfg.model)["with_attention"] for run in runs}
    evaluated = {
        run.id: run.cfg.evaluation.points * run.cfg.evaluation.sequences * run.cfg.model.sequence_length for run in runs
    }
    longest = max((whole_tokens(run.cfg) for run in runs), default=0)
    return {
        "runs": len(runs),
        "packs": len(packs),
        "tokens": sum(whole_tokens(run.cfg) for run in runs),
        "flops": sum(per_token[run.id] * whole_tokens(run.cfg) for run in runs),
        "evaluation_flops": sum(per_token[run.id] / 3 * evaluated[run.id] for run in runs),
        "state_bytes": max((sum(state_bytes(run.cfg) for run in pack) for pack in packs), default=0),
        "epochs": longest / train_tokens if train_tokens else None,
    }


def state_bytes(cfg: ConfigDict) -> int:
    """Bytes of one run's state at rest: weights, gradient accumulator, optimizer moments, average."""
    moments = {"adamw": 2, "lamb": 2, "lion": 1, "sgd": 1}[cfg.optimizer.name]
    copies = 2 + moments + (cfg.averaging.name != "none")
    return counts.parameters(cfg.model)["total"] * copies * (8 if cfg.model.compute_dtype == "float64" else 4)


def describe_pack(pack: Sequence[Run]) -> dict[str, Any]:
    """One line of `lab plan`."""
    model = pack[0].cfg.model
    return {
        "runs": len(pack),
        "width": model.width,
        "depth": model.depth,
        "parameters": counts.parameters(model),
        "microbatch_tokens": microbatch_tokens(pack[0].cfg),
        "batch_tokens": sorted({run.cfg.run.batch_tokens for run in pack}),
        "learning_rates": sorted({run.cfg.optimizer.learning_rate for run in pack}),
        "tokens": sum(whole_tokens(run.cfg) for run in pack),
    }
