"""Softmax attention."""

from kernels_pallas.flash_attention.api import flash_attention
from kernels_pallas.flash_attention.sharded import sharded_flash_attention

__all__ = ["flash_attention", "sharded_flash_attention"]
