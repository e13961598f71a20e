"""The delta rule over eight emulated devices is the delta rule on one, and says little between them."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest
from delta_rule_problems import cast, errors, problem, value_and_grads, weights
from jax.sharding import Mesh

from kernels_pallas.delta_rule import delta_rule, sharded_delta_rule

AXES = {"batch_axis": "data", "heads_axis": "model", "sequence_axis": "sequence"}


def mesh(*shape):
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), ("data", "model", "sequence"))


@pytest.mark.parametrize(
    ("shape", "gate"),
    [((2, 1, 4), "head"), pytest.param((2, 2, 2), "channel", marks=pytest.mark.long)],
)
def test_equals_one_device(shape, gate):
    operands = cast(problem(B=2, T=64, gate=gate), np.float32)
    settings = {"output_final_state": True, "block_sizes": {"chunk": 16}}
    one = value_and_grads(functools.partial(delta_rule, **settings), operands, weights(operands))
    over = functools.partial(sharded_delta_rule, mesh=mesh(*shape), **AXES, **settings)
    many = value_and_grads(over, operands, weights(operands))
    assert max(jax.tree.leaves(errors(many, jax.tree.map(np.asarray, one)))) < 3e-6


def collectives(length):
    """Bytes of each collective of value and gradient."""
    operands = cast(problem(T=length, K=8, V=8), np.float32)
    over = functools.partial(
        sharded_delta_rule,
        mesh=Mesh(np.array(jax.devices()), "sequence"),
        sequence_axis="sequence",
        output_final_state=True,
        block_sizes={"chunk": 16},
    )
    hlo = value_and_grads.lower(over, operands, weights(operands)).compile().as_text()
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf"= \(?(\w+\[[\d,]*\]).* ({kinds})\(", hlo)
    return sorted(f"{opcode} {shape}" for shape, opcode in found)


def test_communication_does_not_depend_on_the_length():
    short, long = collectives(128), collectives(512)
    assert short == long
    assert any(line.startswith("all-gather") for line in short)


def test_refusals():
    operands = cast(problem(T=12, N=2), np.float32)
    for settings, message in (
        ({"sequence_axis": "sequence"}, "dimension T: found 12, expected a multiple of the 8 devices on 'sequence'"),
        ({"batch_axis": "pod"}, "mesh: found axes ('data', 'model', 'sequence'), expected one named 'pod'"),
    ):
        with pytest.raises(ValueError) as error:
            sharded_delta_rule(**operands, mesh=mesh(1, 1, 8), **settings)
        assert message in str(error.value)
