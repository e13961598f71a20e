"""Engines that carry a plan to machines."""
