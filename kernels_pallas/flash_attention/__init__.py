"""Softmax attention."""

from kernels_pallas.flash_attention.api import flash_attention

__all__ = ["flash_attention"]
