"""Configs, corpora and packs so small that a test takes seconds."""

import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from lab import data
from lab.config import default_config, override, validate, with_vocabulary
from lab.train.pack import Member, Pack

CORPUS = "synthetic:alphabet=5,documents=300,document_tokens=60"
SMALL = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.kv_heads": 2,
    "model.mlp_width": 32,
    "model.qk_norm": False,
    "model.sequence_length": 16,
    "data.corpus": CORPUS,
    "run.horizon_tokens": 1024,
    "run.batch_tokens": 128,
    "evaluation.points": 3,
    "evaluation.first_tokens": 256,
    "evaluation.sequences": 8,
    "execution.microbatch_tokens": 128,
    "execution.noise_probe_ticks": 3,
    "execution.checkpoint_seconds": 0.0,
    "execution.mesh.run": 1,
}


@functools.cache
def corpus():
    """The corpus of `SMALL`, prepared once for a test process."""
    root = tempfile.TemporaryDirectory(prefix="windtunnel-test-")
    found = data.prepare(base().data, Path(root.name))
    found.batch("train", 0, 16, 0, 1), found.batch("validation", 0, 16, 0, 1)  # both splits are in memory from here on
    root.cleanup()
    return found


def base():
    return override(default_config(), SMALL)


def config(**changes):
    """The small config under dotted changes, written with "__" for the dot."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return with_vocabulary(validate(override(base(), dotted)), corpus().vocab_size)


def pack(*configs, start=True):
    """A pack of these configs, its members named "0", "1" and so on."""
    made = Pack([Member.of(str(i), cfg) for i, cfg in enumerate(configs)], corpus())
    if start:
        made.start()
    return made


def advance(made, ticks, chunk=64):
    """Metrics [slots, ticks, METRICS] of the next ticks."""
    lines = []
    while ticks:
        count = min(ticks, chunk)
        lines.append(np.asarray(made.advance(count))[:, :count])
        ticks -= count
    return np.concatenate(lines, axis=1)


def state_of(made, run):
    """The state of one member, as numpy."""
    slot = made.slots.index(run)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[slot], made.state)


def assert_same(found, expected):
    """Every leaf to the bit."""
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_close(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


@pytest.fixture
def quickly_compiled():
    """Compilation in half the time, for tests that compare no bits of differently compiled programs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
