"""Corpora as seqio tasks. The only module here that needs seqio, hence TensorFlow; imported when text is prepared.

`windtunnel_pydocs` and `windtunnel_pysource` are registered by `register()`, for mixtures of the user's own.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from lab.data import vocabulary as vocabularies
from lab.data.corpora import Request, texts
from lab.data.documents import SPLITS, Documents, assemble
from lab.errors import DataError

FEATURE = "targets"
REGISTERED_VALIDATION_FRACTION = 0.05


def vocabulary(description: dict, directory: Path) -> seqio.Vocabulary:
    """The seqio vocabulary that a cache in `directory` describes."""
    if description["kind"] == "byte":
        return seqio.ByteVocabulary()
    return seqio.SentencePieceVocabulary(str(directory / vocabularies.MODEL), extra_ids=0)


def _source(documents) -> seqio.FunctionDataSource:
    """A source that yields the texts of `documents(split)`, each under "targets"."""

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        def generate():
            yield from ({FEATURE: text.encode("utf-8")} for text in documents(split))

        return tf.data.Dataset.from_generator(generate, output_signature={FEATURE: tf.TensorSpec([], tf.string)})

    return seqio.FunctionDataSource(dataset, splits=SPLITS)


def _parts(documents, vocabulary: seqio.Vocabulary) -> dict:
    return {
        "source": _source(documents),
        "preprocessors": [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        "output_features": {FEATURE: seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32)},
    }


def task(name: str, documents: Documents, vocabulary: seqio.Vocabulary) -> seqio.Task:
    """A task over these documents: tokenised, each with EOS at its end."""
    return seqio.Task(name, **_parts(documents.split, vocabulary))


def register() -> None:
    """Adds `windtunnel_pydocs` and `windtunnel_pysource` (bytes) to seqio's registry; texts are gathered when read."""
    for corpus in ("pydocs", "pysource"):
        name = f"windtunnel_{corpus}"
        if name in seqio.TaskRegistry.names():
            continue
        wanted = Request(corpus, "byte", 0, REGISTERED_VALIDATION_FRACTION)

        @cache
        def gathered(wanted: Request = wanted) -> Documents:
            return assemble(texts(wanted), wanted.validation_fraction, wanted.corpus)

        parts = _parts(lambda split, gathered=gathered: gathered().split(split), seqio.ByteVocabulary())
        seqio.TaskRegistry.add(name, **parts)


def find(corpus: str) -> seqio.Task | seqio.Mixture:
    """The task or mixture that `seqio:[MODULE:]NAME` names; MODULE, which registers it, is imported first."""
    module, _, name = corpus.removeprefix("seqio:").rpartition(":")
    register()
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise DataError(f"corpus {corpus}: {module} cannot be imported ({error}); mend data.corpus") from None
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else "name the module that registers it: seqio:MODULE:NAME"
        raise DataError(f"corpus {corpus}: seqio knows no task or mixture {name!r}; {hint}")
    found = seqio.get_mixture_or_task(name)
    if FEATURE not in found.output_features:
        raise DataError(
            f"corpus {corpus}: its features are {', '.join(found.output_features)}; one named {FEATURE} was expected"
        )
    if "train" not in found.splits:
        raise DataError(f"corpus {corpus}: its splits are {', '.join(found.splits)}; one named train was expected")
    return found


def tokens(source: seqio.Task | seqio.Mixture, split: str) -> Iterator[np.ndarray]:
    """Token ids (int [tokens]) of each document of one epoch, in the source's own order; EOS as the task leaves it."""
    dataset = source.get_dataset(sequence_length=None, split=split, shuffle=False, seed=0, num_epochs=1)
    for example in dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        yield np.asarray(example[FEATURE])
