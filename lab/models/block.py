"""One layer: pre-norm attention and MLP branches, each added to the residual stream."""

from __future__ import annotations

import flax.linen as nn

from lab.models.architecture import Architecture
from lab.models.attention import Attention
from lab.models.mlp import Mlp
from lab.models.norm import Norm


class Block(nn.Module):
    """A scan step over the residual stream [batch * length, width]; the scalars multiply branches and scores."""

    architecture: Architecture
    length: int

    @nn.compact
    def __call__(self, x_ND, scalars):
        a = self.architecture
        residual = scalars["residual"].astype(x_ND.dtype)
        normed = Norm(a.norm, a.norm_epsilon, "embed", name="attention_norm")(x_ND)
        x_ND = x_ND + residual * Attention(a, name="attention")(normed, self.length, scalars["attention"])
        normed = Norm(a.norm, a.norm_epsilon, "embed", name="mlp_norm")(x_ND)
        return x_ND + residual * Mlp(a, name="mlp")(normed), None
