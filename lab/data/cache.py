"""The token cache: flat tokens and document offsets in TensorStore, and a manifest with a checksum of every file.

    NAME-KEY/
      manifest.json          written last; names every other file with its size and SHA-256, and carries its own SHA-256
      tokens.train/          zarr3, sharding_indexed, crc32c: uint8, uint16 or uint32 [tokens], each document with EOS
      offsets.train/         int64 [documents + 1]: document d is tokens[offsets[d]:offsets[d + 1]]
      tokens.validation/  offsets.validation/
      vocabulary.model       where the vocabulary is SentencePiece's

A cache is built in a directory beside and renamed, so it is whole or absent. Nothing here needs TensorFlow.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorstore as ts

from lab.data.corpora import Request, fingerprint
from lab.data.documents import SPLITS, canonical
from lab.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
SHARD = 1 << 24
CHUNK = 1 << 14


def location(cache_root: Path, wanted: Request, key: str) -> Path:
    """Where the cache of a request with this key is, or will be, under `cache_root`."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(wanted.corpus).name).strip("-")[:40]
    return Path(cache_root) / f"{name}-{key[:16]}"


def key_of(wanted: Request) -> str:
    """Names the cache of a request: what is asked for, and the state of its source (see `fingerprint`)."""
    return hashlib.sha256(f"{FORMAT}:{fingerprint(wanted)}".encode()).hexdigest()


def spec(path: Path) -> dict:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}


def _codecs() -> list[dict]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    inner = [little, {"name": "zstd", "configuration": {"level": 9}}, {"name": "crc32c"}]
    sharding = {"chunk_shape": [CHUNK], "codecs": inner, "index_codecs": [little, {"name": "crc32c"}]}
    return [{"name": "sharding_indexed", "configuration": sharding}]


class _Array:
    """A one-dimensional zarr3 array that grows at its end, a shard at a time."""

    def __init__(self, path: Path, dtype: str) -> None:
        grid = {"name": "regular", "configuration": {"chunk_shape": [SHARD]}}
        metadata = {"shape": [0], "data_type": dtype, "chunk_grid": grid, "codecs": _codecs()}
        self._store = ts.open({**spec(path), "metadata": metadata, "create": True}).result()
        self._dtype = dtype
        self._waiting: list[np.ndarray] = []
        self._waiting_size = 0
        self.written = 0

    def append(self, values: np.ndarray) -> None:
        self._waiting.append(values.astype(self._dtype))
        self._waiting_size += len(values)
        while self._waiting_size >= SHARD:
            self._write(SHARD)

    def _write(self, size: int) -> None:
        values = np.concatenate(self._waiting)
        start, end = self.written, self.written + size
        self._store = self._store.resize(exclusive_max=[end], expand_only=True).result()
        self._store[start:end].write(values[:size]).result()
        self._waiting, self._waiting_size, self.written = [values[size:]], len(values) - size, end

    def finish(self) -> None:
        if self._waiting_size:
            self._write(self._waiting_size)


class Writer:
    """Appends documents to the splits of a cache under construction in `directory`."""

    def __init__(self, directory: Path, vocabulary_size: int) -> None:
        dtype = next(f"uint{bits}" for bits in (8, 16, 32) if vocabulary_size <= 1 << bits)
        self.directory = directory
        self.dtype = dtype
        self._tokens = {split: _Array(directory / f"tokens.{split}", dtype) for split in SPLITS}
        self._offsets = {split: _Array(directory / f"offsets.{split}", "int64") for split in SPLITS}
        self._ends = dict.fromkeys(SPLITS, 0)
        self._documents = dict.fromkeys(SPLITS, 0)
        for split in SPLITS:
            self._offsets[split].append(np.zeros(1, np.int64))

    def append(self, split: str, tokens: np.ndarray, lengths: np.ndarray | None = None) -> None:
        """Adds one document, or as many as there are `lengths` (they sum to the tokens). Tokens include each EOS."""
        lengths = np.array([len(tokens)]) if lengths is None else lengths
        self._tokens[split].append(tokens)
        self._offsets[split].append(self._ends[split] + np.cumsum(lengths))
        self._ends[split] += len(tokens)
        self._documents[split] += len(lengths)

    def finish(self, manifest: dict) -> None:
        """Writes what waits, then the manifest: `manifest`'s fields, sizes of the splits, and every file's checksum."""
        for array in (*self._tokens.values(), *self._offsets.values()):
            array.finish()
        splits = {split: {"tokens": self._ends[split], "documents": self._documents[split]} for split in SPLITS}
        found = sorted(path for path in self.directory.rglob("*") if path.is_file())
        files = {
            path.relative_to(self.directory).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in found
        }
        body = {**manifest, "format": FORMAT, "dtype": self.dtype, "splits": splits, "files": files}
        with open(self.directory / MANIFEST, "wb") as file:
            file.write(_sealed(body))
            file.flush()
            os.fsync(file.fileno())


def _sealed(body: dict) -> bytes:
    return canonical({**body, "sha256": hashlib.sha256(canonical(body)).hexdigest()})


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(path: Path, write: Callable[[Path], None]) -> None:
    """Makes the cache `path` by `write(directory)`, unless it is there; one builder at a time, the others wait for it.

    Whatever interrupts it leaves `path` absent, and what a killed builder left beside is swept away by the next.
    Raises DataError on a full disk.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent / f".{path.name}.lock"):
            if (path / MANIFEST).exists():
                return
            for left in path.parent.glob(f".{path.name}.building-*"):
                shutil.rmtree(left, ignore_errors=True)
            directory = Path(tempfile.mkdtemp(prefix=f".{path.name}.building-", dir=path.parent))
            try:
                write(directory)
                directory.chmod(0o755)
                directory.rename(path)
            finally:
                shutil.rmtree(directory, ignore_errors=True)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            raise DataError(
                f"the disk that holds {path.parent} is full: the token cache was not written; free some space or "
                "choose another directory with --root"
            ) from None
        raise


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_manifest(path: Path) -> dict:
    """The manifest of the cache at `path`, checked against its own checksum, its files' names and their sizes."""
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise DataError(f"no token cache at {path}: a directory with {MANIFEST} was expected; prepare the corpus first")
    content = (path / MANIFEST).read_bytes()
    try:
        body = json.loads(content)
        body.pop("sha256")
        whole = _sealed(body) == content
    except (ValueError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise damaged(path, MANIFEST, "its checksum does not match")
    if body["format"] != FORMAT:
        raise DataError(
            f"token cache {path} has format {body['format']}, expected {FORMAT}: delete it and prepare again"
        )
    for name, expected in body["files"].items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != expected["bytes"]:
            size = "missing" if found is None else f"{found} bytes"
            raise damaged(path, name, f"{size}, {expected['bytes']} expected")
    return body


def damaged(path: Path, name: str, why: str) -> DataError:
    return DataError(f"token cache {path}: {name} is damaged ({why}); delete that directory and prepare again")


def check_files(path: Path, manifest: dict, prefix: str = "") -> None:
    """Compares the SHA-256 of files whose names start with `prefix`. Raises DataError for the first that differs."""
    for name, expected in manifest["files"].items():
        if name.startswith(prefix) and _sha256(Path(path) / name) != expected["sha256"]:
            raise damaged(path, name, "its checksum does not match")


def verify(path: Path) -> dict:
    """The manifest of the cache at `path`, after every file of it has been compared with its checksum."""
    manifest = read_manifest(path)
    check_files(path, manifest)
    return manifest
