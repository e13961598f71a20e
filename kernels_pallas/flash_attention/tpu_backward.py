"""The TPU kernels of the backward direction (FlashAttention-2, arXiv:2307.08691, algorithm 2).

Where all arrays of a head fit in VMEM, one kernel makes every gradient: scores once, five products a pair of blocks,
and each array crosses HBM once. Longer sequences take two kernels, of which one sums the gradient of queries over
blocks of keys and the other those of keys and values over blocks of queries. Scores are turned to [keys, queries],
where the statistics of queries are rows. A further kernel sums the gradient of the bias over the batch entries and
heads that share it.
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
from kernels_pallas.flash_attention.tiles import LOG2_E, Plan, dot

TILE = 512, 512  # queries and keys whose scores are made before they meet the other operands
PART = 256, 128  # of a tile, small enough that scores and their gradients stay in registers


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
    gradients = functools.partial(_gradients, q, k, v, do, rows, bias, segments, interpret)
    whole = make("backward")
    if whole.whole_queries:
        dq, dk, dv = gradients(whole, "backward", of_queries=True, of_keys=True)
    else:
        (dq,) = gradients(make("backward_queries"), "backward_queries", of_queries=True, of_keys=False)
        dk, dv = gradients(make("backward_keys"), "backward_keys", of_queries=False, of_keys=True)
    dbias = None
    if bias is not None:
        dbias = _bias(make("backward_bias"), q, k, v, do, rows, bias, segments, interpret)
    return tiles.ungrouped(dq), jnp.swapaxes(dk, 1, 2), jnp.swapaxes(dv, 1, 2), dbias


def _taken(plan: Plan, refs):
    """(bias, segments, the other refs) of those after the operands that every kernel has."""
    refs = list(refs)
    bias_ref = refs.pop(0) if plan.bias else None
    ids = [refs.pop(0) for _ in range(4)] if plan.segments else None
    return bias_ref, ids, refs


def _gradient_of_scores(p, slope, dp, delta):
    ds = p * (dp - delta)
    return ds if slope is None else ds * slope


def _gradients(q, k, v, do, rows, bias, segments, interpret, plan: Plan, name: str, of_queries: bool, of_keys: bool):
    """Those of queries, or of keys and values, or all three where the plan holds whole heads in VMEM."""
    walk = (mask.over_queries if of_queries else mask.over_keys)(plan.mask, plan.queries, plan.keys)
    grid, order, at = tiles.grid_of(plan, walk, outer_is_query=of_queries)
    query_spec, key_spec = plan.query_spec(at), plan.key_spec(at)
    specs = [query_spec, key_spec, key_spec, query_spec, *[plan.row_spec(at)] * 2]
    shape = q.shape
    q, do, *rows = (x.reshape(plan.batch, -1, plan.groups, *x.shape[3:]) for x in (q, do, *rows))
    arrays = [q, k, v, do, *rows]
    if bias is not None:
        arrays.append(bias)
        specs.append(plan.bias_spec(at))
    segment_arrays, segment_specs = plan.segment_operands(segments, at)
    outputs = [(q, query_spec)] * of_queries + [(k, key_spec), (v, key_spec)] * of_keys
    made = pl.pallas_call(
        functools.partial(_kernel, plan=plan, walk=walk, of_queries=of_queries, of_keys=of_keys),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs],
        grid=grid,
        in_specs=specs + segment_specs,
        out_specs=[spec for _, spec in outputs],
        scratch_shapes=[
            *[pltpu.VMEM(spec.block_shape[2:], jnp.float32) for _, spec in outputs],
            *[pltpu.VMEM((plan.keys, plan.queries), q.dtype)] * (1 + of_keys),
        ],
        compiler_params=tiles.parameters(*order),
        cost_estimate=plan.cost(
            walk,
            products=2 + of_queries + 2 * of_keys,
            queries_outside=of_queries,
            query_arrays=2 + of_queries,
            key_arrays=2 + 2 * of_keys,
            rows=2,
        ),
        name=f"flash_attention_{name}",
        interpret=interpret,
    )(*arrays, *segment_arrays)
    return [made[0].reshape(shape), *made[1:]] if of_queries else made


def _kernel(
    q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, *refs, plan: Plan, walk: mask.Walk, of_queries: bool, of_keys: bool
):
    bias_ref, ids, refs = _taken(plan, refs)
    kinds = ["q"] * of_queries + ["k", "v"] * of_keys
    out = dict(zip(kinds, refs))
    sums = dict(zip(kinds, refs[len(kinds) :]))
    ds_ref, *p_ref = refs[2 * len(kinds) :]
    turn, row, step = (pl.program_id(axis) for axis in (2, 3, 4))
    outer, inner, first, last, work = walk.at(row, step)
    i, j = (outer, inner) if of_queries else (inner, outer)
    first, last = {kind: first & work for kind in kinds}, {kind: last & work for kind in kinds}
    if of_queries and of_keys:  # sums of a whole head, and of keys over the heads that share them
        start, end = row + step == 0, (row == walk.rows - 1) & (step == walk.steps - 1)
        first = {"q": start} | dict.fromkeys("kv", start & (turn == 0))
        last = {"q": end} | dict.fromkeys("kv", end & (turn == plan.turns - 1))

    for kind in kinds:

        @pl.when(first[kind])
        def _(ref=sums[kind]):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    def part(g: int, row: int, rows: int, key: int, keys: int, masked: bool):
        """p and its gradient [keys, rows] to scratch."""
        here, there = slice(row, row + rows), slice(key, key + keys)
        q, do = (ref[0, 0, g, plan.query_rows(i, row, rows)] for ref in (q_ref, do_ref))
        k, v = (ref[0, 0, plan.key_rows(j, key, keys)] for ref in (k_ref, v_ref))
        log, mean = (ref[0, 0, g : g + 1, plan.query_rows(i, row, rows)] for ref in (lse_ref, delta_ref))
        bias = None if bias_ref is None else bias_ref[0, min(g, bias_ref.shape[1] - 1), here, there]
        x, slope = plan.scores(dot(k, q, (1, 1)), None if bias is None else bias.astype(jnp.float32).T)
        p = jnp.exp2(x - log)
        ds = _gradient_of_scores(p, slope, dot(v, do, (1, 1)), mean)
        if masked:
            same = (ids[0][0, :, here], tiles.column(ids[1][0, :, there])[:, :1]) if ids else None
            seen = plan.seen(x.shape, i * plan.queries + row, j * plan.keys + key, 1, same, rows=True)
            if seen is not None:  # last: what lies beyond the last key or query may be NaN
                p, ds = jnp.where(seen, p, 0), jnp.where(seen, ds, 0)
        ds_ref[there, here] = ds.astype(ds_ref.dtype)
        if of_keys:
            p_ref[0][there, here] = p.astype(ds_ref.dtype)

    def tile(g: int, row: int, rows: int, key: int, keys: int, masked: bool):
        for place in tiles.parts(row, rows, key, keys, PART):
            part(g, *place, masked)
        scores = slice(key, key + keys), slice(row, row + rows)
        here, there = plan.query_rows(i, row, rows), plan.key_rows(j, key, keys)
        if of_keys:
            for kind, ref, factor in (("k", q_ref, ds_ref), ("v", do_ref, p_ref[0])):
                y = ref[0, 0, g, here]
                y = plan.existing_queries(y, i * plan.queries + row) if masked else y
                sums[kind][there] += dot(factor[scores], y, (1, 0))
        if of_queries:
            k = k_ref[0, 0, there]
            k = plan.existing_keys(k, j * plan.keys + key) if masked else k
            sums["q"][g, here] += dot(ds_ref[scores], k, (0, 0))

    plan.over_tiles(i, j, pl.program_id(0), work, ids, tile, TILE, TILE)

    for kind in kinds:

        @pl.when(last[kind])
        def _(out=out[kind], total=sums[kind], scale=1.0 if kind == "v" else plan.scale):
            out[(0,) * (len(out.shape) - len(total.shape))] = (total[...] * scale).astype(out.dtype)


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
