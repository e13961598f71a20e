"""What is cast on its way into a dense product, and how: a policy is one object, and `model.precision` names one.

Scale rules belong to the policy. Those here have none, because unit-scaled tensors need none; one that scales a tensor
into its format's range by its largest value of the moment, or gradients by a constant (loss scaling), casts and divides
by the scale again, and is added as `POLICIES["mine"] = Mine()`. Static factors of a weight's products (unit scaling,
muS) are the parametrization's. A scale that follows from earlier steps (delayed scaling) would need state, which no
policy has. Casts are emulated by rounding to the format and back, on every backend; the product itself stays in the
model's dtype.

No jax at import: `lab plan` checks names here.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol


class Policy(Protocol):
    """How operands of dense products are rounded. Kinds are "activation", "weight" and "gradient"."""

    def cast(self, x, kind: str):
        """x, of any shape, rounded as an operand of this kind; in x's dtype."""

    def format(self, kind: str) -> str | None:
        """The name of the format of a kind of operand; None where the policy leaves it as it is."""


@dataclasses.dataclass(frozen=True)
class Static:
    """Plain casts to one format for each kind, saturating at its largest number; None leaves operands as they are."""

    activation: str | None = None
    weight: str | None = None
    gradient: str | None = None

    def format(self, kind: str) -> str | None:
        return getattr(self, kind)

    def cast(self, x, kind: str):
        """To the nearest, ties to even. NaN stays NaN; infinity becomes the largest number.

        bfloat16 holds every value of FP8, not of float16: those are rounded again on their way back.
        """
        import jax.numpy as jnp

        name = self.format(kind)
        if name is None:
            return x
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # bfloat16 rounds float16's largest number up
        most = jnp.asarray(jnp.finfo(name).max, wide.dtype)
        return jnp.clip(wide, -most, most).astype(name).astype(x.dtype)


POLICIES: dict[str, Policy] = {
    "none": Static(),
    "fp16": Static("float16", "float16", "float16"),
    "fp8": Static("float8_e4m3fn", "float8_e4m3fn", "float8_e5m2"),  # as u-muP section 4.2: E5M2 for gradients
}
