"""What is read depends on the index alone: not on batch size, readers, or the way in which a cache is read."""

import os
import subprocess
import sys

import numpy as np
import pytest

from lab import data
from lab.data.order import order
from lab.errors import DataError

T = 16


def test_a_sequence_is_a_window_of_the_flat_tokens(corpus):
    n = corpus.sequences("train", T)
    flat = corpus._store("train")
    assert n == (corpus.train_tokens - 1) // T
    batch = corpus.batch("train", 5, T, 3, 10)
    assert batch.dtype == np.int32 and batch.shape == (10, T + 1)
    for row, number in zip(batch, order(5, np.arange(3, 13), n), strict=True):
        assert row.tolist() == flat[number * T : number * T + T + 1].tolist()


def test_an_epoch_predicts_every_token_once(corpus):
    n = corpus.sequences("validation", T)
    epoch = corpus.batch("validation", 0, T, 0, n)
    flat = corpus._store("validation")
    assert np.sort(epoch[:, 1:].ravel()).tolist() == np.sort(flat[1 : n * T + 1]).tolist()
    assert len(flat) - (n * T + 1) < T


@pytest.mark.parametrize("size", [1, 3, 8, 40])
def test_order_does_not_depend_on_batch_size(corpus, size):
    whole = corpus.batch("train", 1, T, 0, 40)
    parts = [corpus.batch("train", 1, T, start, min(size, 40 - start)) for start in range(0, 40, size)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("count", [1, 8, 11])
@pytest.mark.parametrize("readers", [1, 2, 4])
def test_union_of_readers_is_what_one_sees(corpus, readers, count):
    for start in (0, count, 5 * count):
        parts = [corpus.batch_part("train", 2, T, start, count, reader, readers) for reader in range(readers)]
        assert np.array_equal(np.concatenate(parts), corpus.batch("train", 2, T, start, count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_epochs_wrap_into_another_order(corpus):
    n = corpus.sequences("validation", T)
    across = corpus.batch("validation", 0, T, 0, 2 * n + 1)
    first, second = across[:n].tolist(), across[n : 2 * n].tolist()
    assert first != second and sorted(first) == sorted(second)
    assert np.array_equal(across[n - 1 : n + 1], corpus.batch("validation", 0, T, n - 1, 2))
    assert corpus.epochs(n, T, "validation") == 1.0 and corpus.epochs(3 * n, T, "validation") == 3.0


def test_seeds_differ(corpus):
    assert not np.array_equal(corpus.batch("train", 0, T, 0, 8), corpus.batch("train", 1, T, 0, 8))


def test_in_memory_or_not(corpus):
    chunks = data.open_corpus(corpus.path, memory_bytes=0)
    assert not isinstance(chunks._store("train"), np.ndarray)
    for start, count in ((0, 8), (100, 1), (corpus.sequences("train", T) - 2, 5), (7, 0)):
        assert np.array_equal(chunks.batch("train", 3, T, start, count), corpus.batch("train", 3, T, start, count))


def test_documents_end_with_eos(corpus):
    flat, offsets = corpus._store("train"), corpus.document_offsets("train")
    assert offsets[0] == 0 and offsets[-1] == len(flat) and (flat[offsets[1:] - 1] == 1).all()
    assert (flat == 1).sum() == len(offsets) - 1 == corpus.description["splits"]["train"]["documents"]


def test_too_short(corpus):
    tokens = corpus.train_tokens
    with pytest.raises(DataError, match=f"{tokens} train tokens, 0 sequences of {tokens}: 1 are needed"):
        corpus.batch("train", 0, tokens, 0, 1)
    corpus.require("train", T, tokens // T - 1)
    with pytest.raises(DataError, match="a smaller batch"):
        corpus.require("train", T, tokens)


def test_reading_loads_neither_tensorflow_nor_jax(corpus):
    script = (
        "import sys; from lab import data; assert 'numpy' not in sys.modules, 'import lab.data is light'\n"
        "corpus = data.open_corpus(sys.argv[1]); data.verify(sys.argv[1])\n"
        "print(corpus.batch('train', 0, 16, 0, 8).sum())\n"
        "heavy = {'tensorflow', 'seqio', 'jax', 'sentencepiece', 'pandas'} & set(sys.modules); assert not heavy, heavy"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script, str(corpus.path)], capture_output=True, text=True, env=paths)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == corpus.batch("train", 0, T, 0, 8).sum()
