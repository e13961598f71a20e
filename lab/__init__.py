"""Windtunnel: a laboratory for pre-training scaling research in JAX and Flax."""
