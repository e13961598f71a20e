"""The attention layer: projections of flattened tokens, QK-norm, RoPE, causal attention."""

from __future__ import annotations

import flax.linen as nn

from lab.models import weight
from lab.models.architecture import Architecture
from lab.models.attend import attend
from lab.models.norm import Norm
from lab.models.rotary import rotate


class Attention(nn.Module):
    """[batch * length, width] to the same; `scale` multiplies the scores beside 1/sqrt(head width)."""

    architecture: Architecture

    def _project(self, name: str, heads_name: str, heads: int, x_ND, length: int):
        a = self.architecture
        axes = {"embed": a.width, heads_name: heads, "head_width": a.head_width}
        w = weight.declare(self, name, axes, role="hidden", fan_in=(0,), fan_out=(1, 2), width=(0, 1, 2))
        flat = x_ND @ w.reshape(a.width, heads * a.head_width).astype(x_ND.dtype)
        return flat.reshape(-1, length, heads, a.head_width).transpose(0, 2, 3, 1)

    @nn.compact
    def __call__(self, x_ND, length: int, scale):
        a = self.architecture
        q_BHdT = self._project("query", "heads", a.heads, x_ND, length)
        k_BKdT = self._project("key", "kv_heads", a.kv_heads, x_ND, length)
        v_BKdT = self._project("value", "kv_heads", a.kv_heads, x_ND, length)
        if a.qk_norm:
            q_BHdT = Norm("rms", a.norm_epsilon, "head_width", axis=-2, name="query_norm")(q_BHdT)
            k_BKdT = Norm("rms", a.norm_epsilon, "head_width", axis=-2, name="key_norm")(k_BKdT)
        q_BHdT = q_BHdT * (scale * a.head_width**-0.5).astype(x_ND.dtype)
        mixed_BHdT = attend(rotate(q_BHdT, a.rope_base), rotate(k_BKdT, a.rope_base), v_BKdT)
        axes = {"heads": a.heads, "head_width": a.head_width, "embed": a.width}
        w = weight.declare(self, "out", axes, role="residual", fan_in=(0, 1), fan_out=(2,), width=(0, 1, 2))
        flat = (a.heads * a.head_width, a.width)
        return mixed_BHdT.transpose(0, 3, 1, 2).reshape(-1, flat[0]) @ w.reshape(flat).astype(x_ND.dtype)
