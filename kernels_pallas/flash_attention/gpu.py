"""The GPU kernel of the forward direction (FlashAttention-2, arXiv:2307.08691, algorithm 1); what the backward shares.

Arrays stay [B, T, N, H]: a program reads the rows of its head with a stride. It holds one block of queries and loops
over the blocks of keys that the mask and the segments leave it; those that it sees whole go without mask arithmetic.
Products of float32 are of float32, not of TF32, whose roundings are 8,192 times larger.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels_pallas.flash_attention import mask, tiles
from kernels_pallas.flash_attention.tiles import LOG2_E, LOW, Plan, dot

LEAST = 16  # rows and columns of the smallest matrix product
# (queries, keys, warps, stages) by head width. Not measured: blocks that fit an H200's shared memory and that ptxas
# 13.0 for sm_90a compiles under a causal mask without spilling registers (bfloat16 keys of width 256 spill 120 bytes).
# Products of float32 run on registers, not on tensor cores, and want small blocks.
SIZES = {
    ("forward", "bfloat16"): {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (128, 32, 8, 3)},
    ("forward", "float32"): {64: (32, 32, 4, 1), 128: (32, 32, 8, 1), 256: (32, 16, 8, 1)},
    ("queries", "bfloat16"): {64: (128, 64, 4, 2), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2)},
    ("queries", "float32"): {64: (32, 32, 4, 1), 128: (32, 32, 8, 1), 256: (32, 16, 8, 1)},
    ("keys", "bfloat16"): {64: (64, 128, 8, 2), 128: (32, 128, 8, 2), 256: (32, 64, 8, 2)},
    ("keys", "float32"): {64: (32, 32, 4, 1), 128: (32, 32, 8, 1), 256: (16, 32, 8, 1)},
    ("bias", "bfloat16"): {64: (64, 128, 8, 2), 128: (32, 128, 8, 2), 256: (32, 64, 8, 2)},
    ("bias", "float32"): {64: (32, 32, 4, 1), 128: (32, 32, 8, 1), 256: (16, 32, 8, 1)},
}


def power(n: int) -> int:
    """The least power of two from n (and `LEAST`) on: no block has another size."""
    return max(LEAST, pl.next_power_of_2(n))


def tuning(kernel: str, dtype: Any, width: int) -> dict[str, int]:
    """Block sizes, warps, and stages of the loop's loads, of `SIZES`."""
    least = next(most for most in (64, 128, 256) if width <= most)
    return dict(zip(("queries", "keys", "warps", "stages"), SIZES[kernel, str(dtype)][least]))


def plan(query, key, bias, sinks, query_segments, sizes: Mapping[str, int], **options) -> Plan:
    """The plan of a call; arrays as of `forward`."""
    batch, queries, heads, width = query.shape
    return Plan(
        batch=batch,
        kv_heads=key.shape[2],
        groups=heads // key.shape[2],
        width=width,
        dtype=query.dtype,
        bias=None if bias is None else bias.shape[:2],
        sinks=None if sinks is None else sinks.shape[0],
        segments=query_segments is not None,
        queries=min(sizes["queries"], power(queries)),
        keys=min(sizes["keys"], power(key.shape[1])),
        **options,
    )


def per_query_block(made: Plan, query_like, key_like, rows, bias, sinks, segments):
    """Grid, arrays and their blocks, and the blocks of arrays like the query and its statistics [B, N, T].

    Arrays are in the order of the arguments, those that are None left out. What a program loops over it gets whole,
    filled up to whole blocks that only masked loads may touch. The last block of queries comes first: under a causal
    mask it takes longest.
    """
    width, last = power(made.width), made.query_blocks - 1
    whole = made.key_blocks * made.keys
    query_spec = pl.BlockSpec((None, made.queries, None, width), lambda i, n, b: (b, last - i, n, 0))
    key_spec = pl.BlockSpec((None, whole, None, width), lambda i, n, b: (b, 0, lax.div(n, jnp.int32(made.groups)), 0))
    row_spec = pl.BlockSpec((None, None, made.queries), lambda i, n, b: (b, n, last - i))
    arrays = [*query_like, *key_like, *rows]
    specs = [query_spec] * len(query_like) + [key_spec] * len(key_like) + [row_spec] * len(rows)
    if bias is not None:
        served, heads = made.batch // made.bias[0], made.bias[1]

        def bias_index(i, n, b):
            return lax.div(b, jnp.int32(served)), 0 if heads == 1 else n, last - i, 0

        arrays.append(bias)
        specs.append(pl.BlockSpec((None, None, made.queries, whole), bias_index))
    if sinks is not None:
        arrays.append(sinks)
        specs.append(pl.BlockSpec((1, 1), lambda i, n, b: (lax.div(b, jnp.int32(made.batch // made.sinks)), n)))
    if segments is not None:
        arrays += [*segments, *extremes(made, segments)]
        specs += [
            pl.BlockSpec((None, made.queries), lambda i, n, b: (b, last - i)),
            pl.BlockSpec((None, whole), lambda i, n, b: (b, 0)),
            pl.BlockSpec((None, 2, 1), lambda i, n, b: (b, 0, last - i)),
            pl.BlockSpec((None, 2, power(made.key_blocks)), lambda i, n, b: (b, 0, 0)),
        ]
    grid = (made.query_blocks, made.kv_heads * made.groups, made.batch)
    return grid, arrays, specs, query_spec, row_spec


def extremes(made: Plan, segments):
    """Each block's least and greatest id, of queries and of keys, [B, 2, blocks]; blocks that are added hold no id."""
    found = []
    for ids, size in zip(segments, (made.queries, made.keys)):
        each = tiles.extremes(ids, size).reshape(made.batch, -1, 2)
        count = each.shape[1]
        none = jnp.array([jnp.iinfo(jnp.int32).max, jnp.iinfo(jnp.int32).min], jnp.int32)
        filled = jnp.broadcast_to(none, (made.batch, power(count), 2)).at[:, :count].set(each)
        found.append(jnp.swapaxes(filled, 1, 2))
    return found


def scores(made: Plan, x, bias):
    """Logits of raw products, to the base e, and the soft cap's slope (None without one)."""
    x = x * made.scale
    x = x if bias is None else x + bias.astype(jnp.float32)
    cap = made.logits_soft_cap
    if cap is None:
        return x, None
    bent = jnp.tanh(x / cap)
    return cap * bent, 1 - bent * bent


def exponential(x):
    """exp(x) by the one instruction that there is; of differences, whose scaling rounds less than that of logits."""
    return jnp.exp2(x * LOG2_E)


def existing(shape, rows, columns):
    """Booleans of a block's entries before `rows` and `columns`; None where both are None."""
    there = None if rows is None else lax.broadcasted_iota(jnp.int32, shape, 0) < rows
    if columns is None:
        return there
    inside = lax.broadcasted_iota(jnp.int32, shape, 1) < columns
    return inside if there is None else there & inside


def load(view, rows=None, columns=None):
    """A block, with zeros from `rows` and `columns` on."""
    there = existing(view.shape, rows, columns)
    return plgpu.load(view) if there is None else plgpu.load(view, mask=there, other=0)


def store(ref, x, rows=None, columns=None) -> None:
    """A block, but for what lies from `rows` and `columns` on."""
    plgpu.store(ref.at[...], x.astype(ref.dtype), mask=existing(x.shape, rows, columns))


def columns(made: Plan) -> int | None:
    """The head width where blocks are wider."""
    return made.width if made.width < power(made.width) else None


def rest(ragged: bool, length: int, start):
    """How many of `length` there are from `start` on; None where blocks are never cut."""
    return length - start if ragged else None


def between(x, low, high):
    """x, at least low and at most high."""
    if all(isinstance(y, int) for y in (x, low, high)):
        return min(max(x, low), high)
    return jnp.minimum(jnp.maximum(x, low), high)


def sharing(one_ref, many_ref):
    """(first, last + 1) of the blocks of `many_ref` that may share a segment with the block of `one_ref`."""
    at = lax.broadcasted_iota(jnp.int32, many_ref.shape[1:], 0)
    meet = (many_ref[0] <= one_ref[1, 0]) & (one_ref[0, 0] <= many_ref[1])
    return jnp.min(jnp.where(meet, at, at.size)), jnp.max(jnp.where(meet, at + 1, 0))


def key_spans(made: Plan, i, shared):
    """(low, high, masked) of the blocks of keys that block i of queries meets; `shared` as of `sharing`, or None."""
    seen = made.mask
    head, low, high = seen.key_blocks(i, made.queries, made.keys)
    if shared is not None:
        first, last = shared
        return (first, jnp.minimum(head, last), True), (jnp.maximum(low, first), jnp.minimum(high, last), True)
    clear, end = low, seen.keys // made.keys  # from `clear` to `end` each query sees each key
    start = i * made.queries + seen.offset
    if seen.left is not None:
        reach = jnp.maximum(start + made.queries - 1 - seen.left, 0)
        clear = between(lax.div(reach + made.keys - 1, jnp.int32(made.keys)), low, high)
    if seen.right is not None:
        end = jnp.minimum(end, lax.div(jnp.maximum(start + seen.right + 1, 0), jnp.int32(made.keys)))
    end = between(end, clear, high)
    return (0, head, True), (low, clear, True), (clear, end, False), (end, high, True)


def over(spans, step: Callable, carry):
    """`step(block, carry, masked)` over all blocks of the spans."""
    for low, high, masked in spans:
        if not (isinstance(low, int) and isinstance(high, int) and low >= high):
            carry = lax.fori_loop(jnp.int32(low), jnp.int32(high), functools.partial(step, masked=masked), carry)
    return carry


def taken(made: Plan, refs):
    """(bias, sinks, segments, the other refs) of those after the operands that every kernel has."""
    refs = list(refs)
    bias_ref = refs.pop(0) if made.bias else None
    sink_ref = refs.pop(0) if made.sinks else None
    ids = [refs.pop(0) for _ in range(4)] if made.segments else None
    return bias_ref, sink_ref, ids, refs


def forward(
    query, key, value, bias, sinks, query_segments, key_segments, *, block_sizes=None, interpret=False, **options
):
    """Results [B, T, N, H] and log-sum-exp [B, T, N] in float32; arguments as of `reference.attention`.

    Args:
      block_sizes: {"queries": ..., "keys": ..., "warps": ..., "stages": ...} or some of them, before those of `SIZES`.
    """
    sizes = tuning("forward", query.dtype, query.shape[3]) | dict(block_sizes or {})
    made = plan(query, key, bias, sinks, query_segments, sizes, **options)
    segments = None if query_segments is None else (query_segments, key_segments)
    sinks = None if sinks is None else sinks.astype(jnp.float32)
    grid, arrays, specs, query_spec, row_spec = per_query_block(made, [query], [key, value], [], bias, sinks, segments)
    walk = mask.over_queries(made.mask, made.queries, made.keys)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, made=made),
        out_shape=(
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((made.batch, query.shape[2], query.shape[1]), jnp.float32),
        ),
        grid=grid,
        in_specs=specs,
        out_specs=(query_spec, row_spec),
        compiler_params=plgpu.CompilerParams(num_warps=sizes["warps"], num_stages=sizes["stages"]),
        cost_estimate=made.cost(walk, products=2, queries_outside=True, query_arrays=2, key_arrays=2, rows=1),
        name="flash_attention_forward",
        interpret=interpret,
    )(*arrays)
    return out, jnp.swapaxes(lse, 1, 2)


def _kernel(q_ref, k_ref, v_ref, *refs, made: Plan):
    bias_ref, sink_ref, ids, (out_ref, lse_ref) = taken(made, refs)
    i, wide = made.query_blocks - 1 - pl.program_id(0), columns(made)
    query = i * made.queries
    rows = rest(made.ragged_queries, made.mask.queries, query)
    q = load(q_ref.at[...], rows, wide)
    of_query = load(ids[0].at[...], rows)[:, None] if ids else None

    def step(j, carry, masked: bool):
        most, total, out = carry
        key = j * made.keys
        there, left = pl.ds(key, made.keys), rest(masked and made.ragged_keys, made.mask.keys, key)
        k, v = (load(ref.at[there], left, wide) for ref in (k_ref, v_ref))
        bias = load(bias_ref.at[:, there], rows, left) if bias_ref is not None else None
        x, _ = scores(made, dot(q, k, (1, 1)), bias)
        if masked:
            same = (of_query, load(ids[1].at[there], left)[None]) if ids else None
            seen = made.seen(x.shape, query, key, 0, same, rows=False)
            x = x if seen is None else jnp.where(seen, x, -jnp.inf)
        higher = jnp.maximum(most, jnp.max(x, 1))
        fade, e = exponential(most - higher), exponential(x - higher[:, None])
        return higher, total * fade + jnp.sum(e, 1), out * fade[:, None] + dot(e.astype(v.dtype), v, (1, 0))

    most, total = jnp.full(made.queries, LOW, jnp.float32), jnp.zeros(made.queries, jnp.float32)
    if sink_ref is not None:  # one key more, seen before the others
        most = jnp.maximum(most, sink_ref[0, 0])
        total = exponential(sink_ref[0, 0] - most)
    carry = most, total, jnp.zeros(q_ref.shape, jnp.float32)
    shared = sharing(ids[2], ids[3]) if ids else None
    most, total, out = over(key_spans(made, i, shared), step, carry)
    inverse = jnp.where(total > 0, 1 / total, 0)
    store(out_ref, out * inverse[:, None], rows, wide)
    store(lse_ref, most + jnp.log(total), rows)
