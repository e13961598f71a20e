"""Text through seqio: bytes, SentencePiece, and tasks and mixtures of the user's own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from small_corpora import TEXTS, settings

from lab import data
from lab.errors import DataError

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("seqio")
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "seqio_corpora", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **paths})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def documents(corpus, split):
    flat, offsets = corpus._store(split), corpus.document_offsets(split)
    return [flat[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def as_bytes(text):
    return [byte + 3 for byte in text.encode()] + [1]


def test_bytes_are_bytes(built):
    corpus = data.open_corpus(built["byte"])
    found = [d.tolist() for split in ("train", "validation") for d in documents(corpus, split)]
    assert sorted(found) == sorted(map(as_bytes, TEXTS))
    assert corpus.vocab_size == 264 and corpus.manifest["dtype"] == "uint16"
    held = documents(corpus, "validation")
    assert 0 < len(held) < 30
    assert corpus.bytes_per_token == pytest.approx(1 - len(held) / sum(map(len, held)))


def test_digest_needs_no_tensorflow_and_is_that_of_the_cache(built):
    for name, vocabulary, size in (("byte", "byte", 0), ("sentencepiece", "sentencepiece", 300)):
        corpus = data.open_corpus(built[name])
        assert data.digest(settings(corpus.name, vocabulary, size, 0.2)) == corpus.digest
    assert data.open_corpus(built["byte"]).digest != data.open_corpus(built["sentencepiece"]).digest


def test_sentencepiece_keeps_text_to_the_byte(built):
    import sentencepiece

    corpus = data.open_corpus(built["sentencepiece"])
    model = sentencepiece.SentencePieceProcessor(model_file=f"{built['sentencepiece']}/vocabulary.model")
    found = [d for split in ("train", "validation") for d in documents(corpus, split)]
    assert all(d[-1] == 1 and (d[:-1] > 2).all() for d in found)
    assert sorted(model.decode(d[:-1].tolist()) for d in found) == sorted(TEXTS) == sorted(built["decoded"])
    assert corpus.vocab_size == 304
    held = documents(corpus, "validation")
    size = sum(len(model.decode(d[:-1].tolist()).encode()) for d in held)
    assert corpus.bytes_per_token == pytest.approx(size / sum(map(len, held)))


@pytest.mark.parametrize("name", ["task", "task without EOS"])
def test_a_task_of_the_users_own(built, name):
    corpus = data.open_corpus(built[name])
    found = [d.tolist() for split in ("train", "validation") for d in documents(corpus, split)]
    assert sorted(found) == sorted(map(as_bytes, TEXTS))
    assert corpus.description["duplicates"] == 1


def test_a_mixture_of_the_users_own(built):
    corpus = data.open_corpus(built["mixture"])
    found = [tuple(d.tolist()) for split in ("train", "validation") for d in documents(corpus, split)]
    assert len(set(found)) == len(found) > 30 and set(found) <= {tuple(as_bytes(text)) for text in TEXTS}


def test_what_cannot_be_prepared(built):
    for name in ("too many pieces", "unregistered", "no module"):
        assert built[name].startswith("DataError: ") and "\n" not in built[name]
    assert "did you mean windtunnel_pydocs?" in built["unregistered"]
    assert "no_such_module cannot be imported" in built["no module"]
    assert "lower data.vocabulary_size" in built["too many pieces"]


def test_own_corpora_are_registered(built):
    assert built["registered"] == ["windtunnel_pydocs", ["train", "validation"]]


def test_prepare_works_in_a_process_of_its_own(built, tmp_path):
    path, lines = tmp_path / "texts.jsonl", []
    path.write_text("\n".join(json.dumps({"text": text}) for text in reversed(TEXTS)))
    corpus = data.prepare(settings(str(path), fraction=0.2), tmp_path / "cache", lines.append)
    # The same texts in another order and under another name are the same corpus.
    assert corpus.digest == data.open_corpus(built["byte"]).digest
    for split in ("train", "validation"):
        assert np.array_equal(corpus._store(split), data.open_corpus(built["byte"])._store(split))
    assert any("tokens to train on" in line for line in lines)
    assert "tensorflow" not in sys.modules
    again = data.prepare(settings(str(path), fraction=0.2), tmp_path / "cache", pytest.fail)
    assert again.path == corpus.path


def test_the_users_errors_come_back_in_one_line(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8: byte 0xe9 at offset 3") as caught:
        data.prepare(settings(str(path)), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not [found for found in (tmp_path / "cache").iterdir() if found.is_dir()]


def test_a_python_without_tensorflow_says_so(tmp_path, monkeypatch):
    (tmp_path / "seqio.py").write_text("raise ImportError('No module named seqio')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join("word " * 500 for _ in range(4)) + "\n\nlast")
    with pytest.raises(DataError, match="data.corpus=cache:DIRECTORY"):
        data.prepare(settings(str(path)), tmp_path / "cache")
