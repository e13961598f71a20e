"""Numbers, tables and paragraphs as people read them in a terminal."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

UNITS = (("Y", 1e24), ("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def quantity(value: float) -> str:
    """1234567 -> `1.23M`."""
    for unit, size in UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """75 -> `1m15s`; `?` for what is not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days > 730:
        return f"{days // 365} years"
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def number(value: float | None) -> str:
    """Four digits: 0.46834 -> `0.4683`, 2834567 -> `2.835M`; whole numbers below a million whole; None and NaN `-`."""
    if value is None or math.isnan(value):
        return "-"
    if abs(value) < 1e6 and value == int(value):
        return str(int(value))
    if math.isfinite(value) and 1e4 <= abs(value) < 1e27:
        unit, size = next((unit, size) for unit, size in UNITS if abs(value) >= size)
        return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def interval(ends: Sequence[float | None] | None) -> str:
    """`[688.4, 815.8]`; an end that is open is `...`, no interval is said in words."""
    if ends is None:
        return "no interval"
    return "[" + ", ".join("..." if end is None or math.isinf(end) else number(end) for end in ends) + "]"


def screen_width() -> int:
    """Columns of the terminal, or of `$COLUMNS`; wide where the text goes to a file."""
    return max(40, shutil.get_terminal_size((160 if not sys.stdout.isatty() else 100, 24)).columns)


def paragraph(text: str, indent: int, first: str = "", width: int | None = None) -> str:
    """`text` in lines of the screen's width, indented under `first`."""
    options = {"initial_indent": first.ljust(indent), "subsequent_indent": " " * indent}
    return textwrap.fill(text, width or screen_width(), break_long_words=False, break_on_hyphens=False, **options)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column as it is shown: the lines of its head, its cells, and how they are set."""

    head: Sequence[str]
    cells: Sequence[str]
    left: bool

    @property
    def width(self) -> int:
        return max(map(len, [*self.head, *self.cells]))

    def lines(self, head_lines: int) -> list[str]:
        """The column in full, its head on the last of `head_lines` lines, every line of the same width."""
        lines = [""] * (head_lines - len(self.head)) + [*self.head, *self.cells]
        return [line.ljust(self.width) if self.left else line.rjust(self.width) for line in lines]


def table(columns: Mapping[str, Sequence[Any]], width: int | None = None) -> str:
    """Columns by name -> lines of text.

    `x_low` and `x_high` are shown with `x`, or else the first column that begins with it: `745.3 [688.4, 815.8]`.
    Columns without a value are left out. What is wider than `width` goes on in a further block, which repeats the
    first column.
    """
    shown = []
    for name, values in columns.items():
        words = any(isinstance(value, str) for value in values)
        cells = [str(value) if words or isinstance(value, bool) else number(value) for value in values]
        stem = bounded(name, columns)
        if stem:
            pairs = zip(columns[f"{stem}_low"], columns[f"{stem}_high"])
            ends = ["" if any(map(math.isnan, pair)) else f" {interval(pair)}" for pair in pairs]
            cells = [cell + end for cell, end in zip(cells, ends)]
        hidden = name.endswith(("_low", "_high")) and f"{name.rpartition('_')[0]}_low" in columns
        if not hidden and any(cell not in ("-", "nan", "") for cell in cells):
            body = max(8, *map(len, cells))
            title = re.sub(r"(?<=[a-z]{2})[_.](?=[a-z]{2})", " ", name)
            head = textwrap.wrap(title, body, break_long_words=False, break_on_hyphens=False)
            shown.append(Column(head, cells, words))
    if not shown:
        return "(empty)"
    blocks, room = [shown[:1]], width or screen_width()
    for column in shown[1:]:
        if len(blocks[-1]) > 1 and sum(other.width + 2 for other in blocks[-1]) + column.width > room:
            blocks.append(shown[:1])
        blocks[-1] = [*blocks[-1], column]
    return "\n\n".join(_block(block) for block in blocks)


def bounded(name: str, columns: Mapping[str, Any]) -> str | None:
    """The `x` of `x_low` whose value `name` holds: the column `x`, or else the first that begins with it."""
    for low in columns:
        stem = low.removesuffix("_low")
        if low != stem and f"{stem}_high" in columns:
            if name == (stem if stem in columns else next(x for x in columns if x.startswith(stem))):
                return stem
    return None


def _block(columns: Sequence[Column]) -> str:
    heads = max(len(column.head) for column in columns)
    return "\n".join("  ".join(parts).rstrip() for parts in zip(*(column.lines(heads) for column in columns)))
