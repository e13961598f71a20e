"""Experiments that train nothing: a paper's law fitted again to the measurements that were published with it."""

from __future__ import annotations

from importlib import import_module

MODULES = (
    "annealing_law",
    "chinchilla_replication",
    "cooldown",
    "data_constrained",
    "discrepancies",
    "gemstones",
    "marin",
    "misfitting",
    "multi_power_law",
    "observational",
    "openclip",
    "regmix",
    "step_law",
    "vocabulary",
)

EXPERIMENTS = [experiment for name in MODULES for experiment in import_module(f"experiments.{name}").EXPERIMENTS]
