"""Pallas kernels, one folder per operation. Imports nothing of lab."""
