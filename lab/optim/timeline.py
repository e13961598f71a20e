"""Timelines: everything about a run that depends on when, as a table computed on the host.

One row per tick (one micro-batch). A schedule, a batch size, a batch warm-up or a cooldown branch is another table and
never another program. Schedules are functions of tokens and are read at the middle of each update's batch, so that
their sum over a run does not depend on the batch size and no update is spent at a rate of exactly zero.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from lab.config import microbatch_tokens


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Columns of one run, each of shape [ticks].

    Attributes:
      learning_rate: of the update that this tick belongs to.
      weight_decay: coefficient, multiplied by the learning rate when it is applied (as in AdamW).
      averaging: decay of the weight average at this tick's update; the new weights enter with 1 - averaging.
      apply: whether the optimizer applies the accumulated gradient after this tick.
    """

    learning_rate: np.ndarray
    weight_decay: np.ndarray
    averaging: np.ndarray
    apply: np.ndarray

    @property
    def ticks(self) -> int:
        return len(self.apply)

    @property
    def steps(self) -> int:
        return int(self.apply.sum())

    def rows(self, start: int, count: int) -> dict[str, np.ndarray]:
        """`count` rows from tick `start`, each column [count]; past the end nothing is applied at rate 0."""
        stop = min(start + count, self.ticks)
        padding = (0, count - max(0, stop - start))
        return {
            field.name: np.pad(getattr(self, field.name)[start:stop], padding) for field in dataclasses.fields(self)
        }


def timeline(cfg: ConfigDict) -> Timeline:
    """The table of a run: whole updates only, as many as the horizon holds."""
    micro = microbatch_tokens(cfg)
    batch = cfg.run.batch_tokens
    steps, accumulation = cfg.run.horizon_tokens // batch, batch // micro
    step = np.arange(1, steps + 1, dtype=np.float64)
    rate = cfg.optimizer.learning_rate * schedule(cfg, (step - 0.5) * batch)
    columns = {
        "learning_rate": rate,
        "weight_decay": np.full(steps, weight_decay(cfg)),
        "averaging": averaging(cfg, step * batch),
    }
    return Timeline(
        **{name: np.repeat(column, accumulation).astype(np.float32) for name, column in columns.items()},
        apply=np.tile(np.arange(1, accumulation + 1) == accumulation, steps),
    )


def weight_decay(cfg: ConfigDict) -> float:
    """What is multiplied by the learning rate when it decays weights: `coupled`, as in AdamW, the coefficient itself;
    `independent` (Wortsman et al. 2023, arXiv:2309.14322), the coefficient over the peak learning rate, so that an
    update decays by schedule x coefficient whatever the peak."""
    independent = cfg.optimizer.decay == "independent"
    return cfg.optimizer.weight_decay / (cfg.optimizer.learning_rate if independent else 1.0)


def schedule(cfg: ConfigDict, tokens: np.ndarray) -> np.ndarray:
    """Fraction of the peak learning rate at each count of tokens, [n] -> [n].

    Linear warm-up over `warmup_tokens` multiplies every schedule. `cosine` and `linear` decay from the end of the
    warm-up to the horizon; `wsd` falls linearly and `one-minus-sqrt` as 1 - sqrt(x) (Hagele et al. 2024, eq. 1) over
    the last `cooldown_fraction` of the horizon.
    """
    horizon, warmup = float(cfg.run.horizon_tokens), float(cfg.schedule.warmup_tokens)
    final = cfg.schedule.final_fraction
    start = {"linear": warmup, "cosine": warmup}.get(cfg.schedule.name, (1 - cfg.schedule.cooldown_fraction) * horizon)
    progress = np.clip((tokens - start) / max(horizon - start, 1.0), 0.0, 1.0)
    decayed = {
        "constant": lambda x: np.zeros_like(x),
        "linear": lambda x: x,
        "cosine": lambda x: (1 - np.cos(np.pi * x)) / 2,
        "wsd": lambda x: x,
        "one-minus-sqrt": np.sqrt,
    }[cfg.schedule.name](progress)
    ramp = np.minimum(1.0, tokens / warmup) if warmup else 1.0
    return ramp * (1 - (1 - final) * decayed)


def averaging(cfg: ConfigDict, tokens: np.ndarray) -> np.ndarray:
    """Decay of the weight average at the update that ends at each count of tokens, [n] -> [n].

    `exponential` forgets by e over `window_tokens`, whatever the batch (Zhang et al. 2024 tune the decay per batch
    size instead); `polynomial` averages over the last `window_fraction` of the tokens seen, with no horizon to know.
    """
    batch = float(cfg.run.batch_tokens)
    if cfg.averaging.name == "exponential":
        return np.full_like(tokens, np.exp(-batch / cfg.averaging.window_tokens))
    if cfg.averaging.name == "polynomial":
        return 1 - np.minimum(1.0, batch / (cfg.averaging.window_fraction * tokens))
    return np.zeros_like(tokens)


def evaluation_steps(cfg: ConfigDict) -> np.ndarray:
    """Steps after which a run is evaluated: log-spaced in tokens, whole updates, the last step always among them."""
    batch, last = cfg.run.batch_tokens, cfg.run.horizon_tokens // cfg.run.batch_tokens
    first = min(cfg.evaluation.first_tokens, cfg.run.horizon_tokens)
    tokens = np.geomspace(first, cfg.run.horizon_tokens, cfg.evaluation.points)
    steps = np.clip(np.ceil(tokens / batch - 1e-9).astype(int), 1, last)
    return np.unique(np.append(steps, last))
