"""Sequences of a token cache as a function of their index. Needs numpy and TensorStore only.

Sequence s of a split, at sequence length T, is the window of T + 1 tokens that starts at s * T of the flat tokens:
T predictions, the last token of one window being the first input of the next. So one cache serves every T, and each
token but the very first is predicted once an epoch. What a run has seen depends on how many sequences it has consumed,
and on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorstore as ts

from lab.data.cache import check_files, damaged, read_manifest, spec
from lab.data.order import order
from lab.data.vocabulary import padded
from lab.errors import DataError

# Token arrays up to this size are read into memory whole, once, after their checksums are compared.
MEMORY_BYTES = 512 << 20


@dataclass(frozen=True)
class Corpus:
    """An open token cache: its directory, its manifest, and the size up to which a split is held in memory."""

    path: Path
    manifest: dict
    memory_bytes: int = MEMORY_BYTES

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def digest(self) -> str:
        """Identity (hex): contents of both splits and vocabulary."""
        return self.manifest["digest"]

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, padded to a multiple of 8."""
        return padded(self.manifest["vocabulary"]["size"])

    @property
    def train_tokens(self) -> int:
        return self.manifest["splits"]["train"]["tokens"]

    @property
    def validation_tokens(self) -> int:
        return self.manifest["splits"]["validation"]["tokens"]

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes of the validation text over its tokens, EOS counted; None where there is no text.

        Bits per byte = nats per token / ln 2 / bytes per token.
        """
        return self.manifest["bytes_per_token"]

    @property
    def entropy(self) -> float | None:
        """Irreducible loss in nats per token, where the source's is known."""
        return self.manifest["entropy"]

    @property
    def description(self) -> dict:
        """What there is to record of the corpus: plain values."""
        facts = ("name", "digest", "vocabulary", "splits", "validation_fraction", "bytes_per_token", "entropy")
        return {**{fact: self.manifest[fact] for fact in facts}, **self.manifest["description"]}

    def tokens(self, split: str) -> int:
        if split not in self.manifest["splits"]:
            raise ValueError(f"split {split!r}: train or validation was expected")
        return self.manifest["splits"][split]["tokens"]

    def sequences(self, split: str, sequence_length: int) -> int:
        """How many whole sequences the split holds: an epoch."""
        return max(0, (self.tokens(split) - 1) // sequence_length)

    def require(self, split: str, sequence_length: int, sequences: int = 1) -> None:
        """Raises DataError unless the split holds this many sequences (a batch, say)."""
        found = self.sequences(split, sequence_length)
        if found < max(1, sequences):
            raise DataError(
                f"corpus {self.name} has {self.tokens(split)} {split} tokens, {found} sequences of {sequence_length}: "
                f"{max(1, sequences)} are needed; take a larger corpus, a smaller batch or a shorter sequence"
            )

    def epochs(self, sequences_consumed: int, sequence_length: int, split: str = "train") -> float:
        """How many times the split has been read after this many sequences; above 1 is repetition."""
        return sequences_consumed / self.sequences(split, sequence_length)

    def batch(self, split: str, data_seed: int, sequence_length: int, start: int, count: int) -> np.ndarray:
        """Sequences order(data_seed, i) for i = start..start+count-1: int32 [count, sequence_length + 1].

        Indices beyond an epoch read the split again in another order. Raises DataError where the split is shorter than
        one sequence or its file is damaged.
        """
        self.require(split, sequence_length)
        numbers = order(data_seed, np.arange(start, start + count), self.sequences(split, sequence_length))
        return self._windows(split, numbers * sequence_length, sequence_length + 1)

    def batch_part(
        self, split: str, data_seed: int, sequence_length: int, start: int, count: int, reader: int, readers: int
    ) -> np.ndarray:
        """What reader `reader` of `readers` reads of that batch; the parts of all, in order, are the batch."""
        first, last = (count * part // readers for part in (reader, reader + 1))
        return self.batch(split, data_seed, sequence_length, start + first, last - first)

    def document_offsets(self, split: str) -> np.ndarray:
        """Where each document starts in the flat tokens, and where the last ends: int64 [documents + 1]."""
        return self._read(f"offsets.{split}")

    def _read(self, array: str) -> np.ndarray:
        check_files(self.path, self.manifest, prefix=f"{array}/")
        return self._open(array).read().result()

    def _open(self, array: str) -> ts.TensorStore:
        check_files(self.path, self.manifest, prefix=f"{array}/zarr.json")
        cache = ts.Context({"cache_pool": {"total_bytes_limit": 64 << 20}})
        return ts.open(spec(self.path / array), context=cache).result()

    @cached_property
    def _splits(self) -> dict[str, np.ndarray | ts.TensorStore]:
        return {}

    def _store(self, split: str) -> np.ndarray | ts.TensorStore:
        if split not in self._splits:
            array = f"tokens.{split}"
            small = self.tokens(split) * np.dtype(self.manifest["dtype"]).itemsize <= self.memory_bytes
            self._splits[split] = self._read(array) if small else self._open(array)
        return self._splits[split]

    def _windows(self, split: str, starts: np.ndarray, length: int) -> np.ndarray:
        """Windows of the flat tokens: starts int64 [count] to int32 [count, length]."""
        store = self._store(split)
        if isinstance(store, np.ndarray):
            return store[starts[:, None] + np.arange(length)].astype(np.int32)
        reads = [store[start : start + length].read() for start in starts.tolist()]
        try:
            return np.array([read.result() for read in reads], np.int32).reshape(len(starts), length)
        except ValueError as error:
            if "DATA_LOSS" not in str(error):
                raise
            raise damaged(self.path, f"tokens.{split}", "a chunk's checksum does not match") from None


def open_corpus(path: Path, digest: str | None = None, memory_bytes: int = MEMORY_BYTES) -> Corpus:
    """Opens the cache at `path`. Raises DataError when it is absent, damaged, or of another corpus than `digest`.

    Checked here: the manifest, and that every file is there in its size. Contents of a split are checked when first
    read; `lab.data.verify` checks every file at once.
    """
    manifest = read_manifest(path)
    if digest is not None and manifest["digest"] != digest:
        raise DataError(
            f"token cache {path} is of corpus {manifest['name']} with digest {manifest['digest'][:12]}: {digest[:12]} "
            "was expected; name that corpus, or delete the cache and prepare again"
        )
    return Corpus(Path(path), manifest, memory_bytes)
