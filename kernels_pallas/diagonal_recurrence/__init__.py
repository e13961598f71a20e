"""Diagonal linear recurrences: RG-LRU, HGRN, LRU and S5 in real form, exponential averages, minGRU; RWKV-4's WKV."""

from kernels_pallas.diagonal_recurrence.api import diagonal_recurrence, step
from kernels_pallas.diagonal_recurrence.sharded import sharded_diagonal_recurrence
from kernels_pallas.diagonal_recurrence.wkv import wkv, wkv_step

__all__ = ["diagonal_recurrence", "sharded_diagonal_recurrence", "step", "wkv", "wkv_step"]
