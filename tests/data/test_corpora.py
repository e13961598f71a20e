"""Texts of the installed corpora and of files; documents without duplicates, divided by content; errors in one line."""

import json
import random
import sysconfig

import pytest
from small_corpora import settings

from lab import data
from lab.data import corpora
from lab.data.documents import assemble, held_out
from lab.errors import DataError


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of a few files, any of which would fail the test if it were imported."""
    files = {
        "one.py": '"""Module one."""\nraise SystemExit("imported")\ndef f():\n    """Shared words."""\n',
        "two.py": '"""Module two."""\nclass C:\n    """Shared words."""\n    def m(self):\n        """Of m."""\n',
        "latin.py": '# -*- coding: latin-1 -*-\n"""Caf\xe9."""\n',
        "broken.py": "def (:\n",
        "bad.py": '"""\xff"""\n',
        "pydoc_data/topics.py": 'topics = {"if": "The if statement.", "for": "The for statement."}\n',
        "test/left.py": '"""A test."""\n',
        "config-3.11/left.py": '"""Of one machine."""\n',
        "_sysconfigdata_x.py": '"""Of one machine."""\n',
        "site-packages/extra.py": '"""Installed."""\n',
    }
    for name, text in files.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
    folders = {"stdlib": tmp_path / "lib"}
    packages = tmp_path / "lib" / "site-packages"
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folders.get(name, packages)))
    return tmp_path / "lib"


def test_pydocs_are_docstrings_and_topics(library):
    found = set(corpora.texts(corpora.request(settings("pydocs"))))
    assert found == {
        "Module one.\n\nShared words.\n",
        "Module two.\n\nOf m.\n",
        "Café.\n",
        "The if statement.",
        "The for statement.",
    }


def test_pysource_is_files(library):
    plain = list(corpora.texts(corpora.request(settings("pysource"))))
    everything = list(corpora.texts(corpora.request(settings("pysource-all"))))
    assert len(plain) == 5 and "Café" in "".join(plain)
    assert set(everything) - set(plain) == {'"""Installed."""\n'}


def test_changed_source_is_noticed(library):
    wanted = corpora.request(settings("pydocs"))
    before = corpora.fingerprint(wanted)
    assert corpora.fingerprint(wanted) == before
    (library / "one.py").write_text('"""Another."""\n')
    assert corpora.fingerprint(wanted) != before


def test_digest_without_a_cache_is_of_the_contents(library):
    before = data.digest(settings("pydocs"))
    (library / "two.py").rename(library / "renamed.py")
    assert data.digest(settings("pydocs")) == before
    (library / "three.py").write_text('"""Module three."""\n')
    assert data.digest(settings("pydocs")) != before


def test_this_pythons_pydocs_are_prose():
    topics = next(path for path in corpora.source_files("pydocs") if path.name == "topics.py")
    assert topics.parent.name == "pydoc_data"
    assert not any("test" in path.parts for path in corpora.source_files("pydocs"))


def test_duplicates_and_blanks_are_dropped():
    found = assemble(["a", "b", "a", " \n", "c"], 0.5, "x")
    assert sorted(found.train + found.validation) == ["a", "b", "c"] and found.duplicates == 1


def test_split_depends_on_content_alone():
    texts = [f"document {i}" for i in range(2000)]
    found = assemble(texts, 0.1, "x")
    random.Random(0).shuffle(texts)
    assert assemble(texts, 0.1, "x") == found
    assert 150 < len(found.validation) < 250
    # More documents do not move those that were there.
    assert set(found.validation) <= set(assemble([*texts, "one more"], 0.1, "x").validation)
    assert set(found.validation) <= set(assemble(texts, 0.2, "x").validation)


def test_neither_split_is_empty():
    for fraction in (1e-9, 1 - 1e-9):
        found = assemble(["a", "b"], fraction, "x")
        assert len(found.train) == len(found.validation) == 1
    assert held_out(bytes(32), 1e-9) and not held_out(b"\xff" * 32, 1 - 1e-9)


def test_lone_surrogates_are_replaced():
    found = assemble(["a\ud800", "b"], 0.5, "x")
    assert set(found.train + found.validation) == {"a?", "b"}


def test_text_file_is_cut_at_blank_lines(tmp_path):
    path = tmp_path / "book.txt"
    text = "".join(f"Paragraph {i}. " + "word " * 150 + "\r\n\r\n" for i in range(20))
    path.write_bytes(text.encode())
    found = list(corpora.texts(corpora.request(settings(str(path)))))
    assert "".join(found) == text
    assert len(found) > 3 and all(len(document) >= 2048 for document in found[:-1])
    assert all(document.startswith("Paragraph") for document in found)


def test_jsonl(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in ("one", "t\u2028wo")) + "\n\n")
    assert list(corpora.texts(corpora.request(settings(str(path))))) == ["one", "t\u2028wo"]


def one_line(call, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.txt", None, "no file"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n ", "is empty"),
        ("single.txt", b"only one paragraph\n", "one document"),
        ("latin.txt", b"caf\xe9\n", "0xe9 at offset 3"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "line 2 has no string"),
        ("b.jsonl", b'{"text": "a"}\n{"text"\n', "line 2 is not JSON"),
    ],
)
def test_files_that_cannot_be_a_corpus(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    message = one_line(data.digest, settings(str(path)))
    assert said in message and name in message


def test_names_and_values_that_cannot_be(tmp_path):
    assert "did you mean pysource?" in one_line(data.digest, settings("pysorce"))
    assert "data.corpus is one of" in one_line(data.digest, settings("zzz"))
    assert "data.vocabulary is 'bytes'" in one_line(data.digest, settings(vocabulary="bytes"))
    assert "data.vocabulary_size is 20" in one_line(data.digest, settings("pydocs", "sentencepiece", 20))
    assert "vocabulary of its own" in one_line(data.digest, settings(vocabulary="sentencepiece", size=4096))
    assert "data.validation_fraction is 0.0" in one_line(data.prepare, settings(fraction=0.0), tmp_path)
    assert "no token cache" in one_line(data.prepare, settings("cache:nowhere"), tmp_path)
    assert "prepare it first" in one_line(data.digest, settings("seqio:some_task"))
    assert not list(tmp_path.iterdir())
