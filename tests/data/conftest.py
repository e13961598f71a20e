"""Corpora small enough to be made for each test run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lab import data

SYNTHETIC = "synthetic:documents=64,document_tokens=64,alphabet=8"


def pytest_configure(config):
    config.addinivalue_line("markers", "tensorflow: prepares text, which loads TensorFlow in a process of its own")


def settings(corpus: str = SYNTHETIC, vocabulary: str = "byte", size: int = 0, fraction: float = 0.1) -> SimpleNamespace:
    return SimpleNamespace(
        corpus=corpus, vocabulary=vocabulary, vocabulary_size=size, validation_fraction=fraction
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return data.prepare(settings(), tmp_path_factory.mktemp("cache"))
