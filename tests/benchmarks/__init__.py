"""Measured ratios against named alternatives, run by hand: `python -m tests.benchmarks.NAME`. Never part of a test run."""
