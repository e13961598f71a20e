"""Sweeps: axes to runs, runs to packs, packs to a results table."""
