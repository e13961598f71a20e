"""The selective scan of Mamba-1."""

from kernels_pallas.selective_scan.api import selective_scan, step
from kernels_pallas.selective_scan.sharded import sharded_selective_scan

__all__ = ["selective_scan", "sharded_selective_scan", "step"]
