"""One layer: pre-norm attention and MLP branches, each added to the residual stream."""

from __future__ import annotations

import flax.linen as nn

from lab.models.architecture import Architecture
from lab.models.attention import Attention
from lab.models.mlp import Mlp
from lab.models.norm import Norm
from lab.models.scaling import scale, tap


class Block(nn.Module):
    """A scan step over the residual stream [batch * length, width].

    `factors` are this layer's residual factors, each [2], of its attention and its MLP: see `lab.models.model`.
    """

    architecture: Architecture
    length: int

    def _add(self, i: int, x_ND, factors, branch):
        entering = scale(x_ND, 1.0, factors["entry_gradient"][i])
        leaving = scale(branch(entering), factors["branch"][i], factors["branch_gradient"][i])
        return factors["skip"][i].astype(x_ND.dtype) * x_ND + leaving

    @nn.compact
    def __call__(self, x_ND, factors, multipliers):
        a = self.architecture
        norm = [Norm(a.norm, a.norm_epsilon, "embed", name=f"{name}_norm") for name in ("attention", "mlp")]
        attention, mlp = Attention(a, name="attention"), Mlp(a, name="mlp")
        x_ND = self._add(0, x_ND, factors, lambda x: attention(norm[0](x), self.length, multipliers))
        x_ND = self._add(1, x_ND, factors, lambda x: mlp(norm[1](x), multipliers))
        return tap(self, "residual", x_ND), None
