"""Our kernels against those of others on one accelerator, forward and with backward, bfloat16 with float32 gates.

    python -m tests.benchmarks.kernels_accelerator [KIND ...] [--rounds 11] [--json FILE] [--small]

Kinds: attention (causal, 16,384 tokens, 2,048 channels, against cuDNN through `jax.nn.dot_product_attention` and plain
XLA), gla, ssd, delta, gated_delta (8,192 tokens, 16 heads of 128; against our plain XLA form, flash-linear-attention's
Triton kernels where torch and fla can be imported, and for gla our attention on the same arrays). All forms of a case
take turns in one process; a time is the median over rounds of calls between two synchronisations. A form that cannot
run says why. `--small` runs each path once at small size, on anything: no measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory beside it

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas import dispatch
from kernels_pallas.delta_rule import delta_rule
from kernels_pallas.flash_attention import flash_attention
from kernels_pallas.gated_linear_attention import gated_linear_attention

LENGTHS, CHANNELS, CALLS = (2048, 4096, 8192, 16384), 2048, 10
FLA = {  # kind -> module and function of flash-linear-attention, all [B, T, N, H] with g in log space
    "gla": ("fla.ops.gla", "chunk_gla"),
    "ssd": ("fla.ops.simple_gla", "chunk_simple_gla"),
    "delta": ("fla.ops.delta_rule", "chunk_delta_rule"),
    "gated_delta": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
}


def drawn(kind: str, batch: int, length: int, heads: int, width: int) -> dict[str, np.ndarray]:
    """Operands by the names of our functions; keys of unit length for the delta rules."""
    noise = np.random.default_rng(0)
    q, k, v = (noise.normal(size=(batch, length, heads, width)).astype(np.float32) for _ in range(3))
    if kind == "attention":
        return {"query": q, "key": k, "value": v}
    gate = -np.exp(noise.normal(size=(batch, length, heads, width)).astype(np.float32) - 3)
    if kind == "gla":
        return {"q": q, "k": k, "v": v, "g": gate}
    if kind == "ssd":
        return {"q": q, "k": k, "v": v, "g": gate[..., 0]}
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta = 1 / (1 + np.exp(gate[..., 1]))
    return {"q": q, "k": k, "v": v, "beta": beta} | ({"g": gate[..., 0]} if kind == "gated_delta" else {})


def dtype_of(name: str) -> str:
    return "float32" if name in ("g", "beta") else "bfloat16"


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """What is traced inside takes the plain XLA form on every platform."""
    chosen = dispatch.by_platform
    dispatch.by_platform = lambda *args, tpu, gpu, cpu, what: cpu(*args)
    try:
        yield
    finally:
        dispatch.by_platform = chosen


def by_jax(function: Callable, operands: dict[str, np.ndarray], backward: bool, traced=contextlib.nullcontext):
    """A call that waits for its result, compiled; `traced` is a context for tracing."""
    given = {name: jnp.asarray(x, dtype_of(name)) for name, x in operands.items()}

    def loss(given):
        return jnp.sum(function(**given).astype(jnp.float32))

    with traced():
        program = jax.jit(jax.grad(loss) if backward else lambda given: function(**given)).lower(given).compile()

    def call(times: int) -> None:
        for _ in range(times):
            found = program(given)
        jax.block_until_ready(found)

    return call


def by_fla(kind: str, operands: dict[str, np.ndarray], backward: bool):
    import torch

    module, name = FLA[kind]
    function = getattr(importlib.import_module(module), name)
    given = {key: torch.tensor(x, device="cuda").to(getattr(torch, dtype_of(key))) for key, x in operands.items()}
    given = {key: x.requires_grad_(backward) for key, x in given.items()}

    def call(times: int) -> None:
        for _ in range(times):
            out = function(**given)[0]
            if backward:
                torch.autograd.grad(out.sum(), list(given.values()))
        torch.cuda.synchronize()

    return call


def forms(kind: str, operands: dict[str, np.ndarray], backward: bool) -> dict[str, Callable]:
    """{form: what prepares its call}."""
    if kind == "attention":
        causal = {"is_causal": True}
        theirs = functools.partial(jax.nn.dot_product_attention, **causal)
        return {
            "ours": lambda: by_jax(functools.partial(flash_attention, **causal), operands, backward),
            "cudnn": lambda: by_jax(functools.partial(theirs, implementation="cudnn"), operands, backward),
            "xla": lambda: by_jax(functools.partial(theirs, implementation="xla"), operands, backward),
        }
    ours = delta_rule if "delta" in kind else gated_linear_attention
    found = {
        "ours": lambda: by_jax(ours, operands, backward),
        "xla": lambda: by_jax(ours, operands, backward, plain),
        "fla": lambda: by_fla(kind, operands, backward),
    }
    if kind == "gla":
        same = {name: operands[letter] for name, letter in (("query", "q"), ("key", "k"), ("value", "v"))}
        attend = functools.partial(flash_attention, is_causal=True)
        found["our attention"] = lambda: by_jax(attend, same, backward)
    return found


def measured(kind: str, operands: dict[str, np.ndarray], backward: bool, rounds: int, calls: int) -> dict:
    """{form: milliseconds of one call in each round, or why it did not run}; one call before the rounds warms up."""
    prepared, ready = forms(kind, operands, backward), {}
    found: dict = {name: [] for name in prepared}
    for name, prepare in prepared.items():
        try:
            ready[name] = prepare()
            ready[name](1)
        except Exception as error:
            if name == "ours":
                raise
            found[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:160]
            ready.pop(name, None)
    for _ in range(rounds):
        for name, call in ready.items():
            start = time.perf_counter()
            call(calls)
            found[name].append(1e3 * (time.perf_counter() - start) / calls)
    return found


def lines(row: dict) -> Iterator[str]:
    yield f"{row['kind']} T={row['length']} B={row['batch']} N={row['heads']} H={row['width']} {row['direction']}"
    ours = row["milliseconds"]["ours"]
    for name, times in row["milliseconds"].items():
        if isinstance(times, str):
            yield f"    {name:14} not run: {times}"
            continue
        ratios = sorted(theirs / mine for theirs, mine in zip(times, ours))
        span = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        yield f"    {name:14}{statistics.median(times):9.3f} ms   its time over ours {span}"


def cases(kind: str, small: bool) -> Iterator[tuple[int, int, int, int]]:
    """Batch, length, heads, width."""
    if small:
        yield 1, 256, 2, 64
    elif kind == "attention":
        for width in (64, 128):
            for length in LENGTHS:
                yield LENGTHS[-1] // length, length, CHANNELS // width, width
    else:
        for length in LENGTHS:
            yield max(1, 8192 // length), length, 16, 128


def main(words: list[str]) -> None:
    kinds = ("attention", *FLA)
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.kernels_accelerator")
    parser.add_argument("kinds", nargs="*", help=", ".join(kinds))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", help="where to write every number")
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args(words)
    if set(asked.kinds) - set(kinds):
        parser.error(f"kinds: found {', '.join(asked.kinds)}, expected some of {', '.join(kinds)}")
    device = jax.devices()[0]
    if device.platform == "cpu" and not asked.small:
        parser.error("found no accelerator, expected one; --small runs every path on a CPU, and measures nothing")
    head = {"device": device.device_kind, "jax": jax.__version__, "python": sys.version.split()[0]}
    print(", ".join(f"{key} {value}" for key, value in head.items()))
    rounds, calls = (1, 1) if asked.small else (asked.rounds, CALLS)
    rows = []
    for kind in asked.kinds or kinds:
        for batch, length, heads, width in cases(kind, asked.small):
            operands = drawn(kind, batch, length, heads, width)
            for direction in ("forward", "forward and backward"):
                shape = {"kind": kind, "batch": batch, "length": length, "heads": heads, "width": width}
                found = measured(kind, operands, direction != "forward", rounds, calls)
                rows.append(shape | {"direction": direction, "milliseconds": found})
                print("\n".join(lines(rows[-1])), flush=True)
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump(head | {"rows": rows}, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
