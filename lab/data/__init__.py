"""Text, once, into a token cache; then sequences as a function of their index.

    corpus = prepare(config.data, cache_root, print)
    corpus.batch("train", data_seed=0, sequence_length=128, start=0, count=8)    # int32 [8, 129]

Importing this loads nothing. Reading needs numpy and TensorStore; only the process that prepares text loads TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.data.batches import Corpus, open_corpus
    from lab.data.cache import verify
    from lab.data.preparing import digest, prepare

_HOME = {
    "Corpus": "batches",
    "open_corpus": "batches",
    "verify": "cache",
    "prepare": "preparing",
    "digest": "preparing",
}
__all__ = ["Corpus", "digest", "open_corpus", "prepare", "verify"]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"lab.data.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
