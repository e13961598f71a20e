"""Where a state is cleared."""

from __future__ import annotations

import jax.numpy as jnp


def resets(segment_ids):
    """[B, T] bool: the step's segment is another than that of the step before; the first step clears nothing."""
    return jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))


def kept(segment_ids, dtype):
    """() without segments, else ([B, T],): zero at a token that starts one, where the state before is forgotten."""
    return () if segment_ids is None else ((~resets(segment_ids)).astype(dtype),)
