"""A cache is whole or absent, and any bit of it that flips is found."""

import errno
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from small_corpora import settings

from lab import data
from lab.data import build, cache
from lab.data.corpora import request
from lab.errors import DataError


@pytest.fixture
def copy(corpus, tmp_path):
    return shutil.copytree(corpus.path, tmp_path / corpus.path.name)


def files(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_a_flipped_bit_of_any_file_is_found(copy):
    assert len(files(copy)) == 9  # four arrays of a zarr.json and a shard each, and the manifest
    data.verify(copy)
    rng = np.random.default_rng(0)
    for file in files(copy):
        whole = file.read_bytes()
        places = {0, len(whole) - 1, *rng.integers(0, len(whole), 20).tolist()}
        for place in places:
            torn = bytearray(whole)
            torn[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(torn)
            with pytest.raises(DataError) as caught:
                data.verify(copy)
            assert file.relative_to(copy).as_posix() in str(caught.value) and "\n" not in str(caught.value)
        file.write_bytes(whole)
    data.verify(copy)


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_flipped_bit_is_found_by_reading(copy, split, memory_bytes):
    shard = copy / f"tokens.{split}" / "c" / "0"
    torn = bytearray(shard.read_bytes())
    torn[len(torn) // 3] ^= 16
    shard.write_bytes(torn)
    corpus = data.open_corpus(copy, memory_bytes=memory_bytes)
    other = {"train": "validation", "validation": "train"}[split]
    corpus.batch(other, 0, 16, 0, 4)
    with pytest.raises(DataError, match=f"tokens.{split}"):
        for start in range(corpus.sequences(split, 16)):
            corpus.batch(split, 0, 16, start, 1)


@pytest.mark.parametrize("name", ["tokens.train/c/0", "offsets.validation/zarr.json", "manifest.json"])
def test_a_file_that_is_cut_short_or_gone(copy, name):
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[:-1])
    with pytest.raises(DataError, match=name):
        data.open_corpus(copy)
    (copy / name).unlink()
    with pytest.raises(DataError, match=name):
        data.open_corpus(copy)


def test_cache_of_another_corpus(corpus, tmp_path):
    other = settings("synthetic:documents=65,document_tokens=64,alphabet=8")
    wanted = request(other)
    shutil.copytree(corpus.path, cache.location(tmp_path, wanted, cache.key_of(wanted)))
    with pytest.raises(DataError, match="of another corpus"):
        data.prepare(other, tmp_path)
    with pytest.raises(DataError, match="was expected"):
        data.open_corpus(corpus.path, digest="0" * 64)
    assert data.open_corpus(corpus.path, digest=corpus.digest).digest == corpus.digest


def test_a_cache_that_was_carried_here(corpus, copy):
    carried = settings(f"cache:{copy}")
    assert data.prepare(carried, copy.parent / "unused").digest == corpus.digest == data.digest(carried)
    assert not (copy.parent / "unused").exists()


def test_digest_with_and_without_a_cache(corpus):
    assert data.digest(settings()) == data.digest(settings(), corpus.path.parent) == corpus.digest


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("RESOURCE: No space left on device")])
def test_full_disk(tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(cache.Writer, "finish", fail)
    with pytest.raises(DataError, match="is full") as caught:
        data.prepare(settings(), tmp_path)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_what_a_killed_builder_left_is_no_cache_and_is_swept_away(tmp_path):
    script = "import os, signal; from lab.data import cache, build; from small_corpora import settings;"
    script += "from lab.data.corpora import request; import sys; from pathlib import Path;"
    script += "cache._sealed = lambda body: os.kill(os.getpid(), signal.SIGKILL);"
    script += "build.build_cache(request(settings()), Path(sys.argv[1]), print)"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, env=paths)
    assert killed.returncode == -9
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    corpus = data.prepare(settings(), tmp_path)
    data.verify(corpus.path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [corpus.path]


def test_builders_at_once(tmp_path):
    """Four start together; one builds, and every one opens the same cache."""
    builds, found = [], []

    def one():
        found.append(build.build_cache(request(settings()), tmp_path, builds.append))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4
    assert sum("prepared in" in line for line in builds) == 1
    data.verify(found[0])


@pytest.mark.parametrize(("size", "dtype"), [(256, "uint8"), (257, "uint16"), (65_537, "uint32")])
def test_documents_come_back_across_shards(tmp_path, monkeypatch, size, dtype):
    monkeypatch.setattr(cache, "SHARD", 64)
    monkeypatch.setattr(cache, "CHUNK", 16)
    rng = np.random.default_rng(0)
    written = {split: [rng.integers(0, size, n) for n in (1, 63, 64, 65, 300, 5)] for split in ("train", "validation")}
    writer = cache.Writer(tmp_path, size)
    for split, documents in written.items():
        for document in documents:
            writer.append(split, document)
    writer.finish({"name": "x", "vocabulary": {"size": size}})
    for memory_bytes in (0, 1 << 20):
        corpus = data.open_corpus(tmp_path, memory_bytes=memory_bytes)
        assert corpus.manifest["dtype"] == dtype
        for split, documents in written.items():
            flat, offsets = np.concatenate(documents), corpus.document_offsets(split)
            assert corpus.tokens(split) == len(flat)
            assert all((flat[a:b] == d).all() for a, b, d in zip(offsets[:-1], offsets[1:], documents, strict=True))
            windows = {tuple(w) for w in corpus.batch(split, 0, 7, 0, corpus.sequences(split, 7)).tolist()}
            assert windows == {tuple(flat[i * 7 : i * 7 + 8].tolist()) for i in range((len(flat) - 1) // 7)}
