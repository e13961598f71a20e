"""Delta rule: plain, with a decay per head (Gated DeltaNet) or per channel (Kimi Delta Attention)."""

from kernels_pallas.delta_rule.api import delta_rule, step

__all__ = ["delta_rule", "step"]
