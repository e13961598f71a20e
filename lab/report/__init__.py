"""Findings with verdicts, and figures."""
