"""The synthetic source has the entropy that it states: against enumeration, power iteration and its own draws."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from lab import data
from lab.data import synthetic
from lab.data.synthetic import EOS, FIRST_SYMBOL, Source
from lab.errors import DataError

SOURCE = Source(seed=3, alphabet=5, documents=3000, document_tokens=40)


def states(tokens):
    return np.where(tokens == EOS, 0, tokens.astype(int) - FIRST_SYMBOL + 1)


def test_entropy_is_that_of_enumerated_sequences():
    """H(X1..X5) - H(X1..X4) over every sequence of a stationary start, which power iteration finds."""
    matrix = synthetic.transitions(SOURCE)
    start = np.linalg.matrix_power(matrix, 10_000)[0]

    def block_entropy(length):
        total = 0.0
        for path in itertools.product(range(len(matrix)), repeat=length):
            p = start[path[0]] * np.prod([matrix[a, b] for a, b in itertools.pairwise(path)])
            total -= p * np.log(p) if p > 0 else 0.0
        return total

    expected = block_entropy(5) - block_entropy(4)
    assert synthetic.conditional_entropy(SOURCE, context=1) == pytest.approx(expected, rel=1e-10)
    assert synthetic.conditional_entropy(SOURCE, context=7) == synthetic.conditional_entropy(SOURCE, context=1)
    assert synthetic.conditional_entropy(SOURCE, context=0) == pytest.approx(block_entropy(1), rel=1e-10)


def test_stream_of_each_split_has_that_entropy():
    """Mean surprise of the drawn tokens, document boundaries included, within four standard errors."""
    matrix, entropy = synthetic.transitions(SOURCE), synthetic.conditional_entropy(SOURCE, context=1)
    for split, (tokens, _) in synthetic.splits(SOURCE, 0.3).items():
        path = states(tokens)
        surprise = -np.log(matrix[path[:-1], path[1:]])
        # The variance of the sum, from blocks long against the chain's memory.
        blocks = surprise[: len(surprise) // 500 * 500].reshape(-1, 500).mean(1)
        assert abs(surprise.mean() - entropy) < 4 * blocks.std(ddof=1) / len(blocks) ** 0.5, split


def test_counted_transitions_are_the_stated_ones():
    tokens, lengths = synthetic.generate(SOURCE)
    path = states(tokens)
    counts = np.zeros((6, 6))
    np.add.at(counts, (path[:-1], path[1:]), 1)
    matrix, totals = synthetic.transitions(SOURCE), counts.sum(1, keepdims=True)
    errors = np.sqrt(matrix * (1 - matrix) / totals)
    assert (abs(counts / totals - matrix) <= 4.5 * errors + 1e-12).all()
    assert lengths.sum() == len(tokens) and (tokens[np.cumsum(lengths) - 1] == EOS).all()
    assert lengths.mean() == pytest.approx(40, rel=0.1)


def test_pinned():
    """Golden digest, made by this code on Python 3.11 and 3.12: integers only, so equal on every machine."""
    node = SimpleNamespace(corpus="synthetic", vocabulary="byte", vocabulary_size=0, validation_fraction=0.05)
    assert data.digest(node) == "aeeff2856125483fc4e60e1522ff400c461e8382a1ca259d5081893ed55f08ce"


def test_corpus_states_entropy_and_digest(corpus):
    source = synthetic.parse(corpus.name)
    assert corpus.entropy == synthetic.conditional_entropy(source, context=1)
    assert corpus.vocab_size == 16
    assert corpus.train_tokens + corpus.validation_tokens == len(synthetic.generate(source)[0])


@pytest.mark.parametrize("name", ["synthetic:letters=3", "synthetic:seed=x", "synthetic:alphabet=1"])
def test_settings_that_cannot_be(name):
    with pytest.raises(DataError, match="mend data.corpus"):
        synthetic.parse(name)
