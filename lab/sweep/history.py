"""What happened to packs: a line of JSON for each start, resume, stop and end, beside the pack's checkpoints."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.errors import ResultsError
from lab.files import full_disk_in_one_line
from lab.sweep.plan import Run
from lab.train.store import RunStore, read_json


def log(directory: Path, event: dict[str, Any]) -> None:
    """Appends an event to the history of the pack in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with full_disk_in_one_line(directory), open(directory / "history.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"time": now, **event}) + "\n")


def events(directory: Path) -> Iterator[dict[str, Any]]:
    """The events of a pack, oldest first; a line that a crash tore is passed over."""
    path = directory / "history.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def events_of(store: RunStore, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The events of every pack that had one of these runs, oldest first."""
    wanted, found = {run.id for run in runs}, []
    for path in (Path(store.root) / "packs").glob("*/members.json"):
        try:
            members = read_json(path)["runs"]
        except ResultsError:
            continue
        if wanted & set(members):
            found += events(path.parent)
    return sorted(found, key=lambda event: event["time"])


def provenance(store: RunStore, runs: Sequence[Run]) -> dict[str, Any]:
    """What trained these runs: `code` and `hardware` of the last start or resume, how many others there were
    (`other_settings`), and the wall-clock `seconds` of their packs, compilation and evaluation included."""
    found = events_of(store, runs)
    begun = [{"code": event["code"], "hardware": event["hardware"]} for event in found if "code" in event]
    unique = {json.dumps(setting, sort_keys=True) for setting in begun}
    return {
        **(begun[-1] if begun else {"code": None, "hardware": None}),
        "other_settings": max(0, len(unique) - 1),
        "seconds": sum(event.get("seconds", 0.0) for event in found),
    }
