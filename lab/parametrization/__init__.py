"""Parametrizations: from a weight's record to its initial scale, forward multiplier, learning rate and weight decay."""

from lab.parametrization.scales import Scales, register, scales

__all__ = ["Scales", "register", "scales"]
