"""Named data sets: found where they should be, refused when they are others, and as their records say."""

from __future__ import annotations

import dataclasses
import fnmatch
import gzip
import hashlib

import pytest

from lab.laws import datasets
from lab.laws.datasets import DATASETS, dataset, load
from lab.laws.errors import DataSetError

NAMES = sorted(DATASETS)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_as_its_record_says(published, name):
    frame, known = published(name), DATASETS[name]
    assert len(frame) == known.rows
    unknown = [c for c in frame.columns if c not in known.columns and not any(map(globbed(c), known.columns))]
    absent = [p for p in known.columns if not any(c == p or globbed(c)(p) for c in frame.columns)]
    assert not unknown and not absent
    for expression in (*known.reads.values(), *known.recounts.values()):
        assert len(frame.eval(expression, engine="python")) == known.rows


def globbed(column):
    return lambda pattern: pattern.endswith("*") and fnmatch.fnmatchcase(column, pattern)


@pytest.mark.parametrize("name", NAMES)
def test_a_record_says_where_it_comes_from(name):
    known = DATASETS[name]
    assert known.source.count("/") == 1 and known.path and known.licence and known.paper
    assert len(known.commit) == 10 and int(known.commit, 16) >= 0
    assert len(known.sha256) == 64


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(DataSetError, match="did you mean 'chinchilla_svg'"):
        dataset("chinchila_svg")


def test_a_missing_file_says_where_to_get_it_and_where_it_was_looked_for(tmp_path, monkeypatch):
    known = DATASETS["chinchilla_svg"]
    with pytest.raises(DataSetError) as error:
        load("chinchilla_svg", tmp_path)
    for expected in (str(tmp_path), known.source, known.path, known.commit, "--data-root", "$WINDTUNNEL_DATA"):
        assert expected in str(error.value)
    monkeypatch.setenv("WINDTUNNEL_DATA", str(tmp_path / "environment"))
    monkeypatch.setattr(datasets, "BESIDE", tmp_path / "beside")
    with pytest.raises(DataSetError, match="environment.*beside"):
        load("chinchilla_svg")


@pytest.fixture
def small(monkeypatch):
    """A data set of two rows."""
    content = b"N,loss\n1,2\n3,4\n"
    digest = hashlib.sha256(content).hexdigest()
    record = dataclasses.replace(DATASETS["chinchilla_svg"], name="small", sha256=digest, rows=2)
    monkeypatch.setitem(DATASETS, "small", record)
    return content


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_found_plain_or_packed(small, packed, tmp_path, monkeypatch):
    path = tmp_path / ("small.csv.gz" if packed else "small.csv")
    path.write_bytes(gzip.compress(small) if packed else small)
    assert load("small", tmp_path)["loss"].tolist() == [2, 4]
    monkeypatch.setenv("WINDTUNNEL_DATA", str(tmp_path))
    assert len(load("small")) == 2


def test_another_file_of_the_name_is_refused(small, tmp_path):
    (tmp_path / "small.csv").write_bytes(small.replace(b"4", b"5"))
    with pytest.raises(DataSetError, match="found sha256 .*, expected"):
        load("small", tmp_path)
    (tmp_path / "small.csv").unlink()
    (tmp_path / "small.csv.gz").write_bytes(gzip.compress(small)[:-6])
    with pytest.raises(DataSetError, match="damaged"):
        load("small", tmp_path)
