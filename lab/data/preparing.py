"""From a config to an open corpus: its cache is found, or built by another process, which alone loads TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lab.data import documents, synthetic
from lab.data import vocabulary as vocabularies
from lab.data.batches import Corpus, open_corpus
from lab.data.build import ERROR, PROGRESS, build_cache, gather
from lab.data.cache import MANIFEST, key_of, location
from lab.data.corpora import Request, request
from lab.errors import DataError


def prepare(data, cache_root: Path, progress: Callable[[str], None] | None = None) -> Corpus:
    """The corpus that the config node `data` names, from its cache under `cache_root`, which is built where absent.

    `data.corpus=cache:DIRECTORY` opens a cache that was prepared elsewhere. Progress lines go to `progress`. Raises
    DataError for whatever the user can mend.
    """
    wanted = request(data)
    say = progress or (lambda line: None)
    found = cached(wanted, cache_root)
    if found is not None:
        return found
    if wanted.kind == "synthetic":
        return open_corpus(build_cache(wanted, cache_root, say))
    return open_corpus(_build_apart(wanted, cache_root, say))


def cached(wanted: Request, cache_root: Path | None) -> Corpus | None:
    """The corpus from its cache; None where there is none yet. Raises DataError where the cache is of another."""
    if wanted.kind == "cache":
        return open_corpus(Path(wanted.corpus.removeprefix("cache:")))
    if cache_root is None:
        return None
    key = key_of(wanted)
    path = location(cache_root, wanted, key)
    if not (path / MANIFEST).exists():
        return None
    corpus = open_corpus(path)
    if corpus.manifest["key"] != key:
        raise DataError(
            f"token cache {path} is of another corpus, {corpus.name} of digest {corpus.digest[:12]}: {wanted.corpus} "
            "was expected there; delete that directory and prepare again"
        )
    return corpus


def digest(data, cache_root: Path | None = None) -> str:
    """Identity of the corpus that `data` names: contents of both splits and vocabulary, in hex.

    With a cache it is read from the manifest, in milliseconds (a listing of the source files tells which cache).
    Without one, the texts are gathered and hashed here, without TensorFlow and with nothing written: a few seconds for
    pydocs, and for SentencePiece its training besides. Only a seqio task cannot be read without TensorFlow: DataError
    says to prepare it.
    """
    wanted = request(data)
    found = cached(wanted, cache_root)
    if found is not None:
        return found.digest
    if wanted.kind == "seqio":
        raise DataError(f"corpus {wanted.corpus} has no token cache yet, and its digest needs one; prepare it first")
    if wanted.kind == "synthetic":
        vocabulary, digests = synthetic.identity(synthetic.parse(wanted.corpus), wanted.validation_fraction)
        return documents.corpus_digest(digests, vocabulary)
    texts = gather(wanted, lambda line: None)
    digests = {split: documents.split_digest(texts.split(split)) for split in documents.SPLITS}
    return documents.corpus_digest(digests, vocabularies.describe(texts.train, wanted))


def _build_apart(wanted: Request, cache_root: Path, say: Callable[[str], None]) -> Path:
    command = [sys.executable, "-m", "lab.data.build", "--corpus", wanted.corpus, "--cache-root", str(cache_root)]
    command += ["--vocabulary", wanted.vocabulary, "--vocabulary-size", str(wanted.vocabulary_size)]
    command += ["--validation-fraction", repr(wanted.validation_fraction)]
    home = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    # A builder must not claim the accelerator that this process trains on.
    hidden = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, env={**os.environ, **home, **hidden}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            others = []
            for line in process.stderr:
                line = line.rstrip("\n")
                if line.startswith(PROGRESS):
                    say(line.removeprefix(PROGRESS))
                else:
                    others.append(line)
            path = process.stdout.read().strip()
        except BaseException:
            process.terminate()
            raise
    if process.returncode == 0:
        return Path(path)
    for line in others:
        if line.startswith(ERROR):
            raise DataError(line.removeprefix(ERROR))
    tail = "\n".join(others[-30:])
    raise RuntimeError(f"preparing {wanted.corpus} failed with exit code {process.returncode}:\n{tail}")
