"""Texts into the documents of a corpus: duplicates dropped, divided into train and validation, given a digest.

Everything here depends on the documents' contents alone, never on the order in which a file system lists them: a
document is known by the SHA-256 of its bytes, the first 64 bits of which say its split, and documents are kept in
the order of their hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from lab.errors import DataError

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Documents:
    """The documents of a corpus by split, each a text; `duplicates` counts the texts that were dropped."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    duplicates: int

    def split(self, name: str) -> tuple[str, ...]:
        return {"train": self.train, "validation": self.validation}[name]


def content_hash(content: bytes) -> bytes:
    """The 32 bytes by which a document is known."""
    return hashlib.sha256(content).digest()


def held_out(content: bytes, validation_fraction: float) -> bool:
    """Whether the document with this content hash belongs to the validation split."""
    return int.from_bytes(content[:8], "big") < int(validation_fraction * 2**64)


def check_fraction(validation_fraction: float) -> None:
    if not 0.0 < validation_fraction < 1.0:
        raise DataError(
            f"data.validation_fraction is {validation_fraction}: a number above 0 and below 1 is needed, such as 0.05"
        )


def assemble(texts: Iterable[str], validation_fraction: float, name: str) -> Documents:
    """Documents of `texts`, without blanks and duplicates, divided by content.

    Where the fraction would leave the validation split empty, the document with the smallest hash is held out; where
    it would leave the train split empty, the one with the largest is trained on. Lone surrogates, which UTF-8 cannot
    hold, become question marks. Raises DataError when fewer than two different documents are left.
    """
    check_fraction(validation_fraction)
    by_hash: dict[bytes, str] = {}
    seen = 0
    for text in texts:
        if text.strip():
            seen += 1
            content = text.encode("utf-8", errors="replace")
            by_hash[content_hash(content)] = content.decode("utf-8")
    if not by_hash:
        raise DataError(f"corpus {name} is empty: text was expected; name another with data.corpus")
    if len(by_hash) == 1:
        raise DataError(
            f"corpus {name} has one document: at least two are needed, one of them for validation; add text, or blank "
            "lines between its parts"
        )
    hashes = sorted(by_hash)
    count = sum(held_out(content, validation_fraction) for content in hashes)
    count = min(max(count, 1), len(hashes) - 1)
    texts_in_order = [by_hash[content] for content in hashes]
    return Documents(tuple(texts_in_order[count:]), tuple(texts_in_order[:count]), seen - len(by_hash))


class RunningDigest:
    """SHA-256 over the content hashes of a split's documents, in order."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()

    def add(self, content: bytes) -> None:
        self._state.update(content)

    def hex(self) -> str:
        return self._state.hexdigest()


def split_digest(texts: Iterable[str]) -> str:
    digest = RunningDigest()
    for text in texts:
        digest.add(content_hash(text.encode("utf-8")))
    return digest.hex()


def canonical(tree: dict) -> bytes:
    """The one way in which a description is written: sorted keys, ASCII, no spaces."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def corpus_digest(split_digests: dict[str, str], vocabulary: dict) -> str:
    """Identity of a corpus as a model sees it: contents of both splits and the vocabulary, not names and paths."""
    return hashlib.sha256(canonical({"splits": split_digests, "vocabulary": vocabulary})).hexdigest()
