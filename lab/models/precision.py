"""What is cast on its way into a dense product, and how: a policy is one object, and a model names one.

A policy has `cast(x, kind)`, kind being "activation", "weight" or "gradient"; it returns x's dtype, holding only values
that the format has. Scale rules belong to it: those here have none, because unit-scaled tensors need none.

A product is written of operands rounded to the format and back, which emulates it where the hardware has no such
products. Where it has, the compiler sees through that: compiled for tpu7x, the matrix unit's operands are FP8; for H200
they lie in memory as FP8, and the choice of the product is left to autotuning on the GPU (both static, no such chip at
hand).
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax.numpy as jnp

KINDS = ("activation", "weight", "gradient")


class Policy(Protocol):
    """How operands of dense products are rounded."""

    def cast(self, x, kind: str): ...

    def format(self, kind: str) -> str | None: ...


@dataclasses.dataclass(frozen=True)
class Static:
    """Plain casts to one format for each kind, saturating at its largest number; None leaves operands as they are."""

    activation: str | None = None
    weight: str | None = None
    gradient: str | None = None

    def format(self, kind: str) -> str | None:
        """The name of the format of a kind of operand."""
        return getattr(self, kind)

    def cast(self, x, kind: str):
        """x with the values of the kind's format, in x's dtype. NaN stays NaN; infinity becomes the largest number."""
        name = self.format(kind)
        if name is None:
            return x
        most = jnp.asarray(jnp.finfo(name).max, x.dtype)
        return jnp.clip(x, -most, most).astype(name).astype(x.dtype)


POLICIES: dict[str, Policy] = {
    "none": Static(),
    "fp16": Static("float16", "float16", "float16"),
    "fp8": Static("float8_e4m3fn", "float8_e4m3fn", "float8_e5m2"),  # as u-muP section 4.2: E5M2 for gradients
}
