"""What a sweep leaves on disk, by run: config, record, curves, and a lock that says who works on it.

    ROOT/cache/                          token caches
    ROOT/runs/RUN/config.json            the resolved config
    ROOT/runs/RUN/record.json            written once, when the run has finished, diverged or failed
    ROOT/runs/RUN/curves/                two TensorStore arrays, one row per step and one per evaluation
    ROOT/runs/RUN/lock                   held (flock) by the process that trains the run
    ROOT/packs/PACK/                     checkpoints
    ROOT/sweeps/EXPERIMENT/SCALE/        results table, findings, figure

Everything is whole or absent, and a flipped bit in any of it is found: JSON documents and tables carry the digest of
themselves, chunks of curves their crc32c. A run is in no way tied to the pack or the sweep that trained it.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import io
import json
import os
import re
import resource
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab.errors import HeldError, ResultsError, UserError
from lab.files import full_disk_in_one_line, one_line, seal, unseal, write_beside

CHUNK_ROWS = 1024
_TABLE_SEAL = re.compile(rb"windtunnel-sha256:([0-9a-f]{64})")


# Documents


def write_json(path: Path, content: Any) -> None:
    """Write `content` (JSON-serialisable) with its digest, beside and renamed."""
    write_beside(Path(path), seal(content))


def read_json(path: Path) -> Any:
    """What `write_json` wrote; ResultsError when it is missing or damaged."""
    try:
        return unseal(Path(path).read_bytes())
    except FileNotFoundError:
        raise ResultsError(f"{path} is missing: run the sweep that writes it first") from None
    except (ValueError, OSError) as error:
        raise ResultsError(f"{path} is damaged ({one_line(error)}): remove it and run again") from None


# Tables


def write_table(path: Path, table) -> None:
    """Write a pandas DataFrame as parquet, beside and renamed, with the sha256 of the file in its own metadata."""
    import pyarrow
    import pyarrow.parquet

    arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
    blank = b"windtunnel-sha256:" + b"0" * 64
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"seal": blank})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(arrow, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest().encode()
    write_beside(Path(path), content.replace(blank, b"windtunnel-sha256:" + digest))


def read_table(path: Path):
    """The DataFrame that `write_table` wrote; ResultsError when it is missing or any bit of it has changed."""
    import pandas

    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise ResultsError(f"no results table at {path}: `lab run` the experiment first, or give its --root") from None
    seals = _TABLE_SEAL.findall(content)
    blank = _TABLE_SEAL.sub(b"windtunnel-sha256:" + b"0" * 64, content)
    if len(seals) != 1 or hashlib.sha256(blank).hexdigest().encode() != seals[0]:
        raise ResultsError(f"results table {path} is damaged (its sha256 differs): remove it and run again")
    return pandas.read_parquet(io.BytesIO(content), engine="pyarrow")


# Curves


@dataclass(frozen=True)
class Curves:
    """The curves of one run: rows of `fields`, row i of "train" being step i + 1, of "evaluations" evaluation i.

    Writing a row again puts the same row in the same place, so that metrics are exactly-once across restarts.
    """

    path: Path
    arrays: dict[str, Any]
    fields: dict[str, tuple[str, ...]]

    def write(self, name: str, first_row: int, rows: np.ndarray) -> None:
        """Put rows [n, fields] of array `name` at first_row, …; UserError when the disk is full."""
        self.start_write(name, first_row, rows)()

    def start_write(self, name: str, first_row: int, rows: np.ndarray):
        """As `write`, but under way: call what is returned to wait for it. Lets the writes of many runs overlap."""
        array = self.arrays[name]
        rows = np.array(rows, array.dtype.numpy_dtype, ndmin=2)
        if rows.shape[1] != array.shape[1] or not 0 <= first_row <= first_row + len(rows) <= array.shape[0]:
            raise ValueError(f"rows {rows.shape} at {first_row} do not fit {name} {array.shape} of {self.path}")
        future = array[first_row : first_row + len(rows)].write(rows)

        def finish() -> None:
            with self._errors_in_one_line():
                future.result()

        return finish

    def forget(self, name: str, first_row: int) -> None:
        """Blank the rows from first_row on: those of a history that is not to be repeated."""
        with self._errors_in_one_line():
            self.arrays[name][first_row:].write(np.nan).result()

    def read(self, name: str):
        """DataFrame of the rows written so far, indexed by their row number; ResultsError when a chunk is damaged."""
        import pandas

        with self._errors_in_one_line():
            values = self.arrays[name].read().result()
        written = np.flatnonzero(~np.isnan(values).all(axis=1))
        return pandas.DataFrame(values[written], index=written, columns=list(self.fields[name]))

    @contextlib.contextmanager
    def _errors_in_one_line(self) -> Iterator[None]:
        try:
            with full_disk_in_one_line(self.path):
                yield
        except UserError:
            raise
        except Exception as error:
            advice = "remove the directory of the run and run again"
            raise ResultsError(f"curves {self.path} are damaged ({one_line(error)}): {advice}") from error


def _create_curves(path: Path, layout: dict[str, dict]) -> None:
    """Replace what is there by empty arrays of `layout` (see `RunStore.curves`); curves.json seals them, last."""
    shutil.rmtree(path, ignore_errors=True)
    digests = {}
    for name, wanted in layout.items():
        spec = _spec(path / name) | {
            "metadata": {
                "shape": [wanted["rows"], len(wanted["fields"])],
                "data_type": wanted["dtype"],
                "fill_value": "NaN",
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [min(CHUNK_ROWS, max(wanted["rows"], 1)), len(wanted["fields"])]},
                },
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            },
        }
        with full_disk_in_one_line(path):
            _tensorstore(spec, create=True)
        digests[name] = hashlib.sha256((path / name / "zarr.json").read_bytes()).hexdigest()
    write_json(path / "curves.json", {"layout": layout, "zarr_sha256": digests})


def _open_curves(path: Path) -> Curves:
    described = read_json(path / "curves.json")
    arrays = {}
    for name in described["layout"]:
        metadata = path / name / "zarr.json"
        found = hashlib.sha256(metadata.read_bytes()).hexdigest() if metadata.is_file() else "no file"
        if found != described["zarr_sha256"][name]:
            raise ResultsError(f"{metadata} is damaged or missing: remove the directory of the run and run again")
        arrays[name] = _tensorstore(_spec(path / name))
    return Curves(path, arrays, {name: tuple(wanted["fields"]) for name, wanted in described["layout"].items()})


def _spec(path: Path) -> dict:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}


def _tensorstore(spec: dict, **options):
    """Chunks are checked whenever they are read; nothing is cached, and a crash of the machine is left to crc32c."""
    import tensorstore

    context = tensorstore.Context({"file_io_sync": False, "cache_pool": {"total_bytes_limit": 0}})
    return tensorstore.open(spec, open=True, context=context, **options).result()


# Runs


@dataclass(frozen=True)
class RunStore:
    """All state of sweeps under one root."""

    root: Path

    @property
    def cache(self) -> Path:
        return Path(self.root) / "cache"

    def run_directory(self, run_id: str) -> Path:
        return Path(self.root) / "runs" / run_id

    def pack_directory(self, run_ids: Iterable[str]) -> Path:
        """Where a pack of these runs keeps its checkpoints; the name is a digest of its members in their order."""
        return Path(self.root) / "packs" / hashlib.sha256("\n".join(run_ids).encode()).hexdigest()[:16]

    def sweep_directory(self, experiment: str, scale: str) -> Path:
        return Path(self.root) / "sweeps" / experiment / scale

    def write_config(self, run_id: str, config: dict) -> None:
        write_json(self.run_directory(run_id) / "config.json", config)

    def read_config(self, run_id: str) -> dict | None:
        """None when the run has never been started."""
        return self._document(run_id, "config.json")

    def write_record(self, run_id: str, record: dict) -> None:
        """Write the run's outcome, once; writing the same again is allowed. ResultsError when another is there."""
        present = self.read_record(run_id)
        if present is not None and seal(present) != seal(record):
            raise ResultsError(f"run {run_id} already has a record ({present.get('status')}); it is written only once")
        if present is None:
            write_json(self.run_directory(run_id) / "record.json", record)

    def read_record(self, run_id: str) -> dict | None:
        """None when the run has not ended."""
        return self._document(run_id, "record.json")

    def clear_failed(self, run_id: str) -> None:
        """Remove the record of a failed run, so that it is tried again; ResultsError for any other record."""
        record = self.read_record(run_id)
        if record is not None and record.get("status") != "failed":
            raise ResultsError(f"run {run_id} is {record.get('status')}, not failed: it is not tried again")
        (self.run_directory(run_id) / "record.json").unlink(missing_ok=True)

    def curves(self, run_id: str, layout: dict[str, dict] | None = None) -> Curves:
        """Open the run's curves; with a `layout`, create them first when absent or of another layout.

        layout: {"train": {"rows": steps, "fields": [names], "dtype": "float64"}, "evaluations": {…}}.
        """
        path = self.run_directory(run_id) / "curves"
        if layout is not None:
            present = read_json(path / "curves.json")["layout"] if (path / "curves.json").exists() else None
            if present != layout:
                _create_curves(path, layout)
        return _open_curves(path)

    @contextlib.contextmanager
    def hold(self, run_ids: Iterable[str]) -> Iterator[None]:
        """Hold these runs while the context lasts; HeldError says who holds one of them. A killed holder lets go."""
        run_ids = sorted(set(run_ids))
        open_files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if open_files < len(run_ids) + 512 <= most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(run_ids) + 512, most))
        with contextlib.ExitStack() as held:
            for run_id in run_ids:
                held.enter_context(_lock(self.run_directory(run_id) / "lock", run_id))
            yield

    def _document(self, run_id: str, name: str) -> dict | None:
        path = self.run_directory(run_id) / name
        return read_json(path) if path.exists() else None


@contextlib.contextmanager
def _lock(path: Path, run_id: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = _holder(file)
            raise HeldError(
                f"run {run_id} is held by process {held['pid']} on {held['host']} since {held['since']}: "
                "wait for it, stop it, or use another --root"
            ) from None
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _holder(file) -> dict:
    """What a holder wrote of itself; unknown in the moment between its lock and its writing."""
    file.seek(0)
    try:
        return json.loads(file.read())
    except ValueError:
        return {"pid": "unknown", "host": "unknown", "since": "just now"}
