"""Tokens per second of 64 runs in one pack against one run at a time, on an accelerator.

    python -m tests.benchmarks.accelerator [RUNS] [ROUNDS]

About a million parameters (width 128, depth 5, byte vocabulary), micro-batches of 2,048 tokens, bfloat16 compute. Both
sides in one process, interleaved: the pack trains its ticks, then one run trains as many.
"""

from __future__ import annotations

import statistics
import sys
import time

import jax

from lab.config import default_config, override, validate, with_vocabulary
from lab.models import counts
from lab.train.pack import Member, Pack
from tests.benchmarks.measure import RandomCorpus

VOCABULARY, TICKS = 264, 64


def make_pack(runs: int) -> Pack:
    settings = {
        "model.width": 128,
        "model.depth": 5,
        "model.sequence_length": 256,
        "model.compute_dtype": "bfloat16",
        "run.batch_tokens": 2048,
        "run.horizon_tokens": 10**8,
        "execution.microbatch_tokens": 2048,
        "execution.noise_probe_ticks": 0,
        "execution.mesh.run": 1,
    }
    base = override(default_config(), settings)
    points = [{"optimizer.learning_rate": 1e-3 * (i + 1) / runs} for i in range(runs)]
    configs = [with_vocabulary(validate(override(base, point)), VOCABULARY) for point in points]
    pack = Pack([Member.of(str(i), cfg) for i, cfg in enumerate(configs)], RandomCorpus(VOCABULARY))
    pack.start()
    jax.block_until_ready(pack.advance(TICKS))
    return pack


def tokens_per_second(pack: Pack) -> float:
    began = time.perf_counter()
    jax.block_until_ready(pack.advance(TICKS))
    return len(pack.members) * TICKS * 2048 / (time.perf_counter() - began)


def main() -> None:
    runs, rounds = ([int(word) for word in sys.argv[1:]] + [64, 9][len(sys.argv) - 1 :])[:2]
    together, alone = make_pack(runs), make_pack(1)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; {counts.parameters(together.cfg.model)}")
    pairs = [(tokens_per_second(together), tokens_per_second(alone)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    packed, single = (statistics.median(side) for side in zip(*pairs))
    print(
        f"{runs} runs in a pack {packed:.3g} tokens/s, one run {single:.3g}, ratio {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f}-{ratios[-1]:.2f} over {rounds} rounds)"
    )


if __name__ == "__main__":
    main()
