"""The diagonal recurrence over a mesh: batch, channels and sequence sharded."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from kernels_pallas.diagonal_recurrence.api import check, scanned
from kernels_pallas.segments import kept
from kernels_pallas.sharding import check_axes, kept_across, pass_along


def sharded_diagonal_recurrence(
    x: jax.Array,
    log_a: jax.Array,
    *,
    mesh: Mesh,
    batch_axis: str | None = None,
    channel_axis: str | None = None,
    sequence_axis: str | None = None,
    initial_state: jax.Array | None = None,
    output_final_state: bool = False,
    segment_ids: jax.Array | None = None,
    block_sizes: Mapping[str, int] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`diagonal_recurrence` of global arrays, as one program a device; arguments and results as there.

    A shard of a sequence multiplies the state that enters it by the product of its decays and adds its own end state.
    All shards gather these pairs [B, D] (and one segment id), which no T makes larger; each composes those before its
    own and runs again from the state that this gives. A split sequence is so read twice.

    Args:
      mesh: has the named axes.
      batch_axis, channel_axis, sequence_axis: mesh axes over which B, D and T are split; None: not split.

    Raises:
      ValueError: as `diagonal_recurrence`; an axis that the mesh lacks or that does not divide its dimension.
    """
    check(x, log_a, initial_state, segment_ids)
    check_axes(mesh, batch_axis, sequence_axis, channel_axis, x.shape)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if initial_state is None:
        initial_state = jnp.zeros((x.shape[0], x.shape[2]), wide)

    def local(x, log_a, segment_ids, state):
        keep = kept(segment_ids, wide)
        if sequence_axis is None:
            return scanned(x, log_a, state, keep, block_sizes)
        keep = kept_across(keep, segment_ids, sequence_axis)
        _, end = scanned(x, log_a, jnp.zeros_like(state), keep, block_sizes)
        log_decay = log_a.astype(wide) * x.shape[1] if log_a.ndim == 1 else jnp.sum(log_a, axis=1, dtype=wide)
        decay = jnp.broadcast_to(jnp.exp(log_decay), end.shape)
        entering, last = pass_along(decay, end, state, keep, sequence_axis)
        h, _ = scanned(x, log_a, entering, keep, block_sizes)
        return h, last

    tokens = PartitionSpec(batch_axis, sequence_axis, channel_axis)
    state = PartitionSpec(batch_axis, channel_axis)
    gates = tokens if log_a.ndim == 3 else PartitionSpec(channel_axis)
    ids = None if segment_ids is None else PartitionSpec(batch_axis, sequence_axis)
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(tokens, gates, ids, state), out_specs=(tokens, state), check_vma=False
    )
    h, last = run(x, log_a, segment_ids, initial_state)
    return (h, last) if output_final_state else h
