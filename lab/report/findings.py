"""What a paper claims, what we measured, and how they compare. Nothing passes silently.

Rules, for a measured value with an interval:

| kind | holds | contradicted | inconclusive |
|---|---|---|---|
| sign | interval strictly on the claimed side of 0 | strictly on the other side | contains 0 |
| equals | contains the published value, half-width at most `tolerance` | excludes it | too wide |
| near_zero | inside (-tolerance, tolerance) | wholly outside | straddles an end |

A value that is NaN or infinite, a missing interval, an open end on the side that decides, or a measurement that is not
comparable with the paper's (`blocked`) is inconclusive, whatever the rest says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lab.laws.bootstrap import Interval

Verdict = Literal["holds", "contradicted", "inconclusive"]


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, in numbers.

    kind "sign": the quantity has the sign of `published`. kind "equals": it is `published`, decided only by an interval
    with half-width at most `tolerance` (absolute, in the claim's unit). kind "near_zero": smaller than `tolerance`.
    """

    text: str
    source: str
    published: float
    unit: str
    kind: Literal["sign", "equals", "near_zero"]
    tolerance: float = 0.0
    recalled: bool = False
    """The published number was recalled, not re-read."""

    def __post_init__(self):
        if self.kind not in ("sign", "equals", "near_zero"):
            raise ValueError(f"found kind {self.kind!r}; expected sign, equals or near_zero")
        if not math.isfinite(self.published) or (self.kind == "sign" and self.published == 0):
            raise ValueError(f"found published value {self.published}; expected a finite number, not 0 for a sign")
        if self.kind != "sign" and not self.tolerance > 0:
            raise ValueError(f"a claim of kind {self.kind} needs a tolerance > 0")


@dataclass(frozen=True)
class Finding:
    """A claim beside our value."""

    claim: Claim
    ours: float
    interval: Interval
    verdict: Verdict
    reason: str
    notes: tuple[str, ...] = ()
    """Sensitivity: how the value moves with the choices of the analysis."""

    def as_json(self) -> dict:
        """The six keys of `lab reproduce --json`; a number that is unknown or open is null."""
        return {
            "claim": self.claim.text,
            "published": self.claim.published,
            "ours": _finite(self.ours),
            "interval": [_finite(self.interval.low), _finite(self.interval.high)] if self.interval.known else None,
            "verdict": self.verdict,
            "reason": self.reason,
        }


def judge(
    claim: Claim,
    ours: float,
    interval: Interval,
    blocked: str = "",
    caveats: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Finding:
    """The verdict on `claim`, by the rules above.

    Args:
      blocked: why our measurement cannot be compared with the paper's, if it cannot.
      caveats: what a reader of the verdict must know (repeated data, a grid's edge); appended to the reason.
      notes: sensitivity of our value to the choices of the analysis.
    """
    verdict, reason = _decide(claim, float(ours), interval, blocked)
    reason = " ".join([reason, *(_sentence(caveat) for caveat in caveats)])
    if claim.recalled:
        reason += " The published value was recalled, not re-read."
    return Finding(claim, float(ours), interval, verdict, reason, tuple(notes))


def _decide(claim: Claim, ours: float, interval: Interval, blocked: str) -> tuple[Verdict, str]:
    if blocked:
        return "inconclusive", _sentence(blocked)
    if not math.isfinite(ours):
        return "inconclusive", _sentence(interval.reason or "the fit gave no finite value")
    if not interval.known or math.isnan(interval.low) or math.isnan(interval.high):
        return "inconclusive", _sentence("no interval: " + (interval.reason or "its ends are not numbers"))
    found = f"the {interval.level:.0%} interval [{interval.low:.3g}, {interval.high:.3g}]"
    if not interval.low <= ours <= interval.high:
        return "inconclusive", _sentence(f"{found} does not contain its own estimate {ours:.3g}")
    if claim.kind == "sign":
        return _decide_sign(claim, interval, found)
    if claim.kind == "near_zero":
        return _decide_near_zero(claim, interval, found)
    if interval.excludes(claim.published):
        return "contradicted", _sentence(f"{found} excludes the published {claim.published:.4g}")
    if interval.half_width > claim.tolerance:
        width = f"half-width {interval.half_width:.3g}, {claim.tolerance:.3g} needed to decide"
        return "inconclusive", _sentence(f"{found} contains {claim.published:.4g} but is too wide ({width})")
    return "holds", _sentence(f"{found} contains the published {claim.published:.4g}")


def _decide_sign(claim: Claim, interval: Interval, found: str) -> tuple[Verdict, str]:
    side = "above" if claim.published > 0 else "below"
    if interval.contains(0.0):
        return "inconclusive", _sentence(f"{found} contains 0, so the direction is not decided")
    if (interval.low > 0) == (claim.published > 0):
        return "holds", _sentence(f"{found} lies {side} 0")
    return "contradicted", _sentence(f"{found} does not lie {side} 0 but on the other side")


def _decide_near_zero(claim: Claim, interval: Interval, found: str) -> tuple[Verdict, str]:
    inside = f"the stated +-{claim.tolerance:.3g}"
    if -claim.tolerance < interval.low and interval.high < claim.tolerance:
        return "holds", _sentence(f"{found} lies inside {inside}")
    if interval.low >= claim.tolerance or interval.high <= -claim.tolerance:
        return "contradicted", _sentence(f"{found} lies outside {inside}")
    return "inconclusive", _sentence(f"{found} reaches across the edge of {inside}")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + "."


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
