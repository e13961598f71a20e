"""Parameters from records and FLOPs from a jaxpr: the two things that closed-form counts are checked against.

They count any model, so they also are the counts of a kind that comes without closed forms.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.extend import core

from lab.models.registry import build
from lab.models.weight import is_record


def record_parameters(records: dict) -> dict[str, int]:
    """Counts {"non_embedding", "with_head", "total"} from the records of a model; see `lab.models.counts`."""
    roles: dict[str, int] = {}
    for record in jax.tree.leaves(records, is_leaf=is_record):
        roles[record.role] = roles.get(record.role, 0) + math.prod(record.shape)
    total = sum(roles.values())
    table, head = roles.get("embedding", 0), roles.get("readout", 0)
    return {"non_embedding": total - table - head, "with_head": total - (table if head else 0), "total": total}


def _dot_flops(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(equation) -> int:
    kernel = equation.invars[1].aval.shape
    features = equation.params["dimension_numbers"].rhs_spec[0]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[features]


def _equation_flops(equation) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        return _dot_flops(equation)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    if name == "cond":
        branches, platforms = equation.params["branches"], equation.params.get("branches_platforms")
        return _flops(branches[platforms.index(None)]) if platforms else max(map(_flops, branches))
    if name == "while":
        raise ValueError("a while loop's trip count is not in its jaxpr; expected scan, which states its length")
    inner = [_flops(value) for value in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr) if _is_jaxpr(value)]
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _is_jaxpr(value) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def _flops(jaxpr) -> int:
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def jaxpr_flops(function, *args) -> int:
    """FLOPs of the matrix products and convolutions of `function(*args)`, a multiply-add being 2; computes nothing.

    A scan's body counts as often as it runs, a cond as its dearest branch, or if platforms choose its branch as the
    one of plain operations. Raises ValueError for a while loop.
    """
    return _flops(jax.make_jaxpr(function)(*args))


class Measured:
    """Closed-form counts' stand-in for a kind that has none; see `lab.models.counts` for the conventions."""

    @staticmethod
    def parameters(config) -> dict[str, int]:
        return record_parameters(build(config).records())

    @staticmethod
    def flops_per_token(config) -> dict[str, int]:
        model, n = build(config), Measured.parameters(config)
        weights = jax.tree.map(
            lambda record: jax.ShapeDtypeStruct(record.shape, jnp.float32), model.records(), is_leaf=is_record
        )
        tokens = jax.ShapeDtypeStruct((1, config.sequence_length + 1), jnp.int32)
        train = jax.grad(lambda w, t: model.loss(w, t, {}, 0.0)[0])
        return {
            "non_embedding": 6 * n["non_embedding"],
            "with_head": 6 * n["with_head"],
            "with_attention": jaxpr_flops(train, weights, tokens) // config.sequence_length,
        }
