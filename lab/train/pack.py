"""Trains the runs of a pack: chunks of ticks, evaluations, checkpoints, members that leave.

The loop lives on the host and holds no numbers of its own: everything that a result depends on is in the pack's state,
the timelines and the data order, so a pack that was killed goes on from its newest checkpoint as if nothing had been.
Chunk lengths and checkpoint times follow the clock and change no bit of any result.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lab import models, parametrization
from lab.config import microbatch_tokens
from lab.errors import ConfigError
from lab.optim import optimizers
from lab.optim.timeline import Timeline, evaluation_steps, timeline
from lab.train import statistics
from lab.train.checkpoint import Checkpointer
from lab.train.executor import Executor, executor
from lab.train.sharding import batch_devices, make_mesh
from lab.train.step import Step

CHUNK_TICKS = 64  # the longest chunk: how many ticks of tokens and metrics one call of the program carries
EVALUATIONS = ("step", "tokens", "loss", "noise_difference", "noise_product", "noise_probes")


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a pack: its name, its resolved config and what the host computes from it."""

    run: str
    cfg: ConfigDict
    timeline: Timeline
    evaluation_ticks: dict[int, int]  # tick -> index of the evaluation

    @classmethod
    def of(cls, run: str, cfg: ConfigDict) -> Member:
        accumulation = cfg.run.batch_tokens // microbatch_tokens(cfg)
        due = {int(step) * accumulation: i for i, step in enumerate(evaluation_steps(cfg))}
        return cls(run, cfg, timeline(cfg), due)

    @property
    def accumulation(self) -> int:
        """Ticks of one update."""
        return self.cfg.run.batch_tokens // microbatch_tokens(self.cfg)

    @property
    def microbatch(self) -> int:
        """Sequences of one tick."""
        return microbatch_tokens(self.cfg) // self.cfg.model.sequence_length

    def sequences(self, tick: int) -> int:
        """Sequences consumed after `tick` ticks."""
        return min(tick, self.timeline.ticks) * self.microbatch

    def hyper(self) -> dict[str, Any]:
        """Every number of the run that enters the program as an array and does not change with time."""
        cfg = self.cfg
        scales = parametrization.scales(cfg.model, cfg.parametrization, optimizers.FAMILY[cfg.optimizer.name])
        return {
            "seed": np.uint32(cfg.run.seed),
            "optimizer": optimizers.hyperparameters(cfg),
            "scales": scales.trees(),
            "multipliers": scales.multipliers,
            "z_loss": cfg.loss.z_loss,
        }


def stack(values: list[Any]) -> Any:
    """Trees of numbers -> one tree of arrays with a leading run axis; floats become float32."""

    def join(*leaves):
        array = np.stack([np.asarray(leaf) for leaf in leaves])
        return array.astype(np.float32) if array.dtype == np.float64 else array

    return jax.tree.map(join, *values)


class Pack:
    """The members of a pack on their slots, and the device state that goes with them."""

    def __init__(self, members: list[Member], corpus: Any):
        cfg = members[0].cfg
        self.members = {member.run: member for member in members}
        self.corpus = corpus
        self.cfg = cfg
        self.sequence_length = cfg.model.sequence_length
        self.seeds = sorted({member.cfg.run.data_seed for member in members})
        self.step = Step(
            models.build(cfg.model),
            cfg.optimizer.name,
            averages=cfg.averaging.name != "none",
            probes=cfg.execution.noise_probe_ticks > 0,
            dtype="float64" if cfg.model.compute_dtype == "float64" else "float32",
        )
        self.settle(len(members))
        self.validation = self.validation_tokens()
        self.tick = 0
        self.state: Any = None
        self.seat([member.run for member in members])

    def settle(self, seats: int) -> None:
        """Chooses the mesh and how the run axis is executed.

        Raises:
          ConfigError: where the mesh cannot be had, does not divide a micro-batch, or allows no `map`.
        """
        mode, mesh = self.cfg.execution.run_axis, make_mesh(self.cfg.execution.mesh, seats)
        sequences = microbatch_tokens(self.cfg) // self.sequence_length
        if sequences % batch_devices(mesh):
            raise ConfigError(
                f"execution.mesh: data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']} devices do not share a "
                f"micro-batch of {sequences} sequences evenly; change the mesh or execution.microbatch_tokens"
            )
        # XLA's partitioner aborts the process where a `shard_map` over runs leaves it two kinds of axes to split.
        unmappable = mesh.shape["run"] > 1 and mesh.shape["tensor"] > 1 and batch_devices(mesh) > 1
        if mode == "map" and unmappable:
            raise ConfigError(
                "execution.run_axis: found map on a mesh that splits runs, tensors and sequences at once, "
                "expected vmap there"
            )
        if mode == "auto":
            looped = (jax.default_backend() == "cpu" or seats == 1) and not unmappable
            mode = "map" if looped else "vmap"
        self.mesh, self.mode = mesh, mode

    def seat(self, runs: list[str]) -> None:
        """Gives each run a slot, dealt out over the devices of the run axis, and fills up with empty slots."""
        devices = self.mesh.shape["run"]
        per_device = -(-len(runs) // devices)
        self.slots = [
            runs[i + j * devices] if i + j * devices < len(runs) else None
            for i in range(devices)
            for j in range(per_device)
        ]
        self.left = set()
        self.bind()

    def bind(self) -> None:
        """Arrays and programs that follow from who sits where."""
        self.executor = executor(self.step, self.mesh, self.mode, len(self.slots))
        first = next(run for run in self.slots if run)
        seated = [self.members[run or first] for run in self.slots]
        self.hyper = self.executor.put_runs(stack([member.hyper() for member in seated]))
        stream = np.array([self.seeds.index(m.cfg.run.data_seed) for m in seated], np.int32)
        self.stream = self.executor.put_runs(stream)

    @property
    def place(self) -> dict[str, Any]:
        """What a checkpoint says of its runs, for `resume`."""
        return {"slots": self.slots, "left": sorted(self.left), "data_seeds": self.seeds}

    @property
    def live(self) -> list[Member]:
        return [self.members[run] for run in self.slots if run and run not in self.left]

    def mask(self, runs: set[str]) -> jax.Array:
        """Which slots hold one of `runs`, bool [slots] on the run axis."""
        return self.executor.put_runs(np.array([run in runs for run in self.slots]))

    def start(self) -> None:
        self.state = self.executor.init(self.hyper)

    def resume(self, checkpointer: Checkpointer) -> dict | None:
        """Takes up the newest whole checkpoint, whatever mesh wrote it; returns its meta, or None where there is none.

        Members that have ended keep their slots, empty: the program, and so every bit, stays that of the whole pack.
        """

        def target(meta: dict) -> Any:
            self.settle(len(meta["slots"]))
            saved = Executor(self.step, self.mesh, self.mode, len(meta["slots"]))
            return saved.shapes if len(meta["slots"]) % self.mesh.shape["run"] else saved.abstract_state

        restored = checkpointer.restore(target)
        if restored is None:
            return None
        self.tick, self.state, meta = restored
        self.slots = [run if run in self.members else None for run in meta["slots"]]  # the others have their records
        self.left, self.seeds = set(meta["left"]), meta["data_seeds"]
        if len(self.slots) % self.mesh.shape["run"]:
            self.compact()
        else:
            self.bind()
        return meta

    def tokens(self, tick: int, count: int) -> np.ndarray:
        """Token ids [CHUNK_TICKS, streams, B, T+1] of `count` ticks; the rest is zeros that nobody reads."""
        batch = microbatch_tokens(self.cfg) // self.sequence_length
        out = np.zeros((CHUNK_TICKS, len(self.seeds), batch, self.sequence_length + 1), np.int32)
        for i, seed in enumerate(self.seeds):
            flat = self.corpus.batch("train", seed, self.sequence_length, tick * batch, count * batch)
            out[:count, i] = flat.reshape(count, batch, -1)
        return out

    def validation_tokens(self) -> np.ndarray:
        """The validation sequences that every evaluation reads, [M, B, T+1]; the same under any execution settings."""
        sequences = min(self.cfg.evaluation.sequences, self.corpus.sequences("validation", self.sequence_length))
        sequences -= sequences % min(8, sequences)
        most = min(sequences, max(8, microbatch_tokens(self.cfg) // self.sequence_length))
        batch = next(size for size in range(most, 0, -1) if sequences % size == 0)
        rows = self.corpus.batch("validation", 0, self.sequence_length, 0, sequences)
        return rows.reshape(-1, batch, self.sequence_length + 1)

    def advance(self, count: int) -> jax.Array:
        """Dispatches the next `count` ticks; returns metrics [slots, CHUNK_TICKS, len(METRICS)], not yet computed."""
        every = self.cfg.execution.noise_probe_ticks
        ticks = np.arange(self.tick, self.tick + CHUNK_TICKS)
        probes = ticks % every == 0 if every else np.zeros(CHUNK_TICKS, bool)
        first = next(run for run in self.slots if run)
        rows = stack([self.members[run or first].timeline.rows(self.tick, CHUNK_TICKS) for run in self.slots])
        self.state, metrics = self.executor.train(
            self.executor.put_tokens(self.tokens(self.tick, count)),
            probes,
            np.int32(count),
            self.state,
            self.mask({member.run for member in self.live}),
            self.stream,
            self.executor.put_runs(rows),
            self.hyper,
        )
        self.tick += count
        return metrics

    def evaluate(self, runs: set[str]) -> dict[str, np.ndarray]:
        """One row of `EVALUATIONS` for each of `runs`."""
        tokens = self.executor.put_tokens(self.validation)
        losses = np.asarray(self.executor.evaluate(tokens, self.state, self.mask(runs), self.hyper))
        steps, noise = np.asarray(self.state.step), np.asarray(self.state.noise)
        return {
            run: np.concatenate(
                [[steps[i], steps[i] * self.members[run].cfg.run.batch_tokens, losses[i]], noise[i]]
            ).astype(np.float64)
            for i, run in enumerate(self.slots)
            if run in runs
        }

    def statistics(self, runs: set[str]) -> dict[str, np.ndarray]:
        """One row of `lab.train.statistics.columns` for each of `runs`, on the first validation sequences."""
        first = self.validation.reshape(-1, self.sequence_length + 1)[: statistics.SEQUENCES]
        tokens = self.executor.put_tokens(first)
        found = np.asarray(self.executor.statistics(tokens, self.state, self.mask(runs), self.hyper))
        steps = np.asarray(self.state.step)
        return {run: np.append(steps[i], found[i].ravel()) for i, run in enumerate(self.slots) if run in runs}

    def weights(self, run: str) -> dict[str, Any]:
        """A run's weights and, where it keeps one, their average."""
        slot = np.int32(self.slots.index(run))
        return self.executor.take({"weights": self.state.weights, "average": self.state.average}, slot)

    def drop(self, runs: set[str]) -> None:
        """Takes runs out. Under `map` an empty slot costs nothing; under `vmap` the pack shrinks once half is empty."""
        self.left |= runs
        width = self.mesh.shape["run"]
        fewest = -(-len(self.live) // width) * width
        if self.mode == "vmap" and 1 < fewest <= len(self.slots) // 2:
            self.compact()

    def compact(self) -> None:
        """Moves the live runs together, on as few slots as the devices of the run axis share evenly."""
        stay = [i for i, run in enumerate(self.slots) if run and run not in self.left]
        keep = stay + [stay[0]] * (-len(stay) % self.mesh.shape["run"])
        self.slots = [self.slots[i] for i in stay] + [None] * (len(keep) - len(stay))
        shrunk = jax.tree.map(lambda x: x[np.array(keep)], self.state)
        self.bind()
        self.state = jax.device_put(shrunk, self.executor.shardings)
