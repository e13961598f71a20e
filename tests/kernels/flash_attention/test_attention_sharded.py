"""Attention over eight emulated devices is attention on one; keys go round a ring, and no further than a window."""

import functools

import attention_draws as draws
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from kernels_pallas.flash_attention import flash_attention, sharded_flash_attention

AXES = {"batch_axis": "data", "heads_axis": "model", "sequence_axis": "sequence"}


def mesh(*shape):
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), ("data", "model", "sequence"))


@pytest.mark.parametrize(
    "shape, options, bias, sinks, segments",
    [
        ((2, 1, 4), {"is_causal": True}, None, False, 0),
        ((1, 2, 4), {"local_window_size": (20, 40), "first_tokens": 5}, (2, 4), True, 3),
        pytest.param((2, 2, 2), {"is_causal": True, "logits_soft_cap": 3.0}, (1, 1), True, 0, marks=pytest.mark.long),
        pytest.param((1, 1, 8), {"is_causal": True, "local_window_size": 20}, None, True, 4, marks=pytest.mark.long),
        pytest.param((1, 1, 8), {}, (1, 4), False, 4, marks=pytest.mark.long),
        pytest.param(
            (1, 1, 8),
            {"is_causal": True, "local_window_size": 20, "first_tokens": 7},
            None,
            False,
            2,
            marks=pytest.mark.long,
        ),
    ],
)
def test_equals_one_device(shape, options, bias, sinks, segments):
    found, ids, cotangents = draws.arrays((2, 96, 96, 4, 2, 8), None, bias, sinks, segments)
    run = functools.partial(draws.results, found=found, ids=ids, cotangents=cotangents, options=options)
    with jax.enable_x64(True):
        one = run(flash_attention, dtype=jnp.float64)
        many = run(functools.partial(sharded_flash_attention, mesh=mesh(*shape), **AXES), dtype=jnp.float64)
    assert max(draws.errors(many, one).values()) < 1e-12


def test_a_window_ends_the_ring():
    """A shard of 12 queries with a window of 12 before it sees one neighbour: one passage of each array."""
    x = jax.ShapeDtypeStruct((1, 96, 2, 8), jnp.float32)
    over = functools.partial(sharded_flash_attention, mesh=mesh(1, 1, 8), sequence_axis="sequence", is_causal=True)

    def passages(**options):
        return jax.jit(functools.partial(over, **options)).lower(x, x, x).as_text().count('collective_permute"')

    assert passages(local_window_size=12) == 2 and passages() == 2 * 7


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sequence_axis": "time"}, "mesh: found axes .*, expected one named 'time'"),
        ({"batch_axis": "sequence"}, "B: found 2, expected a multiple of the 4 devices on 'sequence'"),
        ({"sequence_axis": "sequence", "local_window_size": 4, "first_tokens": 25}, "first_tokens: found 25, expected"),
    ],
)
def test_refusals(options, message):
    x = jnp.zeros((2, 96, 2, 8))
    with pytest.raises(ValueError, match=message):
        sharded_flash_attention(x, x, x, mesh=mesh(1, 2, 4), **options)
