"""A dense layer of flattened tokens: a declared weight and its scaled product."""

from __future__ import annotations

import math

import flax.linen as nn

from lab.models import weight
from lab.models.scaling import product, tap


def linear(
    module: nn.Module,
    name: str,
    x_NI,
    axes: dict[str, int],
    *,
    role: str,
    fan_in: tuple[int, ...],
    fan_out: tuple[int, ...],
    width: tuple[int, ...],
    precision: str,
    dtype=None,
):
    """[tokens, fan_in] -> [tokens, fan_out] by weight `name` of the module, whose fan-in axes come first.

    Outer products of the sizes of several axes are flattened. `precision` names a policy of `lab.models.precision`,
    `dtype` is that of the result (x's). Input and output are tapped as `name.in` and `name.out`.
    """
    w = weight.bare(module, name, axes, role=role, fan_in=fan_in, fan_out=fan_out, width=width)
    sizes = list(axes.values())
    flat = w.reshape(math.prod(sizes[: len(fan_in)]), math.prod(sizes[len(fan_in) :]))
    x_NI = tap(module, f"{name}.in", x_NI)
    return tap(module, f"{name}.out", product(x_NI, flat, weight.factors(module, name), precision, dtype))
