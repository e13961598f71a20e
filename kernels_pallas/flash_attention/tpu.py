"""The TPU kernel of the forward direction (FlashAttention-2, arXiv:2307.08691, algorithm 1).

Each grid step meets one block of queries, all query heads of a key-value head, with one block of keys. Rows of the grid
are folded so that under a causal mask each holds as many steps (`mask.Walk`). Block pairs that are seen whole take a
path without mask arithmetic; others go by smaller tiles, of which those that nobody sees are skipped.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.chips import current
from kernels_pallas.flash_attention import mask, tiles
from kernels_pallas.flash_attention.tiles import LANES, LOG2_E, LOW, Plan, dot


def forward(query, key, value, bias, sinks, query_segments, key_segments, *, block_sizes, interpret=False, **options):
    """Results [B, T, N, H] and log-sum-exp [B, T, N] in float32; arguments as of `reference.attention`."""
    kv_heads = key.shape[2]
    q_BKGTH = tiles.grouped(query, kv_heads)
    k_BKSH, v_BKSH = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    segments = None if query_segments is None else (query_segments, key_segments)
    plan = tiles.plan(q_BKGTH, k_BKSH, bias, sinks, segments, "forward", block_sizes, **options)
    walk = mask.over_queries(plan.mask, plan.queries, plan.keys)
    grid, order, at = tiles.grid_of(plan, walk, outer_is_query=True)
    operands = [q_BKGTH, k_BKSH, v_BKSH]
    specs = [plan.query_spec(at), plan.key_spec(at), plan.key_spec(at)]
    if bias is not None:
        operands.append(bias)
        specs.append(plan.bias_spec(at))
    if sinks is not None:
        operands.append(sinks.astype(jnp.float32).reshape(-1))
        specs.append(pl.BlockSpec(memory_space=pltpu.SMEM))
    segment_operands, segment_specs = plan.segment_operands(segments, at)
    rows = plan.groups * plan.queries
    statistics = jax.ShapeDtypeStruct(q_BKGTH.shape[:4], jnp.float32)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, plan=plan, walk=walk),
        out_shape=(jax.ShapeDtypeStruct(q_BKGTH.shape, query.dtype), statistics),
        grid=grid,
        in_specs=specs + segment_specs,
        out_specs=(plan.query_spec(at), plan.row_spec(at)),
        scratch_shapes=[
            pltpu.VMEM((rows, LANES), jnp.float32),
            pltpu.VMEM((rows, LANES), jnp.float32),
            pltpu.VMEM((rows, plan.width), jnp.float32),
            pltpu.VMEM((plan.queries, plan.keys), jnp.float32),
            *([pltpu.VMEM((plan.queries, LANES), jnp.int32)] if plan.segments else []),
        ],
        compiler_params=tiles.parameters(*order),
        cost_estimate=plan.cost(walk, products=2, queries_outside=True, query_arrays=2, key_arrays=2, rows=1),
        name="flash_attention_forward",
        interpret=interpret,
    )(*operands, *segment_operands)
    return tiles.ungrouped(out), tiles.ungrouped(lse[..., None])[..., 0]


def _kernel(q_ref, k_ref, v_ref, *refs, plan: Plan, walk: mask.Walk):
    refs = list(refs)
    bias_ref = refs.pop(0) if plan.bias else None
    sink_ref = refs.pop(0) if plan.sinks else None
    ids = [refs.pop(0) for _ in range(4)] if plan.segments else None
    out_ref, lse_ref, most_ref, total_ref, sum_ref, x_ref, *rest = refs
    b, k = pl.program_id(0), pl.program_id(1)
    i, j, first, last, work = walk.at(pl.program_id(3), pl.program_id(4))

    @pl.when(first & work)
    def _():
        for g in range(plan.groups):
            rows = slice(g * plan.queries, (g + 1) * plan.queries)
            shape = (plan.queries, LANES)
            if sink_ref is None:
                most_ref[rows], total_ref[rows] = jnp.full(shape, LOW, jnp.float32), jnp.zeros(shape, jnp.float32)
            else:  # one key more, seen before the others; its weight lies in equal parts on all lanes
                at = lax.div(b, jnp.int32(plan.batch // plan.sinks)) * plan.kv_heads + k
                most_ref[rows] = jnp.full(shape, sink_ref[at * plan.groups + g] * LOG2_E, jnp.float32)
                total_ref[rows] = jnp.full(shape, 1 / LANES, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
        if ids:
            rest[0][...] = tiles.column(ids[0][0])

    wait = current().mxu > 128  # where scores wait for their row's greatest faster in memory than as spilled registers

    def tile(g: int, row: int, rows: int, key: int, keys: int, masked: bool):
        """The online softmax of some rows of head g with some keys of the block."""
        here = slice(g * plan.queries + row, g * plan.queries + row + rows)
        there, brought = slice(key, key + keys), plan.key_rows(j, key, keys)
        bias = None if bias_ref is None else bias_ref[0, min(g, bias_ref.shape[1] - 1), row : row + rows, there]
        x, _ = plan.scores(dot(q_ref[0, 0, g, row : row + rows], k_ref[0, 0, brought], (1, 1)), bias)
        v = v_ref[0, 0, brought]
        if masked:
            same = (rest[0][row : row + rows, :1], ids[1][0, :, there]) if ids else None
            seen = plan.seen(x.shape, i * plan.queries + row, j * plan.keys + key, 0, same, rows=False)
            x = x if seen is None else jnp.where(seen, x, -jnp.inf)
            v = plan.existing_keys(v, j * plan.keys + key)
        if masked or wait:
            x_ref[row : row + rows, there] = x
        most = most_ref[here]
        higher = jnp.maximum(most, jnp.max(x, 1, keepdims=True))
        fade = jnp.exp2(most - higher)
        x = x_ref[row : row + rows, there] if masked or wait else x
        e = jnp.exp2(x - jnp.tile(higher, (1, keys // LANES)))
        parts = [e[:, lane : lane + LANES] for lane in range(0, keys, LANES)]
        most_ref[here], total_ref[here] = higher, total_ref[here] * fade + sum(parts[1:], parts[0])
        sum_ref[here] = sum_ref[here] * tiles.spread(fade, plan.width) + dot(e.astype(v.dtype), v, (1, 0))

    tall, wide = (1024, 512) if wait else (256, 1024)
    plan.over_tiles(i, j, b, work, ids, tile, (tall, wide), (512, 512))

    @pl.when(last & work)
    def _():
        for g in range(plan.groups):
            rows = slice(g * plan.queries, (g + 1) * plan.queries)
            total = jnp.broadcast_to(jnp.sum(total_ref[rows], 1, keepdims=True), (plan.queries, LANES))
            inverse = tiles.spread(jnp.where(total > 0, 1 / total, 0), plan.width)
            out_ref[0, 0, g] = (sum_ref[rows] * inverse).astype(out_ref.dtype)
            lse_ref[0, 0, g : g + 1] = (tiles.row(most_ref[rows]) + jnp.log2(tiles.row(total))) / LOG2_E
