"""Text that needs no download, and text of the user's own: a corpus's name to its texts.

    pydocs         the language reference that `help()` shows (pydoc_data), and the docstrings of the standard library,
                   those of one module being one document; a docstring that an earlier module has too is left out
    pysource       the source files of the standard library, a file being a document
    pysource-all   these and the source files of all installed packages
    FILE           a UTF-8 text: paragraphs, which blank lines part, gathered into documents of 2,048 characters or more
    FILE.jsonl     one JSON object a line, each with its document under "text"

Files are parsed, never imported. Directories of tests are left out of the standard library, because not every
installation carries them, and so are the files that describe one machine's build.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.data.documents import canonical
from lab.errors import DataError

INSTALLED = ("pydocs", "pysource", "pysource-all")
NAMES = (*INSTALLED, "synthetic")
PARAGRAPHS_CHARACTERS = 2048
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Request:
    """What the `data` node of a config asks for."""

    corpus: str
    vocabulary: str
    vocabulary_size: int
    validation_fraction: float

    @property
    def kind(self) -> str:
        """installed, synthetic, seqio, cache or file. Raises DataError where the name is none of these."""
        prefix = self.corpus.partition(":")[0]
        if self.corpus in INSTALLED:
            return "installed"
        if prefix in ("synthetic", "seqio", "cache"):
            return prefix
        path = Path(self.corpus)
        if path.suffix in (".txt", ".jsonl") or len(path.parts) > 1 or path.is_file():
            return "file"
        raise DataError(unknown_corpus(self.corpus))


def request(data) -> Request:
    """The request in a config node (any object with these attributes). Raises DataError for a value that cannot be."""
    if data.vocabulary not in ("byte", "sentencepiece"):
        raise DataError(f"data.vocabulary is {data.vocabulary!r}: byte or sentencepiece was expected")
    if data.vocabulary == "sentencepiece" and data.vocabulary_size < 300:
        raise DataError(
            f"data.vocabulary_size is {data.vocabulary_size}: a SentencePiece vocabulary of 300 tokens or more is "
            "needed, 256 of them being bytes; set it to 4096, say"
        )
    # Only SentencePiece has a size to choose, so that a byte cache is not made twice.
    size = int(data.vocabulary_size) if data.vocabulary == "sentencepiece" else 0
    wanted = Request(str(data.corpus), data.vocabulary, size, float(data.validation_fraction))
    if wanted.kind == "synthetic" and size:
        raise DataError(f"corpus {wanted.corpus} has a vocabulary of its own: data.vocabulary=byte was expected")
    return wanted


def unknown_corpus(name: str) -> str:
    near = difflib.get_close_matches(name, NAMES, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"unknown corpus {name!r}{hint or ':'} data.corpus is one of {', '.join(NAMES)}, the path of a text or .jsonl "
        "file, seqio:[MODULE:]TASK or cache:DIRECTORY"
    )


def texts(wanted: Request) -> Iterator[str]:
    """The texts of an installed corpus or a file, in no promised order, duplicates included."""
    if wanted.corpus == "pydocs":
        yield from _pydocs()
    elif wanted.kind == "installed":
        for path in source_files(wanted.corpus):
            text = _source(path)
            if text is not None:
                yield text
    else:
        yield from _file(Path(wanted.corpus))


def fingerprint(wanted: Request) -> str:
    """What tells one state of a corpus's source from another without reading it: names, sizes and times of its files.

    It names a cache on this machine and is no identity: that is the digest of the contents, which the cache holds. A
    seqio task is known by its name alone, so its cache has to be deleted when the task's text has changed.
    """
    if wanted.kind == "installed":
        files = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in source_files(wanted.corpus)]
        state = [sys.version, files]
    elif wanted.kind == "file":
        path = _existing(Path(wanted.corpus)).resolve()
        state = [str(path), path.stat().st_size, path.stat().st_mtime_ns]
    else:
        state = []
    return hashlib.sha256(canonical({"request": vars(wanted), "state": state})).hexdigest()


def source_files(corpus: str) -> list[Path]:
    """Python files of the standard library, and of all installed packages for `pysource-all`; sorted."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [path for path in _python_files(library) if not path.name.startswith("_sysconfigdata")]
    if corpus == "pysource-all":
        for packages in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
            found += sorted(p for p in Path(packages).rglob("*.py") if not p.name.startswith("__editable__"))
    return found


def _python_files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            if path.name not in _LEFT_OUT and not path.name.startswith("config-"):
                yield from _python_files(path)
        elif path.suffix == ".py":
            yield path


def _source(path: Path) -> str | None:
    """A source file's text under the encoding that it declares; None for the few that declare it wrongly."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return None


def _pydocs() -> Iterator[str]:
    seen: set[str] = set()
    for path in source_files("pydocs"):
        text = _source(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text or "")
        except SyntaxError:
            continue
        if path.parts[-2:] == ("pydoc_data", "topics.py"):
            yield from _topics(tree)
            continue
        docstrings = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, _DOCUMENTED))
        new = [docstring for docstring in docstrings if docstring and docstring not in seen]
        seen.update(new)
        if new:
            yield "\n\n".join(dict.fromkeys(new)) + "\n"


def _topics(tree: ast.Module) -> Iterator[str]:
    """The values of the literal `topics = {...}`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ast.literal_eval(node.value).values()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"no file {path}: data.corpus names a text file there; give the path of one, or pydocs")
    return path


def _file(path: Path) -> Iterator[str]:
    content = _existing(path).read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}; UTF-8 text was expected, "
            "convert the file (iconv -t UTF-8)"
        ) from None
    yield from _jsonl(path, text) if path.suffix == ".jsonl" else _paragraphs(text)


def _jsonl(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {number} is not JSON ({error.msg}): one object a line was expected") from None
        if not isinstance(document, dict) or not isinstance(document.get("text"), str):
            raise DataError(f'{path} line {number} has no string under "text": {{"text": "..."}} was expected')
        yield document["text"]


def _paragraphs(text: str) -> Iterator[str]:
    gathered, size = [], 0
    for line in text.splitlines(keepends=True):
        gathered.append(line)
        size += len(line)
        if not line.strip() and size >= PARAGRAPHS_CHARACTERS:
            yield "".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield "".join(gathered)
