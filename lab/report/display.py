"""Progress of a sweep on standard error: a live line on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import collections
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from lab.report.text import duration, quantity

PLAIN_SECONDS = 10.0
RATE_SECONDS = 10.0  # the window of the tokens per second that are shown


class Display:
    """Counts tokens over the packs of a sweep and says how long the rest will take.

    The tokens per second are those of the last seconds. The time left follows from all that was trained so far,
    evaluations included; what a pack needs before its first report (compilation) is in neither.

    Args:
      tokens: how many the sweep still has to train.
      quiet: say nothing but warnings.
    """

    def __init__(self, tokens: int = 0, quiet: bool = False):
        self.left, self.quiet = tokens, quiet
        self.trained, self.seconds = 0, 0.0
        self.place = ""
        self.reported = 0.0
        self.recent: collections.deque[tuple[float, int]] = collections.deque()
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
        span = str(batches[0]) if len(batches) == 1 else f"{batches[0]} to {batches[-1]}"
        self.place = f"pack {index + 1}/{packs}"
        title = f"{self.place}: {len(runs)} runs, width {model.width}, depth {model.depth}, batches {span} tokens"
        self.say(title + (f", from tick {tick}" if tick else "") + "; compiling")
        self.reported = -PLAIN_SECONDS  # the first line comes with the first ticks
        self.recent.clear()

    def progress(self, progress: Any) -> None:
        now = time.monotonic()
        self.left = max(0, self.left - progress.tokens)
        if self.recent:
            self.trained += progress.tokens
            self.seconds += now - self.recent[-1][0]
        self.recent.append((now, progress.tokens))
        while now - self.recent[0][0] > RATE_SECONDS and len(self.recent) > 2:
            self.recent.popleft()
        if self.live:
            width = shutil.get_terminal_size().columns
            sys.stderr.write(f"\r\x1b[2K{self.line(progress, now)[: width - 1]}")
            sys.stderr.flush()
        elif not self.quiet and now - self.reported >= PLAIN_SECONDS:
            self._print(self.line(progress, now))
            self.reported = now

    def line(self, progress: Any, now: float) -> str:
        """Where the pack is, its loss, tokens per second, time left; `?` for what a second of training cannot say."""
        since, skipped = self.recent[0]
        tokens = sum(count for _, count in self.recent) - skipped
        rate = quantity(tokens / (now - since)) if now - since > 1 else "?"
        left = duration(self.left * self.seconds / self.trained) if self.seconds > 1 and self.trained else "?"
        return (
            f"{self.place}  tick {progress.tick}/{progress.last_tick}  {progress.live} live  loss {progress.loss:.3f}  "
            f"{rate} tokens/s  {left} left"
        )

    def close(self) -> None:
        """Clears the live line."""
        if self.live:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()

    def _print(self, line: str) -> None:
        self.close()
        print(line, file=sys.stderr, flush=True)
