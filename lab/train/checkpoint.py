"""Checkpoints of a pack: asynchronous Orbax saves, sealed by digests of their own, whole or ignored.

    DIRECTORY/tick-000000000120/state/          Orbax (OCDBT, zarr3): one array per leaf, named by its path in the state
    DIRECTORY/tick-000000000120/manifest.json   written last: meta, leaves, sha256 and size of every file

A checkpoint is whole if and only if its manifest is there, is sealed, and every file has its digest: Orbax itself
restores a flipped bit silently. A process killed at any moment leaves at worst a directory without a manifest, which
`restore` passes over and the next `save` removes.

A state is any pytree of arrays (typed PRNG keys included). Structure is matched by path and not by type, so that
optax tuples, frozen dataclasses and dicts all come back in the types of the target.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab.errors import CheckpointError
from lab.files import full_disk_in_one_line, one_line, seal, unseal, write_beside, write_npz

MANIFEST = "manifest.json"
_LOGGER = logging.getLogger(__name__)
_NAME = re.compile(r"tick-(\d{12})(?:-(\d+))?")


# One checkpoint


@dataclass(frozen=True, order=True)
class _Entry:
    """A checkpoint directory. `attempt` counts saves of the same tick, so that a repeated one replaces no whole one."""

    tick: int
    attempt: int
    path: Path

    def manifest(self) -> dict:
        """Keys: tick, meta, leaves, files. CheckpointError when there is none or it is damaged."""
        try:
            return unseal((self.path / MANIFEST).read_bytes())
        except FileNotFoundError:
            raise CheckpointError(f"checkpoint {self.path} is half-written (it has no manifest)") from None
        except (ValueError, OSError) as error:
            raise CheckpointError(f"checkpoint {self.path} has a damaged manifest ({one_line(error)})") from None

    def verify(self) -> dict:
        """The manifest, once every file has been read and found as it was written; CheckpointError names the file."""
        manifest = self.manifest()
        for name, (size, digest) in manifest["files"].items():
            file = self.path / name
            if not file.is_file():
                raise CheckpointError(f"checkpoint {self.path} lacks its file {name}")
            found = file.stat().st_size
            if found != size:
                raise CheckpointError(f"checkpoint {self.path}: {name} has {found} bytes, expected {size}")
            if _sha256(file) != digest:
                raise CheckpointError(f"checkpoint {self.path}: {name} is damaged (its sha256 differs)")
        return manifest

    def remove(self) -> None:
        """Manifest first, so that a removal cut short leaves nothing that looks whole."""
        (self.path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


@contextlib.contextmanager
def _removed_on_error(entry: _Entry, writer) -> Iterator[None]:
    """Stop the writer and leave nothing of the checkpoint when it cannot be finished."""
    with full_disk_in_one_line(entry.path):
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                writer.close()
            entry.remove()
            raise


def _entries(directory: Path) -> list[_Entry]:
    """Whole or not, newest first."""
    if not directory.is_dir():
        return []
    matches = [(_NAME.fullmatch(path.name), path) for path in directory.iterdir()]
    return sorted((_Entry(int(m[1]), int(m[2] or 0), path) for m, path in matches if m), reverse=True)


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# Leaves


def _named_leaves(state: Any) -> tuple[dict[str, Any], Any]:
    """({path: leaf}, treedef); paths as "optimizer/0/mu/embedding"."""
    import jax

    pairs, treedef = jax.tree_util.tree_flatten_with_path(state)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    if len(leaves) != len(pairs):
        raise ValueError("two leaves of the state have the same path")
    return leaves, treedef


def _is_key(leaf: Any) -> bool:
    import jax

    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(leaf: Any) -> Any:
    """What Orbax is given: key data for a typed key, a copy of what the caller could still write to, else the array."""
    import jax

    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.array(leaf)


def _description(leaf: Any) -> dict:
    """What the manifest says of a leaf; a target must agree in shape and dtype."""
    import jax

    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    described = {"shape": list(np.shape(leaf)), "dtype": str(dtype)}
    if isinstance(leaf, jax.Array) and _is_key(leaf):
        described["key_implementation"] = str(jax.random.key_impl(leaf))
    return described


def _check_fits(saved: dict[str, dict], target: dict[str, Any], path: Path) -> None:
    """CheckpointError that names the first leaf in which the checkpoint and the target differ."""
    advice = "it belongs to another config: restore it under the config that wrote it, or use another directory"
    for name in sorted(saved.keys() | target.keys()):
        if name not in saved:
            raise CheckpointError(f"checkpoint {path} has no {name}, expected by this config; {advice}")
        if name not in target:
            raise CheckpointError(f"checkpoint {path} has {name}, which this config does not know; {advice}")
        found, expected = saved[name], _description(target[name])
        if (found["shape"], found["dtype"]) != (expected["shape"], expected["dtype"]):
            raise CheckpointError(
                f"checkpoint {path}: {name} is {found['dtype']}{found['shape']}, expected "
                f"{expected['dtype']}{expected['shape']}; {advice}"
            )


def _orbax():
    """Orbax, without its logging of tracebacks that it also raises: whoever catches an error reports it, once."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(_not_of_orbax)
    return ocp


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _handler():
    return _orbax().PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)


def _read(path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arrays of the Orbax directory, by the restore arguments of each."""
    ocp = _orbax()
    with ocp.Checkpointer(_handler()) as reader:
        wanted = ocp.args.PyTreeRestore(item=dict.fromkeys(arguments, 0), restore_args=arguments)
        return reader.restore(path, args=wanted)


def _read_numpy(entry: _Entry, manifest: dict) -> dict[str, np.ndarray]:
    """Every leaf as numpy, whatever devices wrote it; typed keys as their key data."""
    ocp = _orbax()
    return _read(entry.path / "state", {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in manifest["leaves"]})


def _read_state(entry: _Entry, manifest: dict, target: Any) -> Any:
    """The state in the structure of `target`, each leaf placed by its sharding (numpy where it has none)."""
    import jax

    ocp = _orbax()
    leaves, treedef = _named_leaves(target)

    def argument(leaf):
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        plain = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        stored = jax.eval_shape(jax.random.key_data, plain) if _is_key(leaf) else plain
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=stored.shape, dtype=stored.dtype)

    arrays = _read(entry.path / "state", {name: argument(leaf) for name, leaf in leaves.items()})

    def typed(name, leaf):
        if not _is_key(leaf):
            return arrays[name]
        keys = jax.random.wrap_key_data(arrays[name], impl=manifest["leaves"][name]["key_implementation"])
        sharding = getattr(leaf, "sharding", None)
        return keys if sharding is None else jax.device_put(keys, sharding)

    return jax.tree_util.tree_unflatten(treedef, [typed(name, leaf) for name, leaf in leaves.items()])


# What the trainer uses


def latest(directory: Path) -> tuple[int, dict] | None:
    """(tick, meta) of the newest checkpoint with a sound manifest, its arrays unread; None when there is none."""
    for entry in _entries(Path(directory)):
        try:
            return entry.tick, entry.manifest()["meta"]
        except CheckpointError:
            continue
    return None


class Checkpointer(contextlib.AbstractContextManager):
    """Saves and restores the states of one pack; one writer per directory (the locks of its runs see to that).

    keep: how many of the newest checkpoints stay, at least 1.
    warn: called with one line for each checkpoint passed over.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        warn: Callable[[str], None] = _LOGGER.warning,
    ):
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1")
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._warn = warn
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None
        self._damaged: set[Path] = set()

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def busy(self) -> bool:
        """Whether a save is still under way (another one would wait for it)."""
        return self._pending is not None and not self._pending.done()

    def latest(self) -> int | None:
        """Tick of the newest checkpoint with a sound manifest."""
        newest = latest(self.directory)
        return newest and newest[0]

    def read_meta(self) -> tuple[int, dict] | None:
        """(tick, meta) of that checkpoint; reads one small file."""
        return latest(self.directory)

    def save(self, tick: int, state: Any, meta: dict) -> None:
        """Copy `state` to the host and return; a thread writes it, digests it, seals it and prunes older ones.

        The arrays may be donated as soon as this returns. `meta` is any JSON-serialisable dict. Waits for the save
        before it, and raises what that one met: UserError for a full disk, any other error as it was.
        """
        ocp = _orbax()
        self.wait()
        json.dumps(meta)
        leaves, _ = _named_leaves(state)
        described = {name: _description(leaf) for name, leaf in leaves.items()}
        self._clean()
        entry = self._new_entry(tick)
        writer = ocp.AsyncCheckpointer(_handler())
        with _removed_on_error(entry, writer):
            entry.path.mkdir(parents=True)
            stored = {name: _storable(leaf) for name, leaf in leaves.items()}
            writer.save(entry.path / "state", args=ocp.args.PyTreeSave(stored))
        manifest = {"tick": tick, "meta": meta, "leaves": described}
        self._pending = self._worker.submit(self._finish, writer, entry, manifest)

    def restore(self, target: Any | Callable[[dict], Any]) -> tuple[int, Any, dict] | None:
        """(tick, state, meta) of the newest whole checkpoint, or None when there is none.

        target: pytree of jax.ShapeDtypeStruct with shardings, over any devices, or a function from a checkpoint's meta
        to such a pytree: runs leave a pack, so that an older checkpoint may have a longer run axis than the newest.
        Half-written and damaged checkpoints are passed over, with one `warn` each. CheckpointError when the checkpoint
        does not fit the target.
        """
        self.wait()
        for entry in _entries(self.directory):
            try:
                manifest = entry.verify()
            except CheckpointError as error:
                self._damaged.add(entry.path)
                self._warn(f"{error}; passed over for the one before it")
                continue
            wanted = target(manifest["meta"]) if callable(target) else target
            _check_fits(manifest["leaves"], _named_leaves(wanted)[0], entry.path)
            return entry.tick, _read_state(entry, manifest, wanted), manifest["meta"]
        return None

    def wait(self) -> None:
        """Return when the last save is whole on disk; raise what it met, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait, then release the threads."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def _new_entry(self, tick: int) -> _Entry:
        attempts = [entry.attempt for entry in _entries(self.directory) if entry.tick == tick]
        attempt = max(attempts) + 1 if attempts else 0
        return _Entry(tick, attempt, self.directory / (f"tick-{tick:012d}" + (f"-{attempt}" if attempt else "")))

    def _clean(self) -> None:
        """Remove what unfinished saves left and what `restore` found damaged."""
        for entry in _entries(self.directory):
            if entry.path in self._damaged or not (entry.path / MANIFEST).exists():
                entry.remove()
        self._damaged.clear()

    def _finish(self, writer, entry: _Entry, manifest: dict) -> None:
        """In the worker thread: after Orbax's commit, digest, seal, prune."""
        with _removed_on_error(entry, writer):
            writer.close()
            files = sorted(path for path in entry.path.rglob("*") if path.is_file())
            digests = {str(path.relative_to(entry.path)): [path.stat().st_size, _sha256(path)] for path in files}
            write_beside(entry.path / MANIFEST, seal({**manifest, "files": digests}))
        self._prune(entry)

    def _prune(self, newest: _Entry) -> None:
        """Drop what is older than the newest `keep`, and what lies after the tick just saved: another history's."""
        entries = _entries(self.directory)
        ticks = sorted({entry.tick for entry in entries if entry.tick <= newest.tick}, reverse=True)[: self._keep]
        for entry in entries:
            if entry.tick not in ticks or (entry.tick == newest.tick and entry.attempt != newest.attempt):
                entry.remove()


def export(
    directory: Path, index: int, out: Path, tick: int | None = None, prefixes: tuple[str, ...] = ("",)
) -> tuple[int, dict]:
    """Take run `index` of a pack out of its checkpoint into the npz file `out`; returns (tick, meta).

    Every leaf of the state has a leading run axis. Entries of the npz are the leaves' paths, those that begin with
    one of `prefixes`, without the run axis; types that numpy lacks (bfloat16) are written as float32, typed keys as
    their key data; the entry "meta" is a JSON text. tick: None for the newest whole checkpoint, else exactly that one.
    CheckpointError when there is none, it is damaged, or it has no such run.
    """
    entry, manifest = _chosen(Path(directory).absolute(), tick)
    leaves = manifest["leaves"]
    names = [name for name in leaves if name.startswith(prefixes)]
    if not names:
        raise CheckpointError(f"checkpoint {entry.path} has nothing under {prefixes}; it begins with {min(leaves)}")
    runs = {tuple(leaf["shape"][:1]) for leaf in leaves.values()}
    if len(runs) != 1 or () in runs:
        raise CheckpointError(f"checkpoint {entry.path} is not of a pack: its leaves share no leading run axis")
    (count,) = runs.pop()
    if not 0 <= index < count:
        raise CheckpointError(f"checkpoint {entry.path} holds {count} runs, numbered from 0; found no run {index}")
    arrays = _read_numpy(entry, manifest)
    taken = {name: arrays[name][index] for name in names} | {"meta": np.array(json.dumps(manifest["meta"]))}
    write_npz(Path(out), taken)
    return entry.tick, manifest["meta"]


def _chosen(directory: Path, tick: int | None) -> tuple[_Entry, dict]:
    """The checkpoint of `tick`, or the newest whole one, verified."""
    entries = [entry for entry in _entries(directory) if tick in (None, entry.tick)]
    for entry in entries:
        with contextlib.suppress(CheckpointError):
            return entry, entry.verify()
    if entries:
        entries[0].verify()
    raise CheckpointError(
        f"no checkpoint{'' if tick is None else f' of tick {tick}'} in {directory}; found: "
        + (", ".join(entry.path.name for entry in _entries(directory)) or "none")
    )
