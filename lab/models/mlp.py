"""The feed-forward layer, plain or gated (GLU variants, arXiv:2002.05202)."""

from __future__ import annotations

import flax.linen as nn
import jax

from lab.models import weight
from lab.models.architecture import Architecture

ACTIVATIONS = {"gelu": jax.nn.gelu, "silu": jax.nn.silu, "relu": jax.nn.relu}  # gelu is the tanh form


class Mlp(nn.Module):
    """[tokens, width] to the same: out(act(up(x))), or gated out(act(gate(x)) * up(x))."""

    architecture: Architecture

    def _into(self, name: str, x_ND):
        a = self.architecture
        axes = {"embed": a.width, "mlp": a.mlp_width}
        w = weight.declare(self, name, axes, role="hidden", fan_in=(0,), fan_out=(1,), width=(0, 1))
        return x_ND @ w.astype(x_ND.dtype)

    @nn.compact
    def __call__(self, x_ND):
        a = self.architecture
        act = ACTIVATIONS[a.activation]
        if a.gated:
            hidden = act(self._into("gate", x_ND)) * self._into("up", x_ND)
        else:
            hidden = act(self._into("up", x_ND))
        axes = {"mlp": a.mlp_width, "embed": a.width}
        w = weight.declare(self, "out", axes, role="residual", fan_in=(0,), fan_out=(1,), width=(0, 1))
        return hidden @ w.astype(x_ND.dtype)
