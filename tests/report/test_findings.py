from __future__ import annotations

import json
import math

import pytest

from lab.laws.bootstrap import Interval, no_interval
from lab.report.findings import Claim, judge

SIGN = Claim("grows", "paper", 0.47, "exponent", "sign")
FALLS = Claim("falls", "paper", -0.2, "exponent", "sign")
EQUALS = Claim("is 0.47", "paper", 0.47, "exponent", "equals", tolerance=0.1)
FLAT = Claim("is flat", "paper", 0.087, "exponent", "near_zero", tolerance=0.2)


def verdict(claim, ours, low, high):
    return judge(claim, ours, Interval(low, high, 0.95)).verdict


@pytest.mark.parametrize(
    "claim, ours, low, high, expected",
    [
        (SIGN, 0.3, 0.1, 0.5, "holds"),
        (SIGN, 0.3, -0.1, 0.5, "inconclusive"),
        (SIGN, 0.3, 0.0, 0.5, "inconclusive"),
        (SIGN, -0.3, -0.5, -0.1, "contradicted"),
        (SIGN, 0.3, 0.1, math.inf, "holds"),
        (FALLS, -0.3, -0.5, -0.1, "holds"),
        (FALLS, 0.3, 0.1, 0.5, "contradicted"),
        (EQUALS, 0.46, 0.4, 0.5, "holds"),
        (EQUALS, 0.46, 0.1, 0.9, "inconclusive"),
        (EQUALS, 0.46, 0.4, math.inf, "inconclusive"),
        (EQUALS, 0.6, 0.5, 0.7, "contradicted"),
        (FLAT, 0.1, -0.1, 0.15, "holds"),
        (FLAT, 0.1, -0.1, 0.3, "inconclusive"),
        (FLAT, 0.5, 0.3, 0.7, "contradicted"),
        (FLAT, -0.5, -0.7, -0.3, "contradicted"),
    ],
)
def test_rules(claim, ours, low, high, expected):
    assert verdict(claim, ours, low, high) == expected


@pytest.mark.parametrize("claim", [SIGN, FALLS, EQUALS, FLAT])
@pytest.mark.parametrize(
    "ours, interval, blocked",
    [
        (math.nan, Interval(0.4, 0.5, 0.95), ""),
        (math.inf, Interval(0.4, math.inf, 0.95), ""),
        (0.47, Interval(math.nan, math.nan, 0.95), ""),
        (0.47, Interval(0.46, math.nan, 0.95), ""),
        (0.47, no_interval("two sizes"), ""),
        (0.9, Interval(0.4, 0.5, 0.95), ""),
        (0.47, Interval(0.46, 0.48, 0.95), "another reference batch"),
    ],
)
def test_nothing_broken_ever_passes(claim, ours, interval, blocked):
    finding = judge(claim, ours, interval, blocked)
    assert finding.verdict == "inconclusive"
    assert finding.reason.endswith(".") and len(finding.reason) > 10
    json.dumps(finding.as_json(), allow_nan=False)


def test_json_has_the_six_keys():
    document = judge(EQUALS, 0.46, Interval(0.4, 0.5, 0.95), notes=("o = 10 %: 0.44",)).as_json()
    assert list(document) == ["claim", "published", "ours", "interval", "verdict", "reason"]
    assert document["interval"] == [0.4, 0.5] and document["published"] == 0.47
    opened = judge(SIGN, 0.46, Interval(0.4, math.inf, 0.95)).as_json()
    assert opened["interval"] == [0.4, None]


def test_claims_are_checked_and_recalled_numbers_are_marked():
    recalled = Claim("grows", "paper", 0.47, "exponent", "sign", recalled=True)
    assert "recalled" in judge(recalled, 0.3, Interval(0.1, 0.5, 0.95)).reason
    valid = {"text": "t", "source": "s", "published": 1.0, "unit": "u", "kind": "sign"}
    for wrong in ({"kind": "equals"}, {"published": 0.0}, {"kind": "roughly"}, {"published": math.nan}):
        with pytest.raises(ValueError):
            Claim(**(valid | wrong))


def test_caveats_are_said_in_the_verdict():
    finding = judge(SIGN, 0.3, Interval(0.1, 0.5, 0.95), caveats=("data were repeated 3.0 times",))
    assert finding.verdict == "holds" and finding.reason.endswith("lies above 0. Data were repeated 3.0 times.")
