"""Attention over a mesh: batch, heads and sequence sharded."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from kernels_pallas.flash_attention import api
from kernels_pallas.flash_attention.mask import Mask


def sharded_flash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    *,
    mesh: Mesh,
    batch_axis: str | None = None,
    heads_axis: str | None = None,
    sequence_axis: str | None = None,
    segment_ids: jax.Array | tuple[jax.Array, jax.Array] | None = None,
    sinks: jax.Array | None = None,
    return_lse: bool = False,
    **options,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`flash_attention` of global arrays, as one program a device; arguments and results as there.

    Along the sequence keys and values go round a ring of devices (ring attention, arXiv:2310.01889); each device
    merges what its queries found by the log-sum-exp. In the gradient keys, values and their gradients go round
    again, so that no device ever holds more than its share and that of a neighbour. Under a window the ring ends with
    the last shard that any query sees.

    Args:
      mesh: has the named axes.
      batch_axis, heads_axis, sequence_axis: mesh axes over which B, N (and K), T (and S) are split; None: not split.

    Raises:
      ValueError: as `flash_attention`; an axis that the mesh lacks or that does not divide its dimension; a split
        sequence with T != S, or with more `first_tokens` than a shard holds.
    """
    setting, *arrays = api.checked(query, key, value, bias, sinks, segment_ids, **options)
    sizes = (("B", batch_axis, query.shape[0]), ("K", heads_axis, key.shape[2]), ("T", sequence_axis, query.shape[1]))
    for name, axis, size in sizes:
        if axis is not None and axis not in mesh.shape:
            raise ValueError(f"mesh: found axes {tuple(mesh.shape)}, expected one named {axis!r}")
        if axis is not None and (not size or size % mesh.shape[axis]):
            raise ValueError(f"{name}: found {size}, expected a multiple of the {mesh.shape[axis]} devices on {axis!r}")
    shards = 1 if sequence_axis is None else mesh.shape[sequence_axis]
    if shards > 1 and query.shape[1] != key.shape[1]:
        raise ValueError(f"key: found length {key.shape[1]}, expected that of query, {query.shape[1]}, to split both")
    if shards > 1 and setting.mask.first > query.shape[1] // shards:
        raise ValueError(
            f"first_tokens: found {setting.mask.first}, expected at most the {query.shape[1] // shards} of one shard"
        )
    whole = PartitionSpec(batch_axis, sequence_axis, heads_axis)
    ids = PartitionSpec(batch_axis, sequence_axis)
    specs = [whole, whole, whole, None, PartitionSpec(None, heads_axis), ids, ids]
    if bias is not None:
        own, heads = (axis if size > 1 else None for axis, size in zip((batch_axis, heads_axis), bias.shape))
        specs[3] = PartitionSpec(own, heads, sequence_axis)
    specs = tuple(None if x is None else spec for x, spec in zip(arrays, specs))
    local = functools.partial(api.attention, setting)
    if shards > 1:
        local = functools.partial(_ring, Ring(setting, sequence_axis, shards))
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(whole, whole), check_vma=False)
    out, lse = run(*arrays)
    return (out, lse) if return_lse else out


@dataclasses.dataclass(frozen=True)
class Ring:
    """A setting, and the ring of `shards` devices along `axis` between which the sequence is split."""

    setting: api.Setting
    axis: str
    shards: int

    def masks(self, step: int) -> tuple[Mask, Mask, Mask]:
        """By where the keys of a step come from: a later shard, the first one, one between it and the device's own."""
        mask = self.setting.mask
        size = mask.queries // self.shards
        of = functools.partial(dataclasses.replace, mask, queries=size, keys=size)
        later = of(offset=(step - self.shards) * size, first=0)
        return later, of(offset=step * size), of(offset=step * size, first=0)

    @property
    def steps(self) -> int:
        """Steps until the last in which any device sees anything."""
        return 1 + max(step for step in range(self.shards) if any(self._seen(mask) for mask in self.masks(step)))

    @staticmethod
    def _seen(mask: Mask) -> bool:
        return bool(mask.some(0, mask.queries, 0, mask.keys))

    def by_place(self, step: int, function, nothing, *arrays):
        """`function(setting, *arrays)` under the mask of the keys' place, or `nothing` where none is seen."""
        rank = lax.axis_index(self.axis)
        branches = []
        for mask in self.masks(step):
            if self._seen(mask):
                branches.append(functools.partial(function, dataclasses.replace(self.setting, mask=mask)))
            else:
                branches.append(lambda *_: nothing)
        later, first, between = branches
        near = functools.partial(lax.cond, rank >= step, between, later) if step else between
        return lax.cond(rank == step, first, near, *arrays) if self.setting.mask.first else near(*arrays)

    def passed(self, arrays, by: int = 1):
        """Each device's arrays at the device `by` places further on."""
        to = [(rank, (rank + by) % self.shards) for rank in range(self.shards)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, to), arrays)

    def columns(self, bias, step: int):
        """The part of a bias [1 | B, 1 | N, T / shards, S] that belongs to the keys of a step, and where it starts."""
        if bias is None:
            return None, None
        size = bias.shape[3] // self.shards
        start = (lax.axis_index(self.axis) - step) % self.shards * size
        return lax.dynamic_slice_in_dim(bias, start, size, 3), start


def _merged(out, lse, more, more_lse):
    """Results over two sets of keys, from those over each, in the dtype of the log-sum-exp."""
    most = jnp.maximum(lse, more_lse)
    most = jnp.where(jnp.isneginf(most), 0, most)
    weights = jnp.exp(lse - most), jnp.exp(more_lse - most)
    total = weights[0] + weights[1]
    safe = jnp.where(total > 0, total, 1)
    out = (out * weights[0][..., None] + more * weights[1][..., None]) / safe[..., None]
    return out, jnp.where(total > 0, most + jnp.log(safe), -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(ring: Ring, query, key, value, bias, sinks, query_segments, key_segments):
    return _ring_forward(ring, query, key, value, bias, sinks, query_segments, key_segments)[0]


def _ring_forward(ring: Ring, query, key, value, bias, sinks, query_segments, key_segments):
    wide = jnp.promote_types(query.dtype, jnp.float32)
    nothing = jnp.zeros_like(query), jnp.full(query.shape[:3], -jnp.inf, wide)
    out, lse = nothing[0].astype(wide), nothing[1]
    passing = key, value, key_segments

    def one(setting, *arrays):
        return api.forward(setting, *arrays)[:2]

    for step in range(ring.steps):
        passing = ring.passed(passing) if step else passing
        part, _ = ring.columns(bias, step)
        own_sinks = sinks if step == 0 else None
        more = ring.by_place(step, one, nothing, query, *passing[:2], part, own_sinks, query_segments, passing[2])
        out, lse = _merged(out, lse, more[0].astype(wide), more[1])
    out = out.astype(query.dtype)
    return (out, lse), (query, key, value, bias, sinks, query_segments, key_segments, out, lse)


def _ring_backward(ring: Ring, saved, cotangents):
    query, key, value, bias, sinks, query_segments, key_segments, out, lse = saved
    g, _ = cotangents
    lse, delta, dsinks = api.statistics(sinks, out, lse, *cotangents)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    dquery = jnp.zeros(query.shape, wide)
    dbias = None if bias is None else jnp.zeros_like(bias)
    passing = key, value, key_segments, jnp.zeros(key.shape, wide), jnp.zeros(value.shape, wide)
    for step in range(ring.steps):
        passing = ring.passed(passing) if step else passing
        key, value, key_segments, dkey, dvalue = passing
        part, start = ring.columns(bias, step)

        def one(setting, *arrays):
            return api.backward(setting, arrays, lse, delta, [], g)

        arrays = query, key, value, part, None, query_segments, key_segments
        nothing = jax.tree.map(jnp.zeros_like, arrays[:4])
        more = ring.by_place(step, one, nothing, *arrays)
        dquery = dquery + more[0]
        passing = key, value, key_segments, dkey + more[1], dvalue + more[2]
        if bias is not None:
            dbias = lax.dynamic_update_slice_in_dim(dbias, more[3], start, 3)
    dkey, dvalue = ring.passed(passing[3:], by=1 - ring.steps)
    gradients = (x.astype(query.dtype) for x in (dquery, dkey, dvalue))
    return *gradients, dbias, dsinks, None, None


_ring.defvjp(_ring_forward, _ring_backward)
