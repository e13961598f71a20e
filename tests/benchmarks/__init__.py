"""Measured ratios against named alternatives, by hand: `python -m tests.benchmarks.NAME`; never part of a test run."""
