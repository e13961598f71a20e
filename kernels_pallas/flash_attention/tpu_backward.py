"""The TPU kernels of the backward direction (FlashAttention-2, arXiv:2307.08691, algorithm 2, in two passes).

One kernel walks blocks of queries and sums their gradient over keys; the other walks blocks of keys, with scores turned
to [keys, queries], where the statistics of queries are rows and the products need no transposition. A third sums the
gradient of the bias over the batch entries and heads that share it.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.flash_attention import mask, tiles
from kernels_pallas.flash_attention.tiles import LANES, LOG2_E, Plan, dot


def backward(
    query, key, value, bias, sinks, query_segments, key_segments, log_sum_exp, delta, kept, g, *, block_sizes,
    interpret=False, **options,
):  # fmt: skip
    """Gradients (query, key, value, bias or None); arguments as of `cpu.backward`, of which `kept` is not used."""
    del sinks, kept
    kv_heads = key.shape[2]
    segments = None if query_segments is None else (query_segments, key_segments)
    q, do = tiles.grouped(query, kv_heads), tiles.grouped(g.astype(query.dtype), kv_heads)
    k, v = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    rows = [tiles.grouped(x.astype(jnp.float32)[..., None], kv_heads)[..., 0] for x in (log_sum_exp * LOG2_E, delta)]
    make = functools.partial(tiles.plan, q, k, bias, None, segments, block_sizes=block_sizes, **options)
    dq = _queries(make("backward_queries"), q, k, v, do, rows, bias, segments, interpret)
    dk, dv = _keys(make("backward_keys"), q, k, v, do, rows, bias, segments, interpret)
    dbias = None
    if bias is not None:
        dbias = _bias(make("backward_bias"), q, k, v, do, rows, bias, segments, interpret)
    return tiles.ungrouped(dq), jnp.swapaxes(dk, 1, 2), jnp.swapaxes(dv, 1, 2), dbias


def _operands(plan: Plan, at, q, k, v, do, rows, bias, segments):
    """Arrays and their specs, in the order in which the kernels take them."""
    arrays = [q, k, v, do, *rows]
    specs = [plan.query_spec(at), plan.key_spec(at), plan.key_spec(at), plan.query_spec(at)]
    specs += [plan.row_spec(at)] * 2
    if bias is not None:
        arrays.append(bias)
        specs.append(plan.bias_spec(at))
    segment_arrays, segment_specs = plan.segment_operands(segments, at)
    return arrays + segment_arrays, specs + segment_specs


def _taken(plan: Plan, refs):
    """(bias, segments, the other refs) of those after the operands that every kernel has."""
    refs = list(refs)
    bias_ref = refs.pop(0) if plan.bias else None
    ids = [refs.pop(0) for _ in range(4)] if plan.segments else None
    return bias_ref, ids, refs


def _gradient_of_scores(p, slope, dp, delta):
    ds = p * (dp - delta)
    return ds if slope is None else ds * slope


def _queries(plan: Plan, q, k, v, do, rows, bias, segments, interpret):
    walk = mask.over_queries(plan.mask, plan.queries, plan.keys)
    grid, order, at = tiles.grid_of(plan, walk, outer_is_query=True)
    arrays, specs = _operands(plan, at, q, k, v, do, rows, bias, segments)
    tall = plan.groups * plan.queries
    return pl.pallas_call(
        functools.partial(_queries_kernel, plan=plan, walk=walk),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=grid,
        in_specs=specs,
        out_specs=plan.query_spec(at),
        scratch_shapes=[
            pltpu.VMEM((tall, LANES), jnp.float32),
            pltpu.VMEM((tall, LANES), jnp.float32),
            pltpu.VMEM((tall, plan.width), jnp.float32),
            *([pltpu.VMEM((plan.queries, LANES), jnp.int32)] if plan.segments else []),
        ],
        compiler_params=tiles.parameters(*order),
        cost_estimate=plan.cost(walk, products=3, queries_outside=True, query_arrays=3, key_arrays=2, rows=2),
        name="flash_attention_backward_queries",
        interpret=interpret,
    )(*arrays)


def _queries_kernel(q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, *refs, plan: Plan, walk: mask.Walk):
    bias_ref, ids, (dq_ref, log_ref, mean_ref, sum_ref, *rest) = _taken(plan, refs)
    i, j, first, last, work = walk.at(pl.program_id(2), pl.program_id(3))

    @pl.when(first & work)
    def _():
        for g in range(plan.groups):
            rows = slice(g * plan.queries, (g + 1) * plan.queries)
            log_ref[rows] = tiles.column(lse_ref[0, 0, g : g + 1])
            mean_ref[rows] = tiles.column(delta_ref[0, 0, g : g + 1])
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
        if ids:
            rest[0][...] = tiles.column(ids[0][0])

    def tile(g: int, row: int, rows: int, key: int, keys: int, masked: bool):
        here = slice(g * plan.queries + row, g * plan.queries + row + rows)
        there = slice(key, key + keys)
        of_head, k, v = slice(row, row + rows), k_ref[0, 0, there], v_ref[0, 0, there]
        bias = None if bias_ref is None else bias_ref[0, min(g, bias_ref.shape[1] - 1), of_head, there]
        x, slope = plan.scores(dot(q_ref[0, 0, g, of_head], k, (1, 1)), bias)
        if masked:
            k = plan.existing_keys(k, j * plan.keys + key)
        p = jnp.exp2(x - tiles.spread(log_ref[here], keys))
        dp = dot(do_ref[0, 0, g, of_head], v, (1, 1))
        ds = _gradient_of_scores(p, slope, dp, tiles.spread(mean_ref[here], keys))
        if masked:
            same = (rest[0][of_head, :1], ids[1][0, :, there]) if ids else None
            seen = plan.seen(x.shape, i * plan.queries + row, j * plan.keys + key, 0, same, rows=False)
            ds = ds if seen is None else jnp.where(seen, ds, 0)  # last: what lies beyond the last key may be NaN
        sum_ref[here] += dot(ds.astype(k.dtype), k, (1, 0))

    plan.over_tiles(i, j, pl.program_id(0), work, ids, tile, (256, 1024), (512, 512))

    @pl.when(last & work)
    def _():
        for g in range(plan.groups):
            rows = slice(g * plan.queries, (g + 1) * plan.queries)
            dq_ref[0, 0, g] = (sum_ref[rows] * plan.scale).astype(dq_ref.dtype)


def _keys(plan: Plan, q, k, v, do, rows, bias, segments, interpret):
    walk = mask.over_keys(plan.mask, plan.queries, plan.keys)
    grid, order, at = tiles.grid_of(plan, walk, outer_is_query=False)
    arrays, specs = _operands(plan, at, q, k, v, do, rows, bias, segments)
    return pl.pallas_call(
        functools.partial(_keys_kernel, plan=plan, walk=walk),
        out_shape=(jax.ShapeDtypeStruct(k.shape, k.dtype),) * 2,
        grid=grid,
        in_specs=specs,
        out_specs=(plan.key_spec(at),) * 2,
        scratch_shapes=[
            pltpu.VMEM((plan.keys, plan.width), jnp.float32),
            pltpu.VMEM((plan.keys, plan.width), jnp.float32),
            *([pltpu.VMEM((plan.keys, LANES), jnp.int32)] if plan.segments else []),
        ],
        compiler_params=tiles.parameters(*order),
        cost_estimate=plan.cost(walk, products=4, queries_outside=False, query_arrays=2, key_arrays=4, rows=2),
        name="flash_attention_backward_keys",
        interpret=interpret,
    )(*arrays)


def _keys_kernel(q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, *refs, plan: Plan, walk: mask.Walk):
    bias_ref, ids, (dk_ref, dv_ref, dk_sum, dv_sum, *rest) = _taken(plan, refs)
    j, i, first, last, work = walk.at(pl.program_id(2), pl.program_id(3))

    @pl.when(first & work)
    def _():
        dk_sum[...] = jnp.zeros(dk_sum.shape, jnp.float32)
        dv_sum[...] = jnp.zeros(dv_sum.shape, jnp.float32)
        if ids:
            rest[0][...] = tiles.column(ids[1][0])

    def tile(g: int, row: int, rows: int, key: int, keys: int, masked: bool):
        of_head, there = slice(row, row + rows), slice(key, key + keys)
        q, do = q_ref[0, 0, g, of_head], do_ref[0, 0, g, of_head]
        log, mean = lse_ref[0, 0, g : g + 1, of_head], delta_ref[0, 0, g : g + 1, of_head]
        bias = None if bias_ref is None else bias_ref[0, min(g, bias_ref.shape[1] - 1), of_head, there]
        bias = None if bias is None else bias.astype(jnp.float32).T
        if masked:
            q, do = (plan.existing_queries(y, i * plan.queries + row) for y in (q, do))
        x, slope = plan.scores(dot(k_ref[0, 0, there], q, (1, 1)), bias)
        dp = dot(v_ref[0, 0, there], do, (1, 1))
        p = jnp.exp2(x - log)
        ds = _gradient_of_scores(p, slope, dp, mean)
        if masked:
            same = (ids[0][0, :, of_head], rest[0][there, :1]) if ids else None
            seen = plan.seen(x.shape, i * plan.queries + row, j * plan.keys + key, 1, same, rows=True)
            if seen is not None:
                p, ds = jnp.where(seen, p, 0), jnp.where(seen, ds, 0)
        dv_sum[there] += dot(p.astype(do.dtype), do, (1, 0))
        dk_sum[there] += dot(ds.astype(q.dtype), q, (1, 0))

    plan.over_tiles(i, j, pl.program_id(0), work, ids, tile, (512, 512), (512, 512))

    @pl.when(last & work)
    def _():
        dk_ref[0, 0] = (dk_sum[...] * plan.scale).astype(dk_ref.dtype)
        dv_ref[0, 0] = dv_sum[...].astype(dv_ref.dtype)


def _bias(plan: Plan, q, k, v, do, rows, bias, segments, interpret):
    """The gradient of the bias: its blocks stay, the batch entries and heads that share one pass by."""
    own, heads = plan.bias
    shared = plan.batch // own, plan.kv_heads * plan.groups // heads
    all_heads = plan.kv_heads * plan.groups
    side = min(plan.queries, plan.keys, 512)
    plan = dataclasses.replace(plan, queries=side, keys=side)

    def at(entry, head, i, j, step):
        """(batch, head, query block, key block) of a grid step."""
        b = entry * shared[0] + lax.div(step, jnp.int32(shared[1]))
        return b, head * shared[1] + lax.rem(step, jnp.int32(shared[1])), i, j

    def query_like(*grid):
        b, n, i, _ = at(*grid)
        return b, n, i, 0

    def key_like(*grid):
        b, n, _, j = at(*grid)
        return b, lax.div(n, jnp.int32(plan.groups)), j, 0

    def row_like(*grid):
        b, n, i, _ = at(*grid)
        return b, n, 0, i

    def bias_like(entry, head, i, j, step):
        return entry, head, i, j

    flat = (plan.batch, all_heads, plan.mask.queries)
    arrays = [q.reshape(*flat, -1), k, v, do.reshape(*flat, -1), *(x.reshape(*flat[:2], 1, -1) for x in rows), bias]
    query_spec = pl.BlockSpec((1, 1, plan.queries, plan.width), query_like)
    key_spec = pl.BlockSpec((1, 1, plan.keys, plan.width), key_like)
    row_spec = pl.BlockSpec((1, 1, 1, plan.queries), row_like)
    bias_spec = pl.BlockSpec((1, 1, plan.queries, plan.keys), bias_like)
    segment_arrays, segment_specs = plan.segment_operands(segments, at)
    grid = (own, heads, plan.query_blocks, plan.key_blocks, shared[0] * shared[1])
    pairs = mask.Walk(plan.query_blocks, plan.key_blocks, lambda i: (0, 0, plan.key_blocks))
    return pl.pallas_call(
        functools.partial(_bias_kernel, plan=plan, at=at),
        out_shape=jax.ShapeDtypeStruct(bias.shape, bias.dtype),
        grid=grid,
        in_specs=[query_spec, key_spec, key_spec, query_spec, row_spec, row_spec, bias_spec, *segment_specs],
        out_specs=bias_spec,
        scratch_shapes=[pltpu.VMEM((plan.queries, plan.keys), jnp.float32)],
        compiler_params=tiles.parameters(*["parallel"] * 4, "arbitrary"),
        cost_estimate=plan.cost(pairs, products=2, queries_outside=True, query_arrays=2, key_arrays=2, rows=2),
        name="flash_attention_backward_bias",
        interpret=interpret,
    )(*arrays, *segment_arrays)


def _bias_kernel(q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, *refs, plan: Plan, at):
    bias_ref, ids, (dbias_ref, sum_ref) = _taken(plan, refs)
    b, _, i, j = at(*(pl.program_id(axis) for axis in range(5)))
    query, key = i * plan.queries, j * plan.keys

    @pl.when(pl.program_id(4) == 0)
    def _():
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    def tile(g: int, row: int, rows: int, at_key: int, keys: int, masked: bool):
        here, there = slice(row, row + rows), slice(at_key, at_key + keys)
        x, slope = plan.scores(dot(q_ref[0, 0, here], k_ref[0, 0, there], (1, 1)), bias_ref[0, 0, here, there])
        dp = dot(do_ref[0, 0, here], v_ref[0, 0, there], (1, 1))
        log, mean = (tiles.column(ref[0, 0, :, here]) for ref in (lse_ref, delta_ref))
        p = jnp.exp2(x - tiles.spread(log, keys))
        ds = _gradient_of_scores(p, slope, dp, tiles.spread(mean, keys))
        if masked:
            same = (tiles.column(ids[0][0, :, here])[:, :1], ids[1][0, :, there]) if ids else None
            seen = plan.seen(x.shape, query + row, key + at_key, 0, same, rows=True)
            ds = ds if seen is None else jnp.where(seen, ds, 0)
        sum_ref[here, there] += ds

    seen = plan.mask.some(query, plan.queries, key, plan.keys)
    dataclasses.replace(plan, groups=1).over_tiles(i, j, b, seen, ids, tile, (256, 512), (512, 512))

    @pl.when(pl.program_id(4) == pl.num_programs(4) - 1)
    def _():
        dbias_ref[0, 0] = sum_ref[...].astype(dbias_ref.dtype)
