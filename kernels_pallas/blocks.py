"""Block sizes by chip and shape, from the table that `python -m kernels_pallas.tune` makes of static estimates."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernels_pallas.chips import Chip, current

TABLE = Path(__file__).with_name("blocks.json")


@functools.lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """ "operation/direction" -> rows {chip, dtype, width, blocks, ...}; "versions" of the compiler that chose them."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def pick(
    operation: str, direction: str, dtype: Any, width: int, default: Mapping[str, int], chip: Chip | None = None
) -> dict[str, int]:
    """The blocks of the table for the chip, the dtype and the least head (or channel) width that is no smaller.

    What fits a wider head fits a narrower one. Else `default`.
    """
    chip = chip or current()
    rows = table().get(f"{operation}/{direction}", [])
    rows = [row for row in rows if (row["chip"], row["dtype"]) == (chip.name, str(dtype)) and row["width"] >= width]
    if not rows:
        return dict(default)
    return {**default, **min(rows, key=lambda row: row["width"])["blocks"]}


def lanes_and_rows(
    operation: str, x: Any, default: Mapping[str, int], asked: Mapping[str, int] | None
) -> tuple[tuple[str, int], ...]:
    """Sizes, multiples of 128, of a scan over x [B, T, D]: the user's before the table's before `default`.

    Raises:
      ValueError: a size of another name, or no positive multiple of 128.
    """
    unknown = set(asked or {}) - set(default)
    if unknown:
        raise ValueError(f"block_sizes: found {', '.join(sorted(unknown))}, expected some of {', '.join(default)}")
    sizes = pick(operation, "both", x.dtype, x.shape[2], default=default) | dict(asked or {})
    for name, size in sizes.items():
        if size < 1 or size % 128:
            raise ValueError(f"block_sizes: found {name} {size}, expected a positive multiple of 128")
    return tuple(sorted(sizes.items()))
