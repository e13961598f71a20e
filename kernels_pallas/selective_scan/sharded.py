"""The selective scan over a mesh: batch, channels and sequence sharded."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from kernels_pallas.selective_scan.api import check, effective_time, gated, kept, scanned


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
    for name, axis, size in zip("BTD", (batch_axis, sequence_axis, channel_axis), x.shape):
        if axis is not None and axis not in mesh.shape:
            raise ValueError(f"mesh: found axes {tuple(mesh.shape)}, expected one named {axis!r}")
        if axis is not None and size % mesh.shape[axis]:
            raise ValueError(
                f"dimension {name}: found {size}, expected a multiple of the {mesh.shape[axis]} devices on {axis!r}"
            )
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if initial_state is None:
        initial_state = jnp.zeros((x.shape[0], *A.shape), wide)

    def local(given, ids, state):
        x, A, B, C = (given[name] for name in "xABC")
        dt, keep = effective_time(given["dt"], given["dt_bias"], dt_softplus), kept(ids, wide)
        entering = state
        if sequence_axis is not None:
            index = jax.lax.axis_index(sequence_axis)
            if keep:
                before = jax.lax.all_gather(ids[:, -1], sequence_axis)[index - 1]
                same = (index == 0) | (ids[:, 0] == before)
                keep = (keep[0].at[:, 0].set(same.astype(wide)),)
            _, end = scanned(x, dt, A, B, C, jnp.zeros_like(state), keep, block_sizes)
            decay = jnp.exp(jnp.sum(dt, axis=1, dtype=wide)[:, :, None] * A.astype(wide))
            for flags in keep:
                decay = decay * jnp.min(flags, axis=1)[:, None, None]

            def pass_shard(entering, pair):
                return pair[0] * entering + pair[1], entering

            pairs = jax.lax.all_gather(jnp.stack([decay, end]), sequence_axis)
            whole, all_entering = jax.lax.scan(pass_shard, state, pairs)
            entering = all_entering[index]
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
