"""What scans with a state of one number a channel share when their arrays lie across a mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def check_axes(mesh, batch_axis, sequence_axis, channel_axis, shape) -> None:
    """Raises ValueError for an axis that the mesh lacks or that does not divide its dimension of `shape` [B, T, D]."""
    for name, axis, size in zip("BTD", (batch_axis, sequence_axis, channel_axis), shape):
        if axis is not None and axis not in mesh.shape:
            raise ValueError(f"mesh: found axes {tuple(mesh.shape)}, expected one named {axis!r}")
        if axis is not None and size % mesh.shape[axis]:
            raise ValueError(
                f"dimension {name}: found {size}, expected a multiple of the {mesh.shape[axis]} devices on {axis!r}"
            )


def kept_across(keep, segment_ids, axis: str):
    """`segments.kept` of a shard, whose first token may start a segment: its neighbour's last number is gathered."""
    if not keep:
        return keep
    index = jax.lax.axis_index(axis)
    before = jax.lax.all_gather(segment_ids[:, -1], axis)[index - 1]
    same = (index == 0) | (segment_ids[:, 0] == before)
    return (keep[0].at[:, 0].set(same.astype(keep[0].dtype)),)


def pass_along(decay, end, state, keep, axis: str):
    """The state that enters this shard, and that after the last.

    Args:
      decay, end: [B, ...] of this shard: what it multiplies an entering state by where no segment starts, and the
        state that it leaves from zero.
      state: before the first shard.
    """
    for flags in keep:
        decay = decay * jnp.min(flags, axis=1).reshape(-1, *[1] * (decay.ndim - 1))

    def pass_shard(entering, pair):
        return pair[0] * entering + pair[1], entering

    pairs = jax.lax.all_gather(jnp.stack([decay, end]), axis)
    last, entering = jax.lax.scan(pass_shard, state, pairs)
    return entering[jax.lax.axis_index(axis)], last
