"""The delta rule over a mesh: batch, heads and sequence sharded."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from kernels_pallas.delta_rule.api import check, fail, in_chunks
from kernels_pallas.segments import resets


def sharded_delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    g: jax.Array | None = None,
    *,
    mesh: Mesh,
    batch_axis: str | None = None,
    heads_axis: str | None = None,
    sequence_axis: str | None = None,
    scale: float | None = None,
    initial_state: jax.Array | None = None,
    output_final_state: bool = False,
    segment_ids: jax.Array | None = None,
    block_sizes: Mapping[str, int] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`delta_rule` of global arrays, as one program a device; arguments and results as there.

    Along the sequence a shard is an affine map of the state that enters it, S -> M S + N, which the delta rule itself
    gives: N from no state, M from the identity and no values. The pairs [K, K], [K, V] of all shards are gathered (in
    one all-gather, of a size that T does not change, as LASP-2's, arXiv:2502.07563), every shard composes those before
    its own, and runs again from the state that this gives.

    Args:
      mesh: has the named axes.
      batch_axis, heads_axis, sequence_axis: mesh axes over which B, N and T are split; None: not split.

    Raises:
      ValueError: as `delta_rule`; an axis that the mesh lacks or that does not divide its dimension.
    """
    check(q, k, v, beta, g, segment_ids)
    for name, axis, size in zip("BNT", (batch_axis, heads_axis, sequence_axis), (q.shape[0], q.shape[2], q.shape[1])):
        if axis is not None and axis not in mesh.shape:
            fail("mesh", f"axes {tuple(mesh.shape)}", f"one named {axis!r}")
        if axis is not None and size % mesh.shape[axis]:
            fail(f"dimension {name}", size, f"a multiple of the {mesh.shape[axis]} devices on {axis!r}")
    if initial_state is None:
        dtype = jnp.promote_types(q.dtype, jnp.float32)
        initial_state = jnp.zeros((q.shape[0], *k.shape[2:], v.shape[-1]), dtype)
    per_step = PartitionSpec(batch_axis, sequence_axis, heads_axis)
    state = PartitionSpec(batch_axis, heads_axis)
    ids = PartitionSpec(batch_axis, sequence_axis)

    def local(q, k, v, beta, g, segment_ids, initial_state):
        starts = None if segment_ids is None else resets(segment_ids)
        if sequence_axis is None:
            return in_chunks(q, k, v, beta, g, starts, initial_state, scale=scale, block_sizes=block_sizes)
        index = jax.lax.axis_index(sequence_axis)
        if starts is not None:
            last = jax.lax.all_gather(segment_ids[:, -1], sequence_axis)
            starts = starts.at[:, 0].set((index > 0) & (segment_ids[:, 0] != last[index - 1]))
        keys = k.shape[-1]
        identity = jnp.broadcast_to(jnp.eye(keys, dtype=initial_state.dtype), (*initial_state.shape[:2], keys, keys))
        wide = jnp.concatenate([v, jnp.zeros_like(k)], -1)
        from_both = jnp.concatenate([jnp.zeros_like(initial_state), identity], -1)
        _, end = in_chunks(k, k, wide, beta, g, starts, from_both, scale=scale, block_sizes=block_sizes)
        ends = jax.lax.all_gather(end, sequence_axis)

        def pass_shard(entering, end):
            own, transition = end[..., : v.shape[-1]], end[..., v.shape[-1] :]
            moved = jnp.einsum("bnij,bnjv->bniv", transition, entering, precision="highest")
            return moved + own, entering

        final, entering = jax.lax.scan(pass_shard, initial_state, ends)
        o, _ = in_chunks(q, k, v, beta, g, starts, entering[index], scale=scale, block_sizes=block_sizes)
        return o, final

    specs = (per_step, per_step, per_step, per_step, None if g is None else per_step)
    specs = (*specs, None if segment_ids is None else ids, state)
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(per_step, state), check_vma=False)
    o, final = run(q, k, v, beta, g, segment_ids, initial_state)
    return (o, final) if output_final_state else o
