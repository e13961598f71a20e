"""The public function of attention: checks, defaults, gradient, and the form of each platform."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas import dispatch
from kernels_pallas.flash_attention import cpu, gpu, gpu_backward, tpu, tpu_backward
from kernels_pallas.flash_attention.mask import Mask

DTYPES = ("bfloat16", "float32", "float64")
WIDEST = 256


@dataclasses.dataclass(frozen=True)
class Setting:
    """Everything that is not an array."""

    mask: Mask
    scale: float
    logits_soft_cap: float | None
    blocks: tuple[tuple[str, int], ...]

    @property
    def of_scores(self) -> dict[str, Any]:
        return {"mask": self.mask, "scale": self.scale, "logits_soft_cap": self.logits_soft_cap}


def flash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    local_window_size: int | tuple[int, int] | None = None,
    logits_soft_cap: float | None = None,
    segment_ids: jax.Array | tuple[jax.Array, jax.Array] | None = None,
    sinks: jax.Array | None = None,
    first_tokens: int = 0,
    return_lse: bool = False,
    block_sizes: Mapping[str, int] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Softmax attention, softmax(cap(query key^T scale + bias)) value, with memory linear in T and S.

    One signature for every platform: Pallas kernels on TPU and on NVIDIA GPUs, tiled plain XLA operations elsewhere and
    for float64; differentiable once, in query, key, value, bias, sinks and through the log-sum-exp. Online softmax:
    arXiv:2205.14135, algorithm 1, and arXiv:2307.08691. Under `jax.vmap` the mapped axis joins the batch.

    Args:
      query: [B, T, N, H], float32 or bfloat16 (float64 in the plain form), H at most 256.
      key, value: [B, S, K, H] of the same dtype. Each of the K heads serves N / K adjacent heads of `query`.
      bias: [1 or B, 1 or N, T, S], any of the dtypes, added to the scaled scores before the soft cap; its gradient
        takes as much memory as itself.
      scale: of the scores, a number; 1 / sqrt(H) by default.
      is_causal: a query sees no key after it. Where T != S, positions count from the end: query T - 1 is at key S - 1.
      local_window_size: (left, right): a query at position i sees keys i - left to i + right, both included; one
        number is both. With `is_causal` right counts as 0.
      logits_soft_cap: c > 0: scores become c tanh(score / c) (Gemma 2, arXiv:2408.00118).
      segment_ids: integers [B, T], where T = S, or ([B, T], [B, S]): a query sees keys of its own segment only.
      sinks: [N], one logit more in each head's softmax, with no value (arXiv:2309.17453; gpt-oss).
      first_tokens: keys 0 to first_tokens - 1 stay visible beside the window (arXiv:2308.16137), if causal up to the
        query itself; segments still part them.
      return_lse: also return the log-sum-exp.
      block_sizes: of the TPU kernels, {"queries": ..., "keys": ...}, multiples of 128.

    Returns:
      [B, T, N, H] in the dtype of `query`; with `return_lse` also [B, T, N] in float32 (float64 for float64): the
      logarithm of the softmax's denominator, sinks included. A query that sees nothing has zeros and -inf (its sink's
      logit if there are sinks) and no gradient; so do all queries if S is 0.

    Raises:
      ValueError, TypeError: an argument that does not fit the others or a limit; the message names both.
    """
    setting, *prepared = checked(
        query,
        key,
        value,
        bias,
        sinks,
        segment_ids,
        scale=scale,
        is_causal=is_causal,
        local_window_size=local_window_size,
        logits_soft_cap=logits_soft_cap,
        first_tokens=first_tokens,
        block_sizes=block_sizes,
    )
    if 0 in (*query.shape, *key.shape):
        out, lse = _nothing(query, sinks)
    else:
        out, lse = attention(setting, *prepared)
    return (out, lse) if return_lse else out


def checked(
    query,
    key,
    value,
    bias,
    sinks,
    segment_ids,
    *,
    scale=None,
    is_causal=False,
    local_window_size=None,
    logits_soft_cap=None,
    first_tokens=0,
    block_sizes=None,
):
    """The setting, then query, key, value, bias, sinks [1, N] and the segments of queries and of keys (or None)."""
    _check_arrays(query, key, value)
    batch, queries, heads, width = query.shape
    keys = key.shape[1]
    setting = Setting(
        mask=_mask(queries, keys, is_causal, local_window_size, first_tokens),
        scale=_number("scale", scale, 1 / math.sqrt(width)),
        logits_soft_cap=_number("logits_soft_cap", logits_soft_cap, None, positive=True),
        blocks=_checked_blocks(block_sizes),
    )
    bias, sinks = _checked_bias(bias, query, keys), _checked_sinks(sinks, heads)
    return setting, query, key, value, bias, sinks, *_checked_segments(segment_ids, batch, queries, keys)


def _nothing(query, sinks):
    """Queries without keys."""
    lse = jnp.full(query.shape[:3], -jnp.inf, jnp.promote_types(query.dtype, jnp.float32))
    return jnp.zeros_like(query), lse if sinks is None else jnp.broadcast_to(sinks.astype(lse.dtype), lse.shape)


def _check_arrays(query, key, value) -> None:
    for name, x, axes in (("query", query, "B, T, N, H"), ("key", key, "B, S, K, H"), ("value", value, "B, S, K, H")):
        if jnp.ndim(x) != 4:
            raise ValueError(f"{name}: found shape {jnp.shape(x)}, expected four axes [{axes}]")
    for name, x in (("query", query), ("key", key), ("value", value)):
        if str(x.dtype) not in DTYPES or x.dtype != query.dtype:
            raise TypeError(f"{name}: found {x.dtype}, expected one of {', '.join(DTYPES)} for query, key and value")
    batch, _, heads, width = query.shape
    if key.shape != value.shape:
        raise ValueError(f"value: found shape {value.shape}, expected that of key, {key.shape}")
    if (key.shape[0], key.shape[3]) != (batch, width):
        raise ValueError(f"key: found shape {key.shape}, expected batch {batch} and width {width} as in query")
    if not key.shape[2] or heads % key.shape[2]:
        raise ValueError(f"key: found {key.shape[2]} heads, expected a divisor of the {heads} heads of query")
    if not 1 <= width <= WIDEST:
        raise ValueError(f"query: found head width {width}, expected 1 to {WIDEST}")


def _number(name: str, found, default, positive: bool = False):
    if found is None:
        return default
    if isinstance(found, jax.core.Tracer):
        raise TypeError(f"{name}: found a traced array, expected a number; multiply query by what is traced")
    if not math.isfinite(found) or (positive and found <= 0):
        raise ValueError(f"{name}: found {found}, expected a finite number{' above 0' if positive else ''}")
    return float(found)


def _mask(queries: int, keys: int, is_causal: bool, window, first_tokens: int) -> Mask:
    if not isinstance(is_causal, (bool, np.bool_)):
        raise TypeError(f"is_causal: found {type(is_causal).__name__}, expected True or False; other masks go by bias")
    left = right = None
    if window is not None:
        sides = (window, window) if isinstance(window, (int, np.integer)) else tuple(window)
        if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and side >= 0 for side in sides):
            raise ValueError(f"local_window_size: found {window}, expected a positive integer or two, (left, right)")
        left, right = map(int, sides)
        if not (left or right):
            raise ValueError(f"local_window_size: found {window}, expected at least one side above 0")
    if first_tokens < 0 or (first_tokens and window is None):
        raise ValueError(
            f"first_tokens: found {first_tokens} with local_window_size {window}, expected a count of 0 or more, and a "
            "window beside which those tokens stay visible"
        )
    causal = bool(is_causal)
    return Mask(queries, keys, left, 0 if causal else right, int(first_tokens), causal, keys - queries)


def _checked_bias(bias, query, keys: int):
    if bias is None:
        return None
    batch, queries, heads, _ = query.shape
    fits = jnp.ndim(bias) == 4 and bias.shape[0] in (1, batch) and bias.shape[1] in (1, heads)
    if not fits or bias.shape[2:] != (queries, keys):
        raise ValueError(
            f"bias: found shape {jnp.shape(bias)}, expected [1 or {batch}, 1 or {heads}, {queries}, {keys}]"
        )
    if str(bias.dtype) not in DTYPES:
        raise TypeError(f"bias: found {bias.dtype}, expected one of {', '.join(DTYPES)}; a mask of booleans is no bias")
    return bias


def _checked_sinks(sinks, heads: int):
    if sinks is None:
        return None
    if jnp.shape(sinks) != (heads,) or str(sinks.dtype) not in DTYPES:
        raise ValueError(f"sinks: found {sinks.dtype} {jnp.shape(sinks)}, expected floats of shape ({heads},)")
    return sinks[None]


def _checked_segments(segment_ids, batch: int, queries: int, keys: int):
    if segment_ids is None:
        return None, None
    pair = tuple(segment_ids) if isinstance(segment_ids, (tuple, list)) else (segment_ids, segment_ids)
    shapes = tuple(jnp.shape(ids) for ids in pair)
    if shapes != ((batch, queries), (batch, keys)):
        raise ValueError(
            f"segment_ids: found shapes {', '.join(map(str, shapes))}, expected ({batch}, {queries}) for query and "
            f"({batch}, {keys}) for key"
        )
    if not all(jnp.issubdtype(ids.dtype, jnp.integer) for ids in pair):
        raise TypeError(f"segment_ids: found {pair[0].dtype} and {pair[1].dtype}, expected integers")
    return tuple(jnp.asarray(ids, jnp.int32) for ids in pair)


def _checked_blocks(block_sizes) -> tuple[tuple[str, int], ...]:
    blocks = dict(block_sizes or {})
    for name, size in blocks.items():
        if name not in ("queries", "keys") or size <= 0 or size % 128:
            raise ValueError(
                f"block_sizes: found {name}={size}, expected queries or keys with a positive multiple of 128"
            )
    return tuple(sorted(blocks.items()))


def _by_batch(function, *arguments):
    """A kernel of pytrees of arrays with the batch axis first, folded under vmap.

    The plain form takes the mapped axis as it is: folded, its transposes would meet reshapes and not cancel.
    """
    leaves, tree = jax.tree.flatten(arguments)
    return dispatch.folded(lambda *leaves: function(*tree.unflatten(leaves)))(*leaves)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention(setting: Setting, query, key, value, bias, sinks, query_segments, key_segments):
    """Results and log-sum-exp of checked arguments, differentiable."""
    return _forward(setting, query, key, value, bias, sinks, query_segments, key_segments)[0]


def _kernels(kernels):
    """The kernels by platform, folded under vmap."""
    return {platform: functools.partial(_by_batch, run) for platform, run in kernels.items()}


def forward(setting: Setting, *arrays):
    """Results, log-sum-exp and what the plain form keeps for `backward`, by the form of the platform."""
    plain = functools.partial(cpu.forward, **setting.of_scores)

    def kernel(run, *arrays):
        # What only the plain form keeps is zeros here, which no one reads and the compiler drops.
        spared = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(plain, *arrays)[2])
        return *run(*arrays, **setting.of_scores), spared

    runs = {"tpu": functools.partial(tpu.forward, block_sizes=dict(setting.blocks)), "gpu": gpu.forward}
    kernels = {platform: functools.partial(kernel, run) for platform, run in runs.items()}
    return dispatch.by_platform(*arrays, **_kernels(kernels), cpu=plain, what="flash_attention")


def backward(setting: Setting, arrays, lse, delta, kept, g):
    """Gradients of query, key, value and bias (or None); `lse` and `delta` as of `statistics`."""
    plain = functools.partial(cpu.backward, **setting.of_scores)
    on_tpu = functools.partial(tpu_backward.backward, block_sizes=dict(setting.blocks), **setting.of_scores)
    on_gpu = functools.partial(gpu_backward.backward, **setting.of_scores)
    kernels = _kernels({"tpu": on_tpu, "gpu": on_gpu})
    return dispatch.by_platform(*arrays, lse, delta, kept, g, **kernels, cpu=plain, what="flash_attention_backward")


def statistics(sinks, out, lse, g, g_lse):
    """What the gradient needs of each query, [B, T, N], and the gradient of the sinks.

    Returns:
      The log-sum-exp, zeros where a query saw nothing; delta, the sum of g times results less the log-sum-exp's
      cotangent; and the gradient of the sinks, [1, N] or None.
    """
    lse = jnp.where(jnp.isneginf(lse), 0, lse)
    delta = jnp.sum(out.astype(lse.dtype) * g.astype(lse.dtype), -1) - g_lse
    if sinks is None:
        return lse, delta, None
    return lse, delta, -jnp.sum(jnp.exp(sinks[:, None] - lse) * delta, (0, 1))[None].astype(sinks.dtype)


def _forward(setting: Setting, *arrays):
    out, lse, kept = forward(setting, *arrays)
    return (out, lse), (arrays, out, lse, kept)


def _backward(setting: Setting, saved, cotangents):
    arrays, out, lse, kept = saved
    lse, delta, dsinks = statistics(arrays[4], out, lse, *cotangents)
    return *backward(setting, arrays, lse, delta, kept, cotangents[0]), dsinks, None, None


attention.defvjp(_forward, _backward)
