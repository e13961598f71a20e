"""Every operation's training form on a CPU, value and gradients, against naive XLA forms of the same mathematics.

    python -m tests.benchmarks.kernels_cpu [OPERATION ...] [--lengths 512,4096] [--rounds 9] [--json FILE] [--small]

Float32, 4,096 tokens whatever their division into sequences. The forms of an operation take turns, one call each a
round; a ratio is the median over the rounds of a naive form's time over ours. Naive forms: all scores at once, and
autodiff, for what can be written so; a scan over tokens, and autodiff, for the rest. The issue asks for at least 1
at length 512 and 2 at 4,096.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.delta_rule import delta_rule
from kernels_pallas.delta_rule import reference as delta_reference
from kernels_pallas.diagonal_recurrence import diagonal_recurrence, wkv, wkv_step
from kernels_pallas.diagonal_recurrence import reference as diagonal_reference
from kernels_pallas.flash_attention import flash_attention
from kernels_pallas.gated_linear_attention import gated_linear_attention
from kernels_pallas.gated_linear_attention import reference as gated_reference
from kernels_pallas.selective_scan import reference as selective_reference
from kernels_pallas.selective_scan import selective_scan

TOKENS, HEADS, WIDTH, STATE = 4096, 4, 32, 16
TARGETS = {512: 1.0, 4096: 2.0}


@dataclasses.dataclass(frozen=True)
class Operation:
    """`ours` and the naive forms take the arrays of `draw(batch, length, noise)` and return one array."""

    draw: Callable
    ours: Callable
    naive: dict[str, Callable]


def _heads(batch, length, noise):
    return [noise.normal(size=(batch, length, HEADS, WIDTH)) for _ in range(3)]


def _gate(*shape, noise):
    return -np.exp(noise.normal(size=shape) - 3)


def _of_heads(gate: str):
    def draw(batch, length, noise):
        shape = (batch, length, HEADS) if gate == "head" else (batch, length, HEADS, WIDTH)
        return *_heads(batch, length, noise), _gate(*shape, noise=noise)

    return draw


def _all_scores(q, k, v, g):
    """Gated linear attention with a gate a head as one masked product."""
    total = jnp.cumsum(g, axis=1)
    apart = jnp.moveaxis(total[:, :, None] - total[:, None], 3, 1)
    causal = jnp.tril(jnp.ones(apart.shape[-2:], bool))
    decay = jnp.exp(jnp.where(causal, apart, -jnp.inf))
    return jnp.einsum("bnts,bsnv->btnv", decay * jnp.einsum("btnk,bsnk->bnts", q, k), v) * q.shape[-1] ** -0.5


def _delta(batch, length, noise):
    q, k, v = _heads(batch, length, noise)
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    return q, k, v, 1 / (1 + np.exp(noise.normal(size=k.shape[:3]))), _gate(*k.shape[:3], noise=noise)


def _channels(batch, length, noise):
    shape = (batch, length, HEADS * WIDTH)
    return noise.normal(size=shape), _gate(*shape, noise=noise)


def _associative(x, log_a):
    def joined(one, two):
        return one[0] * two[0], two[0] * one[1] + two[1]

    return jax.lax.associative_scan(joined, (jnp.exp(log_a), x), axis=1)[1]


def _wkv(batch, length, noise):
    k, v = (noise.normal(size=(batch, length, HEADS * WIDTH)) for _ in range(2))
    return k, v, -np.exp(noise.normal(size=HEADS * WIDTH)), noise.normal(size=HEADS * WIDTH)


def _wkv_by_token(k, v, log_decay, bonus):
    def token(state, now):
        y, state = wkv_step(*now, log_decay, bonus, state=state)
        return state, y

    empty = jnp.zeros((k.shape[0], 3, k.shape[2]), k.dtype).at[:, 2].set(-1e30)
    return jnp.swapaxes(jax.lax.scan(token, empty, (jnp.swapaxes(k, 0, 1), jnp.swapaxes(v, 0, 1)))[1], 0, 1)


def _selective(batch, length, noise):
    width = HEADS * WIDTH
    x, dt = noise.normal(size=(batch, length, width)), np.exp(noise.normal(size=(batch, length, width)) - 3)
    b, c = (noise.normal(size=(batch, length, STATE)) for _ in range(2))
    return x, dt, -np.exp(noise.normal(size=(width, STATE))), b, c


def _first(function):
    return lambda *arrays: function(*arrays)[0]


OPERATIONS = {
    "flash_attention": Operation(
        _heads,
        functools.partial(flash_attention, is_causal=True),
        {"all scores": functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")},
    ),
    "gated_linear_attention, gate a head": Operation(
        _of_heads("head"),
        gated_linear_attention,
        {"all scores": _all_scores, "by token": _first(gated_reference.gated_linear_attention)},
    ),
    "gated_linear_attention, gate a channel": Operation(
        _of_heads("channel"), gated_linear_attention, {"by token": _first(gated_reference.gated_linear_attention)}
    ),
    "delta_rule": Operation(_delta, delta_rule, {"by token": _first(delta_reference.delta_rule)}),
    "diagonal_recurrence": Operation(
        _channels,
        diagonal_recurrence,
        {"by token": _first(diagonal_reference.diagonal_recurrence), "associative scan": _associative},
    ),
    "wkv": Operation(_wkv, wkv, {"by token": _wkv_by_token}),
    "selective_scan": Operation(_selective, selective_scan, {"by token": _first(selective_reference.selective_scan)}),
}


def arrays(operation: Operation, tokens: int, length: int) -> tuple:
    drawn = operation.draw(max(1, tokens // length), length, np.random.default_rng(0))
    return tuple(jnp.asarray(x, jnp.float32) for x in drawn)


def trained(function: Callable) -> Callable:
    """Value and every gradient of a scalar of the results."""

    def loss(arrays):
        out = function(*arrays)
        return jnp.sum(out * jnp.cos(out))

    return jax.jit(jax.value_and_grad(loss))


def measured(operation: Operation, tokens: int, length: int, rounds: int) -> dict[str, list[float]]:
    """{form: milliseconds of each round}; the first call of each, which compiles, does not count."""
    given = arrays(operation, tokens, length)
    forms = {"ours": trained(operation.ours)} | {name: trained(form) for name, form in operation.naive.items()}
    found = {name: [] for name in forms}
    for index in range(rounds + 1):
        for name, form in forms.items():
            start = time.perf_counter()
            jax.block_until_ready(form(given))
            if index:
                found[name].append(1e3 * (time.perf_counter() - start))
    return found


def row(name: str, length: int, found: dict[str, list[float]]) -> dict:
    """The ratio is to the fastest naive form."""
    middle = {form: statistics.median(times) for form, times in found.items()}
    naive = min((form for form in middle if form != "ours"), key=middle.get)
    ratios = sorted(theirs / ours for theirs, ours in zip(found[naive], found["ours"]))
    return {
        "operation": name,
        "length": length,
        "ours_ms": middle["ours"],
        "naive": naive,
        "naive_ms": middle[naive],
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "target": TARGETS.get(length),
        "rounds": found,
    }


def line(found: dict) -> str:
    low, high = found["ratio_range"]
    missed = " missed" if found["target"] and found["ratio"] < found["target"] else ""
    return (
        f"{found['operation']:40}{found['length']:6}{found['ours_ms']:10.1f}{found['naive_ms']:10.1f} "
        f"{found['naive']:17}{found['ratio']:7.2f} ({low:.2f}-{high:.2f}){missed}"
    )


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.kernels_cpu")
    parser.add_argument("operations", nargs="*", default=list(OPERATIONS), help="names, or how they begin")
    parser.add_argument("--lengths", default="512,4096")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="where to write every number")
    parser.add_argument("--small", action="store_true", help="256 tokens, one round: the path, no measurement")
    asked = parser.parse_args(words)
    names = [name for name in OPERATIONS if name.startswith(tuple(asked.operations))]
    if not names:
        parser.error(f"operations: found {', '.join(asked.operations)}, expected some of {'; '.join(OPERATIONS)}")
    lengths = [128] if asked.small else [int(length) for length in asked.lengths.split(",")]
    tokens, rounds = (256, 1) if asked.small else (TOKENS, asked.rounds)
    head = {"python": platform.python_version(), "jax": jax.__version__, "machine": platform.machine()}
    print(", ".join(f"{key} {value}" for key, value in head.items()) + f", {tokens} tokens, {rounds} rounds")
    print(f"{'operation':40}{'length':>6}{'ours ms':>10}{'naive ms':>10} {'naive form':17}{'ratio':>7} (range)")
    rows = []
    for name in names:
        for length in lengths:
            rows.append(row(name, length, measured(OPERATIONS[name], tokens, length, rounds)))
            print(line(rows[-1]), flush=True)
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump(head | {"rows": rows}, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
