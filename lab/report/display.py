"""Progress of a sweep on standard error: a live line on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from lab.report.text import duration, quantity

PLAIN_SECONDS = 10.0


class Display:
    """Counts tokens over the packs of a sweep and says how long the rest will take.

    Args:
      tokens: how many the sweep still has to train.
      quiet: say nothing but warnings.
    """

    def __init__(self, tokens: int = 0, quiet: bool = False):
        self.left, self.quiet = tokens, quiet
        self.trained = 0
        self.title = ""
        self.began = self.reported = time.monotonic()
        self.rate = 0.0
        self.live = sys.stderr.isatty() and not quiet

    def add(self, tokens: int) -> None:
        """More to train than was known at the start."""
        self.left += tokens

    def say(self, line: str) -> None:
        if not self.quiet:
            self._print(line)

    def warn(self, line: str) -> None:
        self._print(f"warning: {line}")

    def pack(self, index: int, packs: int, runs: Sequence[Any], tick: int) -> None:
        model = runs[0].cfg.model
        batches = sorted({run.cfg.run.batch_tokens for run in runs})
        span = str(batches[0]) if len(batches) == 1 else f"{batches[0]}-{batches[-1]}"
        self.title = f"pack {index + 1}/{packs}: {len(runs)} runs, width {model.width}, depth {model.depth}, batch {span}"
        self.say(self.title + (f", from tick {tick}" if tick else "") + "; compiling")
        self.reported = time.monotonic()

    def progress(self, progress: Any) -> None:
        self.trained += progress.tokens
        self.left = max(0, self.left - progress.tokens)
        now = time.monotonic()
        elapsed = max(now - self.began, 1e-9)
        self.rate = self.trained / elapsed
        line = (
            f"{self.title.split(':')[0]}  tick {progress.tick}/{progress.last_tick}  {progress.live} live  "
            f"loss {progress.loss:.3f}  {quantity(self.rate)} tokens/s  {duration(self.left / self.rate)} left"
        )
        if self.live:
            sys.stderr.write(f"\r\x1b[2K{line}")
            sys.stderr.flush()
        elif not self.quiet and now - self.reported >= PLAIN_SECONDS:
            self._print(line)
            self.reported = now

    def close(self) -> None:
        if self.live:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()

    def _print(self, line: str) -> None:
        self.close()
        print(line, file=sys.stderr, flush=True)
