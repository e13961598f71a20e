"""The feed-forward layer, plain or gated (GLU variants, arXiv:2002.05202)."""

from __future__ import annotations

import flax.linen as nn
import jax

from lab.models.architecture import Architecture
from lab.models.linear import linear

ACTIVATIONS = {"gelu": jax.nn.gelu, "silu": jax.nn.silu, "relu": jax.nn.relu}  # gelu is the tanh form


class Mlp(nn.Module):
    """[tokens, width] to the same: out(act(up(x))), or gated out(act(gate(x)) * up(x)).

    Multipliers: `activation` of what enters act, `activated` of what leaves it, gated or not.
    """

    architecture: Architecture

    def _into(self, name: str, x_ND):
        a = self.architecture
        axes = {"embed": a.width, "mlp": a.mlp_width}
        rest = {"role": "hidden", "fan_in": (0,), "fan_out": (1,), "width": (0, 1), "precision": a.precision}
        return linear(self, name, x_ND, axes, **rest)

    @nn.compact
    def __call__(self, x_ND, multipliers):
        a = self.architecture
        act = ACTIVATIONS[a.activation]
        enters = multipliers["activation"].astype(x_ND.dtype)
        if a.gated:
            hidden = act(self._into("gate", x_ND) * enters) * self._into("up", x_ND)
        else:
            hidden = act(self._into("up", x_ND) * enters)
        hidden = hidden * multipliers["activated"].astype(x_ND.dtype)
        axes = {"mlp": a.mlp_width, "embed": a.width}
        rest = {"role": "residual", "fan_in": (0,), "fan_out": (1,), "width": (0, 1), "precision": a.precision}
        return linear(self, "out", hidden, axes, **rest)
