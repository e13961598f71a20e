"""Gated linear attention: chunked, with state in and out, on every platform."""

from kernels_pallas.gated_linear_attention.api import gated_linear_attention, step
from kernels_pallas.gated_linear_attention.sharded import sharded_gated_linear_attention

__all__ = ["gated_linear_attention", "sharded_gated_linear_attention", "step"]
