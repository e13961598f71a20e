"""The wrapper on eight emulated devices, and what it sends."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gla_problem import problem
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kernels_pallas.gated_linear_attention import gated_linear_attention, sharded_gated_linear_attention

NAMES = ("q", "k", "v", "g", "initial_state")


def arrays(**sizes):
    made = problem(batch=2, heads=4, k=8, v=8, segments=True, **sizes)
    return {n: jnp.asarray(made[n], jnp.float32) for n in NAMES}, jnp.asarray(made["segment_ids"])


def value_and_gradients(function, ids, **options):
    def loss(x):
        o, final = function(**x, segment_ids=ids, output_final_state=True, **options)
        return jnp.sum(jnp.sin(o)) + jnp.sum(jnp.sin(final)), (o, final)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize(
    "gate, shape, axes",
    [
        ("vector", (2, 4), {"batch_axis": "a", "sequence_axis": "b"}),
        ("scalar", (2, 4), {"heads_axis": "a", "sequence_axis": "b"}),
    ],
    ids=str,
)
def test_devices_together_give_what_one_gives(gate, shape, axes):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("a", "b"))
    x, ids = arrays(length=256, gate=gate, decay=0.05)
    ids = ids.at[:, 64:].add(5 * (jnp.arange(192) >= 64))  # a segment ends between two devices, and inside others
    ours = value_and_gradients(sharded_gated_linear_attention, ids, mesh=mesh, **axes)(x)
    alone = value_and_gradients(gated_linear_attention, ids)(x)
    for found, want in zip(jax.tree.leaves(ours), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5 * float(jnp.abs(want).max()))


def sent(length: int) -> dict[str, int]:
    """Elements that each kind of collective of the value-and-gradient program gives, from its HLO."""
    mesh = Mesh(np.array(jax.devices()), ("s",))
    x, ids = arrays(length=length, gate="scalar", decay=0.05)
    program = value_and_gradients(sharded_gated_linear_attention, ids, mesh=mesh, sequence_axis="s")
    tokens, whole = NamedSharding(mesh, P(None, "s")), NamedSharding(mesh, P())
    placed = {n: jax.device_put(a, whole if n == "initial_state" else tokens) for n, a in x.items()}
    hlo = program.lower(placed).compile().as_text()
    found: dict[str, int] = {}
    pattern = r"= \(?\w+\[([\d,]*)\][^=]*? (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\("
    for dims, kind in re.findall(pattern, hlo):
        found[kind] = found.get(kind, 0) + int(np.prod([int(d) for d in dims.split(",") if d]))
    return found


def test_what_is_sent_along_the_sequence_does_not_depend_on_its_length():
    short, long = sent(256), sent(1024)
    assert short == long and set(short) >= {"all-gather", "reduce-scatter"}
    state_and_decay = 2 * 4 * 8 * 9
    assert short["all-gather"] == 8 * (state_and_decay + 2 * 2)  # and the first and last segment of each device
    assert short["reduce-scatter"] == state_and_decay
    assert "all-to-all" not in short and "collective-permute" not in short


def test_axes_that_do_not_fit_are_named():
    mesh = Mesh(np.array(jax.devices()), ("s",))
    x = np.zeros((2, 12, 4, 8), np.float32)
    with pytest.raises(ValueError, match="sequence_axis: found 'z', expected one of the mesh's axes, s"):
        sharded_gated_linear_attention(x, x, x, mesh=mesh, sequence_axis="z")
    with pytest.raises(ValueError, match="sequence_axis: found 12, expected a multiple of 8"):
        sharded_gated_linear_attention(x, x, x, mesh=mesh, sequence_axis="s")
