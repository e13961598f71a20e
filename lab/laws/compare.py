"""Published values beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def published_against_ours(
    published: Mapping[str, float],
    ours: Mapping[str, float],
    errors: Mapping[str, float],
    reasons: Mapping[str, str],
    **labels: str,
) -> Any:
    """A frame with a row per published quantity: its value, ours, our standard error, the difference in those, why.

    Args:
      errors: standard errors of ours by name; NaN or absent where there is none.
      reasons: why the values differ, as far as the data show it; "not explained" is an answer.
      labels: constant columns in front, for example `data="..."`.
    """
    import pandas

    rows = []
    for name, value in published.items():
        error = errors.get(name, np.nan)
        difference = (ours[name] - value) / error if error and error > 0 else np.nan
        row = {**labels, "quantity": name, "published": value, "ours": ours[name], "standard_error": error}
        rows.append({**row, "difference_in_errors": difference, "reason": reasons.get(name, "")})
    return pandas.DataFrame(rows)
