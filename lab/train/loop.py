"""The host's loop over a pack: chunks of ticks between evaluations, checkpoints by the clock, members that leave."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from lab import models
from lab.config import microbatch_tokens
from lab.files import write_npz
from lab.models import counts
from lab.train import statistics
from lab.train.checkpoint import Checkpointer
from lab.train.pack import CHUNK_TICKS, EVALUATIONS, Member, Pack
from lab.train.sharding import names
from lab.train.step import METRICS
from lab.train.store import RunStore

CHUNK_SECONDS = 1.0  # what a chunk should take, so that Ctrl-C, checkpoints and the display stay prompt
FIRST_TICKS = 8  # of a chunk, before its time is known
TRAIN = ("tokens", "learning_rate", *METRICS)


class Interrupted(Exception):
    """The pack was asked to stop; its state is saved and it can go on."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a display is told after each chunk.

    tokens: trained since the last report, over all live members. loss: mean training loss of the live members.
    """

    tick: int
    last_tick: int
    live: int
    tokens: int
    loss: float


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT or SIGTERM came; a second signal ends the process as usual."""
    asked = []

    def ask(number, frame):
        asked.append(number)
        signal.signal(number, previous[number])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    pack: Pack, store: RunStore, checkpointer: Checkpointer, meta: dict, report: Callable[[Progress], None]
) -> None:
    """Trains every member to its end; each leaves a record when it is finished or diverged.

    Args:
      meta: recorded with each checkpoint (code, hardware, configs).

    Raises:
      Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    with stop_requests() as stopping:
        _Loop(pack, store, checkpointer, meta, report).run(stopping)


def rows_are_there(store: RunStore, pack: Pack) -> bool:
    """Whether everything that the members wrote before the pack's tick is still on disk, so that it may go on."""
    steps = dict(zip(pack.slots, np.asarray(pack.state.step).tolist()))
    diverged = dict(zip(pack.slots, np.asarray(pack.state.diverged).tolist()))
    for member in pack.members.values():
        if member.run in pack.left:
            return False  # it had ended, but its record is gone
        curves = store.curves(member.run, layout(member))
        written = _evaluated(member, pack.tick)
        trained = steps[member.run]
        if diverged[member.run]:  # nothing is written after the step that diverged
            trained = min(trained, -(-diverged[member.run] // member.accumulation))
        for name, rows in {"train": trained, **written}.items():
            if int((curves.read(name).index < rows).sum()) < rows:
                return False
    return True


class _Loop:
    def __init__(self, pack, store, checkpointer, meta, report):
        self.pack, self.store, self.checkpointer, self.meta, self.report = pack, store, checkpointer, meta, report
        self.options = pack.cfg.execution
        self.curves = {member.run: store.curves(member.run, layout(member)) for member in pack.live}
        self.steps = dict(zip(pack.slots, np.asarray(pack.state.step).tolist()))
        diverged = dict(zip(pack.slots, np.asarray(pack.state.diverged).tolist()))
        self.broken = {m.run for m in pack.live if 0 < diverged[m.run] <= self.steps[m.run] * m.accumulation}
        self.pending: tuple[int, int, jax.Array, float] | None = None
        self.ready_at = 0.0
        self.seconds_per_tick = CHUNK_SECONDS / FIRST_TICKS
        self.saved_at, self.saved_tick = time.monotonic(), pack.tick
        for member in pack.live:  # rows that a process wrote after its last checkpoint, perhaps on other hardware
            self.curves[member.run].forget("train", self.steps[member.run])
            for name, rows in _evaluated(member, pack.tick).items():
                self.curves[member.run].forget(name, rows)

    def run(self, stopping: Callable[[], bool]) -> None:
        """A checkpoint at a tick is saved after the evaluation of that tick, so that a resume goes on behind it."""
        if self.pack.tick == 0:
            self.write_statistics({member.run: 0 for member in self.pack.live})
        while self.pack.live:
            boundary = min(t for m in self.pack.live for t in m.evaluation_ticks if t > self.pack.tick)
            self.chunk(boundary)
            if self.pack.tick == boundary:
                self.drain()
                self.evaluate(boundary)
            if stopping():
                self.save()
                self.checkpointer.wait()
                raise Interrupted
            self.save_if_due()
        self.checkpointer.wait()

    def chunk(self, boundary: int) -> None:
        """Dispatches ticks for about a second. Meanwhile the device computes the chunk before, whose rows come next."""
        every = self.options.checkpoint_ticks
        due = every - self.pack.tick % every if every else CHUNK_TICKS
        wanted = max(1, int(CHUNK_SECONDS / self.seconds_per_tick))
        start, count = self.pack.tick, min(CHUNK_TICKS, boundary - self.pack.tick, due, wanted)
        metrics = self.pack.advance(count)
        dispatched_at = time.monotonic()
        self.drain()
        self.pending = (start, count, metrics, dispatched_at)

    def drain(self) -> None:
        """Writes the rows of the last chunk. A row's place is its step, so writing it twice changes nothing."""
        if self.pending is None:
            return
        start, count, metrics, dispatched_at = self.pending
        self.pending = None
        values, finishing, losses = np.asarray(metrics), [], []
        began, self.ready_at = max(dispatched_at, self.ready_at), time.monotonic()
        self.seconds_per_tick = max(1e-9, self.ready_at - began) / count
        live = self.pack.live
        writing = {member.run for member in live} - self.broken
        for slot, run in enumerate(self.pack.slots):
            if run not in writing:
                continue
            member = self.pack.members[run]
            rows = member.timeline.rows(start, count)
            made = np.flatnonzero(rows["apply"])
            if not len(made):
                continue
            lines = values[slot, made].astype(np.float64)
            first = self.steps[run]
            whole = np.isfinite(lines).all(axis=1)
            if not whole.all():
                self.broken.add(run)
                lines, made = lines[: int(np.argmin(whole)) + 1], made[: int(np.argmin(whole)) + 1]
            tokens = (first + 1 + np.arange(len(made))) * member.cfg.run.batch_tokens
            lines = np.column_stack([tokens, rows["learning_rate"][made], lines])
            finishing.append(self.curves[run].start_write("train", first, lines))
            self.steps[run] = first + len(made)
            losses += [lines[-1, 2]] if np.isfinite(lines[-1, 2]) else []
        for finish in finishing:
            finish()
        per_tick = self.pack.members[live[0].run].microbatch * self.pack.sequence_length if live else 0
        last = max((member.timeline.ticks for member in live), default=start + count)
        loss = float(np.mean(losses)) if losses else float("nan")
        self.report(Progress(start + count, last, len(live), count * per_tick * len(live), loss))

    def evaluate(self, tick: int) -> None:
        """Evaluates the members that are due, and lets go of those that are finished or diverged."""
        due = {member.run for member in self.pack.live if tick in member.evaluation_ticks}
        rows = self.pack.evaluate(due)
        self.write_statistics({run: 1 + self.pack.members[run].evaluation_ticks[tick] for run in due})
        diverged = dict(zip(self.pack.slots, np.asarray(self.pack.state.diverged).tolist()))
        gone = set()
        for run in due:
            member = self.pack.members[run]
            self.curves[run].write("evaluations", member.evaluation_ticks[tick], rows[run])
            if diverged[run] or tick == member.timeline.ticks:
                self.finish(member, dict(zip(EVALUATIONS, rows[run].tolist())), diverged[run])
                gone.add(run)
        if gone:
            self.pack.drop(gone)

    def write_statistics(self, places: dict[str, int]) -> None:
        """The statistics of these runs, at the rows that `places` says, where the config asks for them."""
        if self.pack.cfg.evaluation.statistics:
            for run, row in self.pack.statistics(set(places)).items():
                self.curves[run].write("statistics", places[run], row)

    def finish(self, member: Member, last: dict[str, float], diverged: int) -> None:
        """The run's weights, then its record: a run with a record is whole."""
        leaves = jax.tree_util.tree_flatten_with_path(self.pack.weights(member.run))[0]
        arrays = {"/".join(names(path)): np.asarray(leaf) for path, leaf in leaves}
        write_npz(self.store.run_directory(member.run) / "weights.npz", arrays)
        sequences = member.sequences(diverged or member.timeline.ticks)
        steps = -(-diverged // member.accumulation) if diverged else int(last["step"])
        held = self.pack.corpus.sequences("train", self.pack.sequence_length)
        per_token = self.pack.corpus.bytes_per_token
        number = lambda x: x if np.isfinite(x) else None  # noqa: E731
        record = {
            "status": "diverged" if diverged else "finished",
            "diverged_tick": diverged or None,
            "steps": steps,
            "tokens": steps * member.cfg.run.batch_tokens,
            "microbatch_tokens": microbatch_tokens(member.cfg),
            "sequences": sequences,
            "epochs": sequences / held,
            "loss": number(last["loss"]),
            "bits_per_byte": number(last["loss"] / np.log(2) / per_token) if per_token else None,
            "parameters": counts.parameters(member.cfg.model),
            "flops_per_token": counts.flops_per_token(member.cfg.model),
        }
        self.store.write_record(member.run, record)

    def save_if_due(self) -> None:
        every, seconds = self.options.checkpoint_ticks, self.options.checkpoint_seconds
        by_tick = every and self.pack.tick // every > self.saved_tick // every
        by_time = seconds and time.monotonic() - self.saved_at >= seconds and not self.checkpointer.busy
        if self.pack.live and (by_tick or by_time):
            self.save()

    def save(self) -> None:
        self.drain()
        self.checkpointer.save(self.pack.tick, self.pack.state, {**self.meta, **self.pack.place})
        self.saved_at, self.saved_tick = time.monotonic(), self.pack.tick


def _evaluated(member: Member, tick: int) -> dict[str, int]:
    """How many rows evaluations have written by a tick, by the name of the curve."""
    rows = sum(due <= tick for due in member.evaluation_ticks)
    return {"evaluations": rows} | ({"statistics": 1 + rows} if member.cfg.evaluation.statistics else {})


def layout(member: Member) -> dict[str, Any]:
    """Rows and columns of a run's curves."""
    evaluations = len(member.evaluation_ticks)
    curves = {
        "train": {"rows": member.timeline.steps, "fields": list(TRAIN), "dtype": "float64"},
        "evaluations": {"rows": evaluations, "fields": list(EVALUATIONS), "dtype": "float64"},
    }
    if member.cfg.evaluation.statistics:
        fields = list(statistics.columns(models.build(member.cfg.model)))
        curves["statistics"] = {"rows": 1 + evaluations, "fields": fields, "dtype": "float64"}
    return curves
