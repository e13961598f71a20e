"""Delta rule: plain, with a decay per head (Gated DeltaNet) or per channel (Kimi Delta Attention)."""

from kernels_pallas.delta_rule.api import delta_rule, step
from kernels_pallas.delta_rule.sharded import sharded_delta_rule

__all__ = ["delta_rule", "sharded_delta_rule", "step"]
