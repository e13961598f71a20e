"""Gated linear attention of arrays that lie across devices."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from kernels_pallas.gated_linear_attention import api


def sharded_gated_linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
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
    """`gated_linear_attention` under `jax.shard_map`.

    Along a sequence axis each device makes the state that its tokens would leave behind from zero. One all-gather of
    these states and of their decays, whose size does not depend on T, then gives every device the state before its
    first token (LASP-2, arXiv:2502.07563, algorithm 2, with decay); going back, their gradients are summed and
    scattered. With `segment_ids` their first and last numbers are gathered too.

    Args:
      mesh: its axes `batch_axis`, `heads_axis` and `sequence_axis` share B, N (and the heads of q and k) and T evenly;
        None: whole.
      the rest: as of `gated_linear_attention`.

    Raises:
      ValueError: an axis that the mesh lacks or that does not divide its dimension; as `gated_linear_attention`.
    """
    api.check(q, k, v, g, scale, initial_state, segment_ids, block_sizes)
    for name, axis, sizes in (
        ("batch_axis", batch_axis, v.shape[:1]),
        ("heads_axis", heads_axis, (q.shape[2], v.shape[2])),
        ("sequence_axis", sequence_axis, v.shape[1:2]),
    ):
        if axis is not None and axis not in mesh.shape:
            raise ValueError(f"{name}: found {axis!r}, expected one of the mesh's axes, {', '.join(mesh.shape)}")
        if axis is not None and any(size % mesh.shape[axis] for size in sizes):
            raise ValueError(f"{name}: found {min(sizes)}, expected a multiple of {mesh.shape[axis]}, axis {axis!r}")
    tokens, state = P(batch_axis, sequence_axis, heads_axis, None), P(batch_axis, heads_axis, None, None)
    if g is not None:
        gates = {1: P(heads_axis), 3: P(batch_axis, sequence_axis, heads_axis), 4: tokens}[g.ndim]
    given = {"q": (q, tokens), "k": (k, tokens), "v": (v, tokens)}
    given |= {} if g is None else {"g": (g, gates)}
    given |= {} if initial_state is None else {"initial_state": (initial_state, state)}
    given |= {} if segment_ids is None else {"segment_ids": (segment_ids, P(batch_axis, sequence_axis))}

    def local(arrays):
        options = {"scale": scale, "output_final_state": True, "block_sizes": block_sizes}
        if sequence_axis is None:
            return api.gated_linear_attention(**arrays, **options)
        before, after = _states(sequence_axis, mesh.shape[sequence_axis], **arrays)
        o, _ = api.gated_linear_attention(**arrays | {"initial_state": before}, **options)
        return o, after

    run = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=({name: spec for name, (_, spec) in given.items()},),
        out_specs=(tokens, state),
        check_vma=False,
    )
    o, final = run({name: x for name, (x, _) in given.items()})
    return (o, final) if output_final_state else o


def _states(axis: str, shards: int, q, k, v, g=None, initial_state=None, segment_ids=None):
    """The state before this device's first token, and that after the last token of all."""
    wide = jnp.promote_types(v.dtype, jnp.float32)
    precise = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    gates = api.gates(g, segment_ids, v.shape[:3], wide)
    gates = gates if gates.ndim == 4 else gates[..., None]
    after = jnp.concatenate([jax.lax.cumsum(gates[:, 1:], axis=1, reverse=True), jnp.zeros_like(gates[:, :1])], 1)
    keys = jnp.repeat(k.astype(wide), v.shape[2] // k.shape[2], axis=2) * jnp.exp(after)
    own = precise("btnk,btnv->bnkv", keys, v.astype(wide))
    decay = jnp.broadcast_to(jnp.exp(jnp.sum(gates, axis=1)), own.shape[:3])
    every = jax.lax.all_gather(jnp.concatenate([own, decay[..., None]], axis=-1), axis)
    owns, decays = every[..., :-1], every[..., -1:]
    joined = jnp.ones((shards, v.shape[0]), bool)  # whether the first token continues the segment before
    if segment_ids is not None:
        ends = jax.lax.all_gather(segment_ids[:, jnp.array([0, -1])], axis)
        joined = joined.at[1:].set(ends[1:, :, 0] == ends[:-1, :, 1])
    state = jnp.zeros_like(own) if initial_state is None else initial_state
    befores = []
    for shard in range(shards):
        befores.append(jnp.where(joined[shard][:, None, None, None], state, 0))
        state = decays[shard] * befores[-1] + owns[shard]
    return jnp.stack(befores)[jax.lax.axis_index(axis)], state
