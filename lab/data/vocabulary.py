"""Vocabularies: bytes, or SentencePiece trained on the corpus itself. Identifiers 0, 1, 2 are padding, EOS, unknown.

Bytes are 3 to 258, as in seqio.ByteVocabulary (ByT5, Xue et al. 2022).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from lab.data.corpora import Request
from lab.errors import DataError

MODEL = "vocabulary.model"
BYTE_SIZE = 259
TRAINING_LINES = 200_000


def padded(size: int) -> int:
    """The size to give a model: the next multiple of 8."""
    return -(-size // 8) * 8


def describe(texts: Sequence[str], wanted: Request, directory: Path | None = None) -> dict:
    """The vocabulary of `wanted` for these training texts; a trained one is written to `directory`, where given."""
    if wanted.vocabulary == "byte":
        return {"kind": "byte", "size": BYTE_SIZE}
    model = _train_sentencepiece(texts, wanted)
    if directory is not None:
        (directory / MODEL).write_bytes(model)
    return {"kind": "sentencepiece", "size": wanted.vocabulary_size, "model_sha256": hashlib.sha256(model).hexdigest()}


def _train_sentencepiece(texts: Sequence[str], wanted: Request) -> bytes:
    """The model trained on the lines of the texts.

    Nothing is normalised, and what has no piece of its own falls back to bytes, so that text is kept to the byte. At
    most 200,000 lines, evenly spaced, on one thread: the same text gives the same vocabulary.
    """
    import sentencepiece

    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    lines = lines[:: -(-len(lines) // TRAINING_LINES) or 1]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=wanted.vocabulary_size,
            model_type="unigram",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1].strip().splitlines()[0].rstrip(".")
        raise DataError(
            f"no SentencePiece vocabulary of {wanted.vocabulary_size} tokens can be had from corpus {wanted.corpus} "
            f"({reason}); lower data.vocabulary_size or take data.vocabulary=byte"
        ) from None
    return model.getvalue()
