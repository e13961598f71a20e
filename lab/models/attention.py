"""The attention layer: projections of flattened tokens, QK-norm, RoPE, causal attention by `kernels_pallas`."""

from __future__ import annotations

import flax.linen as nn
import jax

from kernels_pallas.flash_attention import flash_attention
from lab.models.architecture import Architecture
from lab.models.axes import free_axes, heads_spec
from lab.models.linear import linear
from lab.models.norm import Norm
from lab.models.rotary import rotate
from lab.models.scaling import scale, tap


def attend(q_BHdT, k_BKdT, v_BKdT):
    """Causal attention [batch, heads, head_width, length]; q carries the scale of its scores.

    Each of the K key-value heads serves H / K query heads, which are adjacent. Where tracing sees a mesh
    (`jax.sharding.use_abstract_mesh`), each device attends with its own sequences and heads: XLA splits no kernel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = free_axes(mesh)
    if mesh.size == 1 or not free:
        return _attend(q_BHdT, k_BKdT, v_BKdT)
    spec = heads_spec(mesh, batch=q_BHdT.shape[0], kv_heads=k_BKdT.shape[1])
    split = jax.shard_map(_attend, in_specs=spec, out_specs=spec, axis_names=free, check_vma=False)
    return split(q_BHdT, k_BKdT, v_BKdT)


def _attend(*time_last):
    # Time is the minor axis here because a CPU is faster so; its form of attention turns the arrays back for nothing.
    q_BTHd, k_BTKd, v_BTKd = (x.transpose(0, 3, 1, 2) for x in time_last)
    return flash_attention(q_BTHd, k_BTKd, v_BTKd, scale=1.0, is_causal=True).transpose(0, 2, 3, 1)


class Attention(nn.Module):
    """[batch * length, width] to the same.

    Multipliers: `attention` of the scores beside 1/sqrt(head width), `mixed` of the mixed values, `query_gradient` of
    the gradients of queries and keys, undone below their projections.
    """

    architecture: Architecture

    def _project(self, name: str, heads_name: str, heads: int, x_ND, length: int):
        a = self.architecture
        axes = {"embed": a.width, heads_name: heads, "head_width": a.head_width}
        rest = {"role": "hidden", "fan_in": (0,), "fan_out": (1, 2), "width": (0, 1, 2), "precision": a.precision}
        flat = linear(self, name, x_ND, axes, **rest)
        return flat.reshape(-1, length, heads, a.head_width).transpose(0, 2, 3, 1)

    @nn.compact
    def __call__(self, x_ND, length: int, multipliers):
        a = self.architecture
        factor = multipliers["query_gradient"]
        compared_ND = scale(x_ND, 1.0, 1 / factor)
        q_BHdT = self._project("query", "heads", a.heads, compared_ND, length)
        k_BKdT = self._project("key", "kv_heads", a.kv_heads, compared_ND, length)
        v_BKdT = self._project("value", "kv_heads", a.kv_heads, x_ND, length)
        if a.qk_norm:
            q_BHdT = Norm("rms", a.norm_epsilon, "head_width", axis=-2, name="query_norm")(q_BHdT)
            k_BKdT = Norm("rms", a.norm_epsilon, "head_width", axis=-2, name="key_norm")(k_BKdT)
        q_BHdT, k_BKdT = (rotate(scale(x, 1.0, factor), a.rope_base) for x in (q_BHdT, k_BKdT))
        q_BHdT = q_BHdT * (multipliers["attention"] * a.head_width**-0.5).astype(x_ND.dtype)
        mixed_BHdT = attend(tap(self, "scaled_query", q_BHdT), tap(self, "compared_key", k_BKdT), v_BKdT)
        mixed_ND = mixed_BHdT.transpose(0, 3, 1, 2).reshape(-1, a.heads * a.head_width)
        mixed_ND = mixed_ND * multipliers["mixed"].astype(x_ND.dtype)
        axes = {"heads": a.heads, "head_width": a.head_width, "embed": a.width}
        rest = {"role": "residual", "fan_in": (0, 1), "fan_out": (2,), "width": (0, 1, 2), "precision": a.precision}
        return linear(self, "out", mixed_ND, axes, **rest)
