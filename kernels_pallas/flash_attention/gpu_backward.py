"""The GPU kernels of the backward direction (FlashAttention-2, arXiv:2307.08691, algorithm 2, in two passes).

One kernel holds a block of queries and sums their gradient over keys; the other holds a block of keys and sums over the
queries of all heads that it serves, with scores turned to [keys, queries]. No two programs add to one number, so
results are the same in every run. A third sums the gradient of the bias over the batch entries and heads that share it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels_pallas.flash_attention import gpu, mask
from kernels_pallas.flash_attention.gpu import columns, load, power, rest, store
from kernels_pallas.flash_attention.tiles import Plan, dot


def backward(
    query, key, value, bias, sinks, query_segments, key_segments, log_sum_exp, delta, kept, g, *, block_sizes=None,
    interpret=False, **options,
):  # fmt: skip
    """Gradients (query, key, value, bias or None); arguments as of `cpu.backward`, of which `kept` is not used.

    Args:
      block_sizes: as of `gpu.forward`, for all kernels.
    """
    del sinks, kept
    segments = None if query_segments is None else (query_segments, key_segments)
    rows = [jnp.swapaxes(x.astype(jnp.float32), 1, 2) for x in (log_sum_exp, delta)]
    arrays = [query, g.astype(query.dtype)], [key, value], rows, bias

    def call(kernel, name: str):
        sizes = gpu.tuning(name, query.dtype, query.shape[3]) | dict(block_sizes or {})
        made = gpu.plan(query, key, bias, None, query_segments, sizes, **options)
        parameters = plgpu.CompilerParams(num_warps=sizes["warps"], num_stages=sizes["stages"])
        run = functools.partial(
            pl.pallas_call, compiler_params=parameters, name=f"flash_attention_backward_{name}", interpret=interpret
        )
        return kernel(made, run, *arrays, segments)

    dk, dv = call(_keys, "keys")
    return call(_queries, "queries"), dk, dv, None if bias is None else call(_bias, "bias")


def _gradient_of_scores(p, slope, dp, delta):
    ds = p * (dp - delta)
    return ds if slope is None else ds * slope


def _queries(made: Plan, run, query_like, key_like, rows, bias, segments):
    grid, arrays, specs, query_spec, _ = gpu.per_query_block(made, query_like, key_like, rows, bias, None, segments)
    walk = mask.over_queries(made.mask, made.queries, made.keys)
    return run(
        functools.partial(_queries_kernel, made=made),
        out_shape=jax.ShapeDtypeStruct(query_like[0].shape, made.dtype),
        grid=grid,
        in_specs=specs,
        out_specs=query_spec,
        cost_estimate=made.cost(walk, products=3, queries_outside=True, query_arrays=3, key_arrays=2, rows=2),
    )(*arrays)


def _queries_kernel(q_ref, do_ref, k_ref, v_ref, lse_ref, delta_ref, *refs, made: Plan):
    bias_ref, _, ids, (dq_ref,) = gpu.taken(made, refs)
    i, wide = made.query_blocks - 1 - pl.program_id(0), columns(made)
    query = i * made.queries
    rows = rest(made.ragged_queries, made.mask.queries, query)
    q, do = (load(ref.at[...], rows, wide) for ref in (q_ref, do_ref))
    lse, delta = (load(ref.at[...], rows)[:, None] for ref in (lse_ref, delta_ref))
    of_query = load(ids[0].at[...], rows)[:, None] if ids else None

    def step(j, dq, masked: bool):
        key = j * made.keys
        there, left = pl.ds(key, made.keys), rest(masked and made.ragged_keys, made.mask.keys, key)
        k, v = (load(ref.at[there], left, wide) for ref in (k_ref, v_ref))
        bias = load(bias_ref.at[:, there], rows, left) if bias_ref is not None else None
        x, slope = gpu.scores(made, dot(q, k, (1, 1)), bias)
        ds = _gradient_of_scores(gpu.exponential(x - lse), slope, dot(do, v, (1, 1)), delta)
        if masked:
            same = (of_query, load(ids[1].at[there], left)[None]) if ids else None
            seen = made.seen(x.shape, query, key, 0, same, rows=False)
            ds = ds if seen is None else jnp.where(seen, ds, 0)
        return dq + dot(ds.astype(k.dtype), k, (1, 0))

    shared = gpu.sharing(ids[2], ids[3]) if ids else None
    dq = gpu.over(gpu.key_spans(made, i, shared), step, jnp.zeros(q_ref.shape, jnp.float32))
    store(dq_ref, dq * made.scale, rows, wide)


def _keys(made: Plan, run, query_like, key_like, rows, bias, segments):
    """A program holds a block of keys of one key-value head; all that is of queries it gets whole, as of `gpu`."""
    width, whole = power(made.width), made.query_blocks * made.queries
    query_spec = pl.BlockSpec((None, whole, made.groups, width), lambda j, k, b: (b, 0, k, 0))
    key_spec = pl.BlockSpec((None, made.keys, None, width), lambda j, k, b: (b, j, k, 0))
    row_spec = pl.BlockSpec((None, made.groups, whole), lambda j, k, b: (b, k, 0))
    arrays, specs = [*query_like, *key_like, *rows], [query_spec] * 2 + [key_spec] * 2 + [row_spec] * 2
    if bias is not None:
        served, heads = made.batch // made.bias[0], made.bias[1]

        def bias_index(j, k, b):
            return lax.div(b, jnp.int32(served)), 0 if heads == 1 else k, 0, j

        arrays.append(bias)
        specs.append(pl.BlockSpec((None, min(heads, made.groups), whole, made.keys), bias_index))
    if segments is not None:
        arrays += [*segments, *gpu.extremes(made, segments)]
        specs += [
            pl.BlockSpec((None, whole), lambda j, k, b: (b, 0)),
            pl.BlockSpec((None, made.keys), lambda j, k, b: (b, j)),
            pl.BlockSpec((None, 2, power(made.query_blocks)), lambda j, k, b: (b, 0, 0)),
            pl.BlockSpec((None, 2, 1), lambda j, k, b: (b, 0, j)),
        ]
    walk = mask.over_keys(made.mask, made.queries, made.keys)
    return run(
        functools.partial(_keys_kernel, made=made),
        out_shape=(jax.ShapeDtypeStruct(key_like[0].shape, made.dtype),) * 2,
        grid=(made.key_blocks, made.kv_heads, made.batch),
        in_specs=specs,
        out_specs=(key_spec,) * 2,
        cost_estimate=made.cost(walk, products=4, queries_outside=False, query_arrays=2, key_arrays=4, rows=2),
    )(*arrays)


def _query_spans(made: Plan, j, shared):
    """(low, high, masked) of the blocks of queries that meet block j of keys; as of `gpu.key_spans`."""
    seen = made.mask
    low, high = seen.query_blocks(j, made.queries, made.keys)
    if shared is not None:
        return ((jnp.maximum(low, shared[0]), jnp.minimum(high, shared[1]), True),)
    clear, end = low, seen.queries // made.queries  # from `clear` to `end` each query sees each key
    start = j * made.keys - seen.offset
    if seen.right is not None:
        reach = jnp.maximum(start + made.keys - 1 - seen.right, 0)
        clear = gpu.between(lax.div(reach + made.queries - 1, jnp.int32(made.queries)), low, high)
    if seen.left is not None:
        end = jnp.minimum(end, lax.div(jnp.maximum(start + seen.left + 1, 0), jnp.int32(made.queries)))
    end = gpu.between(end, clear, high)
    return (low, clear, True), (clear, end, False), (end, high, True)


def _keys_kernel(q_ref, do_ref, k_ref, v_ref, lse_ref, delta_ref, *refs, made: Plan):
    bias_ref, _, ids, (dk_ref, dv_ref) = gpu.taken(made, refs)
    j, wide = pl.program_id(0), columns(made)
    key = j * made.keys
    left = rest(made.ragged_keys, made.mask.keys, key)
    k, v = (load(ref.at[...], left, wide) for ref in (k_ref, v_ref))
    of_key = load(ids[1].at[...], left)[:, None] if ids else None

    def of_head(g, carry):
        def step(i, carry, masked: bool):
            dk, dv = carry
            query = i * made.queries
            there, rows = pl.ds(query, made.queries), rest(masked and made.ragged_queries, made.mask.queries, query)
            q, do = (load(ref.at[there, g], rows, wide) for ref in (q_ref, do_ref))
            lse, delta = (load(ref.at[pl.ds(g, 1), there], None, rows) for ref in (lse_ref, delta_ref))
            bias = None
            if bias_ref is not None:
                bias = load(bias_ref.at[g if bias_ref.shape[0] > 1 else jnp.int32(0), there], rows, left).T
            x, slope = gpu.scores(made, dot(k, q, (1, 1)), bias)
            p = gpu.exponential(x - lse)
            ds = _gradient_of_scores(p, slope, dot(v, do, (1, 1)), delta)
            if masked:  # queries that are not there add nothing, being zero
                same = (of_key, load(ids[0].at[there], rows)[None]) if ids else None
                seen = made.seen(x.shape, query, key, 1, same, rows=False)
                p, ds = (y if seen is None else jnp.where(seen, y, 0) for y in (p, ds))
            dv = dv + dot(p.astype(do.dtype), do, (1, 0))
            return dk + dot(ds.astype(q.dtype), q, (1, 0)), dv

        return gpu.over(_query_spans(made, j, shared), step, carry)

    shared = gpu.sharing(ids[3], ids[2]) if ids else None
    zeros = jnp.zeros(k_ref.shape, jnp.float32)
    dk, dv = lax.fori_loop(jnp.int32(0), jnp.int32(made.groups), of_head, (zeros, zeros))
    store(dk_ref, dk * made.scale, left, wide)
    store(dv_ref, dv, left, wide)


def _bias(made: Plan, run, query_like, key_like, rows, bias, segments):
    """A program holds one block of the gradient and meets all batch entries and heads that share it."""
    own, heads = made.bias
    width, entries, shared = power(made.width), made.batch // own, made.kv_heads * made.groups // heads
    kv_heads = made.kv_heads if heads == 1 else 1

    def at(e):
        return lax.div(e, jnp.int32(heads)), lax.rem(e, jnp.int32(heads))

    def query_index(j, i, e):
        entry, head = at(e)
        return entry, i, head, 0

    def key_index(j, i, e):
        entry, head = at(e)
        return entry, j, 0 if heads == 1 else lax.div(head, jnp.int32(made.groups)), 0

    def row_index(j, i, e):
        entry, head = at(e)
        return entry, head, i

    bias_spec = pl.BlockSpec((None, None, made.queries, made.keys), lambda j, i, e: (*at(e), i, j))
    arrays = [*query_like, *key_like, *rows, bias]
    specs = [pl.BlockSpec((entries, made.queries, shared, width), query_index)] * 2
    specs += [pl.BlockSpec((entries, made.keys, kv_heads, width), key_index)] * 2
    specs += [pl.BlockSpec((entries, shared, made.queries), row_index)] * 2 + [bias_spec]
    if segments is not None:
        arrays += segments
        specs.append(pl.BlockSpec((entries, made.queries), lambda j, i, e: (at(e)[0], i)))
        specs.append(pl.BlockSpec((entries, made.keys), lambda j, i, e: (at(e)[0], j)))
    pairs = mask.Walk(made.query_blocks, made.key_blocks, lambda i: (0, 0, made.key_blocks))
    return run(
        functools.partial(_bias_kernel, made=made, shared=shared),
        out_shape=jax.ShapeDtypeStruct(bias.shape, bias.dtype),
        grid=(made.key_blocks, made.query_blocks, own * heads),
        in_specs=specs,
        out_specs=bias_spec,
        cost_estimate=made.cost(pairs, products=2, queries_outside=True, query_arrays=2, key_arrays=2, rows=2),
    )(*arrays)


def _bias_kernel(q_ref, do_ref, k_ref, v_ref, lse_ref, delta_ref, bias_ref, *refs, made: Plan, shared: int):
    *ids, dbias_ref = refs
    query, key, wide = pl.program_id(1) * made.queries, pl.program_id(0) * made.keys, columns(made)
    rows = rest(made.ragged_queries, made.mask.queries, query)
    left = rest(made.ragged_keys, made.mask.keys, key)
    bias = load(bias_ref.at[...], rows, left)

    def step(s, total):
        b, n = lax.div(s, jnp.int32(shared)), lax.rem(s, jnp.int32(shared))
        kv = lax.div(n, jnp.int32(made.groups))  # 0 where each head has a bias of its own, as n is
        q, do = (load(ref.at[b, :, n], rows, wide) for ref in (q_ref, do_ref))
        k, v = (load(ref.at[b, :, kv], left, wide) for ref in (k_ref, v_ref))
        lse, delta = (load(ref.at[b, n], rows)[:, None] for ref in (lse_ref, delta_ref))
        x, slope = gpu.scores(made, dot(q, k, (1, 1)), bias)
        ds = _gradient_of_scores(gpu.exponential(x - lse), slope, dot(do, v, (1, 1)), delta)
        same = (load(ids[0].at[b], rows)[:, None], load(ids[1].at[b], left)[None]) if ids else None
        seen = made.seen(x.shape, query, key, 0, same, rows=False)
        return total + (ds if seen is None else jnp.where(seen, ds, 0))

    count = jnp.where(made.mask.some(query, made.queries, key, made.keys), jnp.int32(q_ref.shape[0] * shared), 0)
    total = jnp.zeros((made.queries, made.keys), jnp.float32)
    store(dbias_ref, lax.fori_loop(jnp.int32(0), count, step, total), rows, left)
