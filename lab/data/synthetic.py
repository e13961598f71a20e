"""A source whose irreducible loss is known: documents from a random Markov chain.

Symbols are drawn by a first-order chain with random transition weights; after each symbol the document ends with a
probability of about one over the mean length, and the end (EOS) is one more state of the chain, from which the next
document starts. So the stream of documents is itself one stationary first-order chain over the symbols and EOS.
A window of the stream always contains the token before each one that it predicts, hence the best possible expected
loss is the same at every position, the first of a window and those at document boundaries included, and equals
the entropy rate  -sum_s pi_s sum_t P_st ln P_st  with pi the stationary distribution. EOS is predicted, and counted, as
any token. A model that ignores context can reach no less than the entropy of pi.

Two things that text gets would change that distribution, and are not done here: duplicates (short documents repeat by
chance) are kept, and documents are divided by number, not by content.

Weights and draws are integers, so that the stream is the same to the bit on every machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from lab.data.documents import SPLITS, content_hash
from lab.data.order import mix, words
from lab.errors import DataError

EOS = 1
FIRST_SYMBOL = 3
_DRAW_BITS = 40


@dataclass(frozen=True)
class Source:
    """Seed of the chain and of its draws, symbols in its alphabet, documents, mean tokens of one with its EOS."""

    seed: int = 0
    alphabet: int = 16
    documents: int = 4096
    document_tokens: int = 256

    @property
    def vocabulary_size(self) -> int:
        return FIRST_SYMBOL + self.alphabet


def parse(name: str) -> Source:
    """`synthetic` or `synthetic:seed=1,alphabet=8,documents=4096,document_tokens=256` (any of them)."""
    _, _, settings = name.partition(":")
    known = asdict(Source())
    values = {}
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        if key not in known or not value.isdigit():
            raise DataError(
                f"corpus {name}: found {setting!r}, expected one of {', '.join(f'{k}={v}' for k, v in known.items())}; "
                "mend data.corpus"
            )
        values[key] = int(value)
    source = Source(**values)
    if not 2 <= source.alphabet <= 64 or source.documents < 2 or source.document_tokens < 2:
        raise DataError(
            f"corpus {name}: 2 to 64 symbols, 2 documents and 2 tokens a document at least are needed; mend data.corpus"
        )
    return source


def weights(source: Source) -> np.ndarray:
    """Transition weights, int64 [1 + alphabet, 1 + alphabet]; state 0 is EOS, row sums stay below 2^23."""
    size = source.alphabet
    draws = mix(mix(words(source.seed)) ^ np.arange((size + 1) * size, dtype=np.uint64)) >> np.uint64(48)
    symbols = ((draws**4) >> np.uint64(48)).astype(np.int64).reshape(size + 1, size) + 1
    table = np.zeros((size + 1, size + 1), np.int64)
    table[:, 1:] = symbols
    table[1:, 0] = np.maximum(1, symbols[1:].sum(1) // (source.document_tokens - 1))
    return table


def transitions(source: Source) -> np.ndarray:
    """Transition probabilities, float64 [1 + alphabet, 1 + alphabet]."""
    table = weights(source)
    return table / table.sum(1, keepdims=True)


def stationary(matrix: np.ndarray) -> np.ndarray:
    """The distribution that `matrix` (rows sum to 1) leaves as it is."""
    size = len(matrix)
    system = np.vstack([matrix.T - np.eye(size), np.ones(size)])
    return np.linalg.lstsq(system, np.append(np.zeros(size), 1.0), rcond=None)[0]


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return -(probabilities * np.log(safe)).sum(-1)


def conditional_entropy(source: Source, context: int) -> float:
    """Nats per token that remain to a predictor that sees the `context` tokens before; constant from 1 on."""
    matrix = transitions(source)
    share = stationary(matrix)
    return float(_entropy(share)) if context == 0 else float(share @ _entropy(matrix))


def generate(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """(token ids uint8 [tokens], lengths int64 [documents]); the documents follow each other, each with its EOS."""
    table = weights(source)
    totals = table.sum(1).astype(np.uint64)
    cumulative = table.cumsum(1).astype(np.uint64)
    document_keys = mix(mix(words(source.seed) ^ np.uint64(0xA5A5A5A5)) ^ np.arange(source.documents, dtype=np.uint64))
    alive, state, step = np.arange(source.documents), np.zeros(source.documents, np.int64), 0
    owners, drawn = [], []
    while alive.size:
        draw = mix(document_keys[alive] + np.uint64(step)) >> np.uint64(64 - _DRAW_BITS)
        # Row sums stay below 2^23, so the product fits a 64-bit word.
        draw = (draw * totals[state]) >> np.uint64(_DRAW_BITS)
        state = (draw[:, None] >= cumulative[state]).sum(1)
        owners.append(alive)
        drawn.append(state)
        going = state > 0
        alive, state, step = alive[going], state[going], step + 1
    owner, symbol = np.concatenate(owners), np.concatenate(drawn)
    symbol = symbol[np.argsort(owner, kind="stable")]
    tokens = np.where(symbol == 0, EOS, symbol + FIRST_SYMBOL - 1).astype(np.uint8)
    return tokens, np.bincount(owner, minlength=source.documents)


def splits(source: Source, validation_fraction: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split to (tokens, document lengths); each split has at least one document."""
    tokens, lengths = generate(source)
    draws = mix(mix(words(source.seed) ^ np.uint64(0x5A5A5A5A)) ^ np.arange(source.documents, dtype=np.uint64))
    held = draws < np.uint64(int(validation_fraction * 2**64))
    held[np.argmin(draws)], held[np.argmax(draws)] = True, False
    chosen = {"train": ~held, "validation": held}
    return {split: (tokens[np.repeat(chosen[split], lengths)], lengths[chosen[split]]) for split in SPLITS}


def identity(source: Source, validation_fraction: float) -> tuple[dict, dict[str, str]]:
    """(description of the vocabulary, digest of each split's tokens)."""
    drawn = splits(source, validation_fraction)
    digests = {split: content_hash(tokens.tobytes()).hex() for split, (tokens, _) in drawn.items()}
    return {"kind": "symbols", "size": source.vocabulary_size}, digests
