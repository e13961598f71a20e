"""Builds a token cache: `python -m lab.data.build --corpus pydocs --cache-root DIRECTORY` prints where it is.

Text goes through seqio, hence TensorFlow, so `prepare` does this in a process of its own. Lines on standard error start
with `prepare: ` (progress) or `error: ` (the user's to mend, exit code 2).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lab.data import corpora, documents, synthetic
from lab.data import vocabulary as vocabularies
from lab.data.cache import Writer, build, key_of, location
from lab.data.corpora import Request
from lab.errors import DataError, UserError

PROGRESS = "prepare: "
ERROR = "error: "
Say = Callable[[str], None]


def build_cache(wanted: Request, cache_root: Path, say: Say) -> Path:
    """Makes the cache of `wanted` under `cache_root` unless it is there; returns its directory. Raises DataError."""
    writers = {"synthetic": _write_synthetic, "seqio": _write_seqio, "installed": _write_text, "file": _write_text}
    documents.check_fraction(wanted.validation_fraction)
    key = key_of(wanted)
    path = location(cache_root, wanted, key)

    def write(directory: Path) -> None:
        started = time.monotonic()
        writers[wanted.kind](wanted, key, directory, say)
        say(f"{wanted.corpus} prepared in {time.monotonic() - started:.1f} s")

    build(path, write)
    return path


def _manifest(
    wanted: Request,
    key: str,
    vocabulary: dict,
    split_digests: dict[str, str],
    description: dict,
    bytes_per_token: float | None = None,
    entropy: float | None = None,
) -> dict:
    return {
        "name": wanted.corpus,
        "key": key,
        "digest": documents.corpus_digest(split_digests, vocabulary),
        "vocabulary": vocabulary,
        "validation_fraction": wanted.validation_fraction,
        "description": {**description, "python": platform.python_version()},
        "bytes_per_token": bytes_per_token,
        "entropy": entropy,
    }


def _write_synthetic(wanted: Request, key: str, directory: Path, say: Say) -> None:
    source = synthetic.parse(wanted.corpus)
    vocabulary, digests = synthetic.identity(source, wanted.validation_fraction)
    writer = Writer(directory, vocabulary["size"])
    for split, (tokens, lengths) in synthetic.splits(source, wanted.validation_fraction).items():
        writer.append(split, tokens, lengths)
    entropy = synthetic.conditional_entropy(source, context=1)
    say(f"{wanted.corpus}: a Markov chain of {source.alphabet} symbols, {entropy:.4f} nats per token")
    writer.finish(_manifest(wanted, key, vocabulary, digests, {"source": vars(source)}, entropy=entropy))


def gather(wanted: Request, say: Say) -> documents.Documents:
    """The documents of an installed corpus or a file, without duplicates and divided."""
    say(f"{wanted.corpus}: gathering text")
    found = documents.assemble(corpora.texts(wanted), wanted.validation_fraction, wanted.corpus)
    count = len(found.train) + len(found.validation)
    say(f"{wanted.corpus}: {count} documents, {found.duplicates} duplicates left out")
    return found


def _write_text(wanted: Request, key: str, directory: Path, say: Say) -> None:
    found = gather(wanted, say)
    if wanted.vocabulary == "sentencepiece":
        say(f"{wanted.corpus}: training a SentencePiece vocabulary of {wanted.vocabulary_size}")
    vocabulary = vocabularies.describe(found.train, wanted, directory)
    tasks = _tasks()
    task = tasks.task("windtunnel_corpus", found, tasks.vocabulary(vocabulary, directory))
    writer = Writer(directory, vocabulary["size"])
    counts = dict.fromkeys(documents.SPLITS, 0)
    for split in documents.SPLITS:
        say(f"{wanted.corpus}: tokenising the {split} split, {len(found.split(split))} documents")
        for tokens in tasks.tokens(task, split):
            writer.append(split, tokens)
            counts[split] += len(tokens)
    size = sum(len(text.encode("utf-8")) for text in found.validation)
    digests = {split: documents.split_digest(found.split(split)) for split in documents.SPLITS}
    description = {"duplicates": found.duplicates}
    per_token = size / counts["validation"]
    say(f"{wanted.corpus}: {counts['train']} tokens to train on, {counts['validation']} for validation")
    writer.finish(_manifest(wanted, key, vocabulary, digests, description, bytes_per_token=per_token))


def _write_seqio(wanted: Request, key: str, directory: Path, say: Say) -> None:
    """One epoch of the task's train split, streamed: duplicates dropped, divided by content, in the task's own order.

    Tokens and vocabulary are the task's; `data.vocabulary` has no say, and a line tells so.
    """
    tasks = _tasks()
    source = tasks.find(wanted.corpus)
    known = source.output_features[tasks.FEATURE].vocabulary
    if known.eos_id is None:
        raise DataError(f"corpus {wanted.corpus}: its vocabulary has no EOS, which ends a document; give it one")
    vocabulary = {"kind": type(known).__name__, "size": int(known.vocab_size)}
    say(f"{wanted.corpus}: vocabulary of its own, {vocabulary['kind']} of {known.vocab_size} (not data.vocabulary)")
    writer = Writer(directory, vocabulary["size"])
    digests = {split: documents.RunningDigest() for split in documents.SPLITS}
    counts, seen, duplicates, size = dict.fromkeys(documents.SPLITS, 0), set(), 0, 0
    for tokens in tasks.tokens(source, "train"):
        if not len(tokens) or tokens[-1] != known.eos_id:
            tokens = np.append(tokens, known.eos_id)
        content = documents.content_hash(tokens.astype("<i8").tobytes())
        if content in seen or len(tokens) == 1:
            duplicates += 1
            continue
        seen.add(content)
        split = "validation" if documents.held_out(content, wanted.validation_fraction) else "train"
        writer.append(split, tokens)
        digests[split].add(content)
        counts[split] += len(tokens)
        if split == "validation":
            text = known.decode(tokens[:-1].tolist())
            size += len(text.encode("utf-8")) if isinstance(text, str) else 0
        if len(seen) % 100_000 == 0:
            say(f"{wanted.corpus}: {sum(counts.values())} tokens of {len(seen)} documents so far")
    for split in documents.SPLITS:
        if not counts[split]:
            raise DataError(
                f"corpus {wanted.corpus}: {len(seen)} different documents, none of them for {split}; add documents or "
                "change data.validation_fraction"
            )
    say(f"{wanted.corpus}: {counts['train']} tokens to train on, {counts['validation']} for validation")
    hexes = {split: digest.hex() for split, digest in digests.items()}
    # A vocabulary that gives no text back leaves the bytes unknown.
    per_token = size / counts["validation"] if size else None
    writer.finish(_manifest(wanted, key, vocabulary, hexes, {"duplicates": duplicates}, bytes_per_token=per_token))


def _tasks():
    """The module that needs seqio. Raises DataError where this Python lacks it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        from lab.data import tasks
    except ImportError as error:
        raise DataError(
            f"preparing text needs seqio and TensorFlow ({error}): install windtunnel's dependencies, or prepare "
            "elsewhere and name that cache here with data.corpus=cache:DIRECTORY"
        ) from None
    return tasks


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.data.build", description="Build a token cache.")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--cache-root", type=Path, required=True)
    parser.add_argument("--vocabulary", default="byte")
    parser.add_argument("--vocabulary-size", dest="vocabulary_size", type=int, default=0)
    parser.add_argument("--validation-fraction", dest="validation_fraction", type=float, default=0.05)
    chosen = parser.parse_args(arguments)
    try:
        path = build_cache(corpora.request(chosen), chosen.cache_root, lambda line: _tell(PROGRESS + line))
    except UserError as error:
        _tell(ERROR + " ".join(str(error).split()))
        return 2
    print(path)
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
