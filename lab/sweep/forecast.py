"""What a sweep will take, before it is run: `lab plan`. Static, but for speeds that this root has measured."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lab.errors import DataError
from lab.models import counts
from lab.sweep.history import events
from lab.sweep.plan import Run, cost, describe_pack, make_packs, whole_tokens
from lab.sweep.reproduce import Study, open_corpus
from lab.sweep.run import Display, missing
from lab.train.store import RunStore

FLOPS_PER_CORE = 3e10  # sustained by packs of small models on one CPU core; used where nothing has been measured
COMPILE_SECONDS = 8.0  # per distinct program on a CPU, with an empty compilation cache


def forecast(study: Study, display: Display) -> dict[str, Any]:
    """The plan of a study as one document.

    A corpus that cannot be had here (`paper` scale on a laptop) leaves the plan without repetition counts and run
    identities, and the plan says so, provided that `model.vocab_size` is given.
    """
    notes = []
    try:
        corpus = open_corpus(study.sweep.base.data, study.store, display)
    except DataError as error:
        if not study.sweep.base.model.vocab_size:
            raise
        notes.append(f"corpus not prepared here ({error})")
        corpus = SimpleNamespace(vocab_size=study.sweep.base.model.vocab_size, digest="unprepared", train_tokens=None)
    runs = study.runs(corpus)
    lacking = missing(study.store, runs)
    document = cost(runs, corpus.train_tokens)
    seconds, basis = time_guess(study.store, lacking)
    return {
        "id": study.experiment.id,
        "scale": study.scale,
        "note": study.sweep.note,
        **document,
        "finished": len(runs) - len(lacking),
        "pack_list": [describe_pack(pack) for pack in make_packs(runs)],
        "seconds": seconds,
        "seconds_from": basis,
        "notes": notes,
    }


def time_guess(store: RunStore, lacking: list[Run]) -> tuple[float | None, str]:
    """Seconds to train the runs that are lacking on this machine's CPU, and what the guess rests on."""
    if not lacking:
        return 0.0, "nothing left to train"
    rates = measured(store)
    cores = os.cpu_count() or 1
    flops = sum(counts.flops_per_token(run.cfg.model)["with_attention"] * whole_tokens(run.cfg) for run in lacking)
    if rates:
        return flops / rates, "FLOPs per second of packs trained earlier under this root"
    seconds = flops / (FLOPS_PER_CORE * cores) + COMPILE_SECONDS * len(make_packs(lacking))
    return seconds, f"static guess for {cores} CPU cores at {FLOPS_PER_CORE:.0e} FLOPs per second each"


def measured(store: RunStore) -> float | None:
    """FLOPs per second over the packs that ended under this root, compilation and evaluation in the time."""
    flops = seconds = 0.0
    for path in (Path(store.root) / "packs").glob("*/history.jsonl"):
        for event in events(path.parent):
            if event["event"] == "end":
                flops += event["flops"]
                seconds += event["seconds"]
    return flops / seconds if seconds > 60 else None
