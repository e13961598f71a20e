"""Normalisation of one axis, in float32 or wider: RMSNorm (arXiv:1910.07467), LayerNorm (arXiv:1607.06450)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lab.models import weight


class Norm(nn.Module):
    """Takes and returns an array of the input's dtype. Kind "rms" has a gain, "layer" a gain and a bias.

    The features lie along `axis`, counted from the end; `axis_name` is its logical name.
    """

    kind: str
    epsilon: float
    axis_name: str
    axis: int = -1

    @nn.compact
    def __call__(self, x):
        axes = {self.axis_name: x.shape[self.axis]}
        shared = {"fan_out": (0,), "width": (0,)}
        along = (-1, *[1] * (-1 - self.axis))
        gain = weight.declare(self, "gain", axes, role="norm", **shared).reshape(along)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.kind == "layer":
            wide = wide - jnp.mean(wide, axis=self.axis, keepdims=True)
        y = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=self.axis, keepdims=True) + self.epsilon) * gain
        if self.kind == "layer":
            y = y + weight.declare(self, "bias", axes, role="bias", **shared).reshape(along)
        return y.astype(x.dtype)
