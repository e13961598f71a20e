"""What kernels do, counted from their jaxprs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def inner_jaxprs(equation):
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


def pallas_calls(jaxpr):
    """The equation of every pallas_call, however deep."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for inner in inner_jaxprs(equation):
                yield from pallas_calls(inner)


def work(jaxpr):
    """(FLOPs of matrix products, exponentials): every branch, a loop's body as often as it runs.

    Asserts of each product that it pins its precision: all of it, unless the operands are bfloat16.
    """
    flops = exponentials = 0
    for equation in jaxpr.eqns:
        size = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "dot_general":
            ((axis,), _), _ = equation.params["dimension_numbers"]
            flops += 2 * size * equation.invars[0].aval.shape[axis]
            exact = equation.invars[0].aval.dtype != jnp.bfloat16
            expected = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
            assert equation.params["precision"] == (expected, expected)
        exponentials += size * (equation.primitive.name == "exp")
        for inner in inner_jaxprs(equation):
            more, times = work(inner), equation.params.get("length", 1)
            flops, exponentials = flops + times * more[0], exponentials + times * more[1]
    return flops, exponentials


def assert_costs_are_declared(call):
    """The cost estimate of a pallas_call whose programs are all alike and see each array once."""
    cost, programs = call.params["cost_estimate"], math.prod(call.params["grid_mapping"].grid)
    flops, exponentials = work(call.params["jaxpr"])
    assert (cost.flops, cost.transcendentals) == (programs * flops, programs * exponentials)
    assert cost.bytes_accessed == sum(x.aval.size * x.aval.dtype.itemsize for x in (*call.invars, *call.outvars))
