"""Trains what a sweep still lacks, pack by pack, and gathers what it has.

A run that has a record is never trained again, whichever experiment or pack it ran in. A pack that was interrupted
goes on as the pack it was; runs that are new form packs of their own.
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lab.config import differences, flatten, meaning, microbatch_tokens
from lab.errors import ResultsError, UserError
from lab.files import write_beside
from lab.models import counts
from lab.sweep.history import log
from lab.sweep.plan import Run, make_packs, whole_tokens
from lab.train.store import RunStore, read_json, write_json


class Display(Protocol):
    """What is told of a sweep while it runs."""

    def add(self, tokens: int) -> None: ...
    def say(self, line: str) -> None: ...
    def warn(self, line: str) -> None: ...
    def pack(self, index: int, packs: int, runs: Sequence[Run], tick: int) -> None: ...
    def progress(self, progress: Any) -> None: ...


def missing(store: RunStore, runs: Sequence[Run], retry_failed: bool = False) -> list[Run]:
    """Runs that have not ended; with `retry_failed`, failed ones are among them."""
    records = [store.read_record(run.id) for run in runs]
    return [
        run
        for run, record in zip(runs, records)
        if record is None or (retry_failed and record["status"] == "failed")
    ]


def train_missing(
    store: RunStore, runs: Sequence[Run], corpus: Any, display: Display, retry_failed: bool = False
) -> None:
    """Trains every run that has no record; with `retry_failed`, those again whose record says that they failed.

    Raises:
      HeldError: where another process trains one of them.
      UserError: for what the user can mend (full disk, mesh, damaged data); everything saved so far stays.
      Interrupted: after SIGINT or SIGTERM, with the pack's state saved.
    """
    lacking = missing(store, runs, retry_failed)
    with store.hold([run.id for run in lacking]):
        lacking = missing(store, lacking, retry_failed)  # another process may have ended some before we held them
        for run in lacking:
            length = run.cfg.model.sequence_length
            corpus.require("train", length, run.cfg.run.batch_tokens // length)
            corpus.require("validation", length, 1)
            store.clear_failed(run.id)
        packs = resumable(store, lacking, display)
        seated = {run.id for pack, _ in packs for run in pack}
        fresh = make_packs([run for run in lacking if run.id not in seated])
        packs += [(pack, new_directory(store, pack)) for pack in fresh]
        for index, (pack, directory) in enumerate(packs):
            train_pack(store, pack, directory, corpus, display, (index, len(packs)))


def resumable(store: RunStore, lacking: Sequence[Run], display: Display) -> list[tuple[list[Run], Path]]:
    """Interrupted packs all of whose unfinished members are among the runs that are lacking, and where they lie."""
    wanted = {run.id: run for run in lacking}
    packs: list[tuple[list[Run], Path]] = []
    for path in sorted((Path(store.root) / "packs").glob("*/members.json")):
        if not (path.parent / "checkpoints").exists():
            continue
        try:
            members = read_json(path)
        except ResultsError as error:
            display.warn(f"{error}; its runs start again")
            continue
        unfinished = [run for run in members["runs"] if run in wanted]
        seated = {run.id for pack, _ in packs for run in pack}
        if not unfinished or seated & set(unfinished):
            continue
        if any(run not in wanted and store.read_record(run) is None for run in members["runs"]):
            continue
        micro = microbatch_tokens(wanted[unfinished[0]].cfg)
        if micro != members["microbatch_tokens"]:
            display.warn(
                f"an interrupted pack of {len(unfinished)} runs used micro-batches of "
                f"{members['microbatch_tokens']} tokens, this sweep asks for {micro}: the runs start again"
            )
            continue
        packs.append(([wanted[run] for run in unfinished], path.parent))
    return packs


def new_directory(store: RunStore, runs: Sequence[Run]) -> Path:
    """Where a pack that starts from nothing lives; checkpoints that are not to be taken up are removed there."""
    directory = store.pack_directory(sorted(run.id for run in runs))
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    members = {"runs": [run.id for run in runs], "microbatch_tokens": microbatch_tokens(runs[0].cfg)}
    write_json(directory / "members.json", members)
    return directory


def train_pack(
    store: RunStore,
    runs: Sequence[Run],
    directory: Path,
    corpus: Any,
    display: Display,
    place: tuple[int, int] = (0, 1),
) -> None:
    """Trains one pack to its end, from its newest checkpoint where it has one."""
    from lab.train import provenance
    from lab.train.checkpoint import Checkpointer
    from lab.train.loop import Interrupted, rows_are_there, train
    from lab.train.pack import Member, Pack

    cfg = runs[0].cfg
    for run in runs:
        store.write_config(run.id, {"config": run.cfg.to_dict(), "meaning": meaning(run.cfg), "corpus": corpus.digest})
    meta = {"code": provenance.code(), "hardware": provenance.hardware(), "execution": flatten(cfg.execution)}
    began = time.monotonic()
    try:
        pack = Pack([Member.of(run.id, run.cfg) for run in runs], corpus)
        options = cfg.execution
        with Checkpointer(directory / "checkpoints", options.checkpoint_keep, display.warn) as checkpointer:
            saved = pack.resume(checkpointer)
            if saved and not rows_are_there(store, pack):
                display.warn("curves or records of an interrupted pack are gone: its runs start again")
                pack, saved = Pack([Member.of(run.id, run.cfg) for run in runs], corpus), None
            changes = differences(flatten({k: saved[k] for k in meta}), flatten(meta)) if saved else []
            if saved is None:
                pack.start()
            else:
                display.say(f"resumed {len(pack.live)} runs at tick {pack.tick}")
            for line in changes:
                display.warn(f"resumed under a change: {line}")
            first = pack.tick
            log(directory, {"event": "resume" if saved else "start", "tick": first, "changes": changes, **meta})
            display.pack(*place, runs, first)
            try:
                train(pack, store, checkpointer, meta, display.progress)
            finally:
                event = "stop" if pack.live else "end"
                spent = {"flops": flops(runs, first, pack.tick), "seconds": time.monotonic() - began}
                log(directory, {"event": event, "tick": pack.tick, **spent})
    except (UserError, Interrupted, KeyboardInterrupt):
        raise
    except Exception as error:  # one broken pack must not end the sweep; its runs' records say what broke
        write_beside(directory / "error.txt", traceback.format_exc().encode())
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        display.warn(f"a pack of {len(runs)} runs failed: {text} (all of it in {directory / 'error.txt'})")
        for run in missing(store, runs):
            store.write_record(run.id, {"status": "failed", "error": text})
    finally:
        if not missing(store, runs, retry_failed=True):
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def flops(runs: Sequence[Run], first: int, last: int) -> float:
    """FLOPs of training these runs from one tick to another (a run that diverged is counted whole)."""
    per_token = counts.flops_per_token(runs[0].cfg.model)["with_attention"]
    micro = microbatch_tokens(runs[0].cfg)
    ends = [whole_tokens(run.cfg) for run in runs]
    return per_token * sum(min(end, last * micro) - min(end, first * micro) for end in ends)


def export(store: RunStore, name: str, out: Path) -> dict[str, Any]:
    """Copies the weights of a run that has ended, or takes those of a running one from its pack's newest checkpoint.

    Raises:
      ResultsError: where no run, or more than one, begins with `name`, or it has no weights yet.
    """
    from lab.train import checkpoint

    found = sorted(path.name for path in (Path(store.root) / "runs").glob(f"{name}*") if path.is_dir())
    if len(found) != 1:
        raise ResultsError(f"run {name!r}: found {', '.join(found[:5]) or 'none'} under {store.root}, expected one")
    run = found[0]
    weights, record = store.run_directory(run) / "weights.npz", store.read_record(run)
    if weights.exists() and record:
        length = store.read_config(run)["config"]["model"]["sequence_length"]
        write_beside(out, weights.read_bytes())
        return {"run": run, "tick": record["sequences"] * length // record["microbatch_tokens"], "out": str(out)}
    for path in (Path(store.root) / "packs").glob("*/checkpoints"):
        newest = checkpoint.latest(path)
        if newest and run in newest[1]["slots"]:
            tick, place = newest
            checkpoint.export(path, place["slots"].index(run), out, tick, ("weights/", "average/"))
            return {"run": run, "tick": tick, "out": str(out)}
    raise ResultsError(f"run {run} has no weights yet: it has not reached a checkpoint")


def table(store: RunStore, runs: Sequence[Run]) -> Any:
    """One row per run, in the order of the plan: config by dotted key, record, status `missing` if it has none."""
    import pandas

    rows = []
    for run in runs:
        record = store.read_record(run.id) or {"status": "missing"}
        cfg = {key: value for key, value in flatten(run.cfg).items() if not key.startswith("execution.")}
        rows.append({"run": run.id, **cfg, **flatten(record)})
    return pandas.DataFrame(rows)
