"""Config nodes of corpora small enough to be made for each test run."""

from __future__ import annotations

from types import SimpleNamespace

SYNTHETIC = "synthetic:documents=64,document_tokens=64,alphabet=8"
TEXTS = [f"Document {i}:\n\tümlaut, {'x' * (i % 7)} und Ende." for i in range(60)]


def settings(corpus=SYNTHETIC, vocabulary="byte", size=0, fraction=0.1) -> SimpleNamespace:
    """A `data` node."""
    return SimpleNamespace(corpus=corpus, vocabulary=vocabulary, vocabulary_size=size, validation_fraction=fraction)
