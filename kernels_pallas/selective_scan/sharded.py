"""The selective scan over a mesh: batch, channels and sequence sharded."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from kernels_pallas.segments import kept
from kernels_pallas.selective_scan.api import check, effective_time, gated, scanned
from kernels_pallas.sharding import check_axes, kept_across, pass_along


def sharded_selective_scan(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    z: jax.Array | None = None,
    dt_bias: jax.Array | None = None,
    dt_softplus: bool = False,
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
    """`selective_scan` of global arrays, as one program a device; arguments and results as there.

    A shard of a sequence multiplies the state that enters it by exp(A sum dt) and adds its own end state. All shards
    gather these pairs [B, D, N] (and one segment id), which no T makes larger; each composes those before its own and
    runs again from the state that this gives. A split sequence is so read twice.

    Args:
      mesh: has the named axes.
      batch_axis, channel_axis, sequence_axis: mesh axes over which B, D and T are split; None: not split.

    Raises:
      ValueError: as `selective_scan`; an axis that the mesh lacks or that does not divide its dimension.
    """
    given = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    check(given, initial_state, segment_ids)
    check_axes(mesh, batch_axis, sequence_axis, channel_axis, x.shape)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if initial_state is None:
        initial_state = jnp.zeros((x.shape[0], *A.shape), wide)

    def local(given, ids, state):
        x, A, B, C = (given[name] for name in "xABC")
        dt, keep = effective_time(given["dt"], given["dt_bias"], dt_softplus), kept(ids, wide)
        entering = state
        if sequence_axis is not None:
            keep = kept_across(keep, ids, sequence_axis)
            _, end = scanned(x, dt, A, B, C, jnp.zeros_like(state), keep, block_sizes)
            decay = jnp.exp(jnp.sum(dt, axis=1, dtype=wide)[:, :, None] * A.astype(wide))
            entering, whole = pass_along(decay, end, state, keep, sequence_axis)
        y, last = scanned(x, dt, A, B, C, entering, keep, block_sizes)
        y = gated(y, x, given["D"], given["z"])
        return y, last if sequence_axis is None else whole

    tokens = PartitionSpec(batch_axis, sequence_axis, channel_axis)
    columns, ids = PartitionSpec(batch_axis, sequence_axis), PartitionSpec(batch_axis, sequence_axis)
    channel, state = PartitionSpec(channel_axis), PartitionSpec(batch_axis, channel_axis)
    specs = {"x": tokens, "dt": tokens, "A": channel, "B": columns, "C": columns, "D": channel, "z": tokens}
    specs = {name: None if given[name] is None else spec for name, spec in (specs | {"dt_bias": channel}).items()}
    run = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, None if segment_ids is None else ids, state),
        out_specs=(tokens, state),
        check_vma=False,
    )
    y, last = run(given, segment_ids, initial_state)
    return (y, last) if output_final_state else y
