"""Run by test_seqio in a process of its own, which loads TensorFlow once: builds caches, prints their paths as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import seqio
from small_corpora import TEXTS, settings

from lab.data import tasks
from lab.data.build import build_cache
from lab.data.corpora import request
from lab.errors import DataError


def main(root: Path) -> None:
    jsonl = root / "texts.jsonl"
    jsonl.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    wanted = {
        "byte": settings(str(jsonl), fraction=0.2),
        "sentencepiece": settings(str(jsonl), "sentencepiece", 300, 0.2),
        "task": settings("seqio:user_tasks:windtunnel_test_a", fraction=0.2),
        "task without EOS": settings("seqio:user_tasks:windtunnel_test_b", fraction=0.2),
        "mixture": settings("seqio:user_tasks:windtunnel_test_mixture", fraction=0.2),
        "too many pieces": settings(str(jsonl), "sentencepiece", 4096, 0.2),
        "unregistered": settings("seqio:windtunnel_pydoc", fraction=0.2),
        "no module": settings("seqio:no_such_module:x", fraction=0.2),
    }
    found = {}
    for name, node in wanted.items():
        try:
            found[name] = str(build_cache(request(node), root, lambda line: None))
        except DataError as error:
            found[name] = f"DataError: {error}"
    vocabulary = seqio.SentencePieceVocabulary(str(Path(found["sentencepiece"]) / "vocabulary.model"))
    found["decoded"] = [vocabulary.decode(vocabulary.encode(text)) for text in TEXTS]
    registered = tasks.find("seqio:windtunnel_pydocs")
    found["registered"] = [registered.name, sorted(registered.splits)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
