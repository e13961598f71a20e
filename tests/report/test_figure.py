from __future__ import annotations

import math

import numpy as np
import pytest

from lab.laws.bootstrap import Interval, no_interval
from lab.report import figure as draw
from lab.report.findings import Claim, judge

CLAIM = Claim("grows", "paper", 0.47, "exponent", "sign")
FINDINGS = (judge(CLAIM, 0.3, Interval(0.1, 0.5, 0.95)), judge(CLAIM, math.nan, no_interval("too few sizes")))


def drawn(stem):
    with draw.style():
        figure, axes = draw.plt.subplots()
        axes.set(xscale="log", yscale="log")
        x = np.array([1.0, 2.0, 4.0])
        draw.points(axes, x, x, x / 2, [2.0, math.inf, math.nan], label="ours")
        draw.censored_points(axes, [8.0], [3.0], label="bound")
        draw.curve(axes, x, x, draw.PUBLISHED, "published", "--")
        draw.band(axes, x, x / 2, x * 2)
        draw.legend_above(axes)
        draw.caption(figure, FINDINGS, 1.0)
    return draw.save(figure, stem)


def test_files_are_written_the_same_twice_and_nothing_else(tmp_path):
    first, second = drawn(tmp_path / "a" / "figure"), drawn(tmp_path / "b" / "figure")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["figure.png", "figure.svg"]
    for one, other in zip(first, second):
        assert one.read_bytes() == other.read_bytes() and one.stat().st_size > 3000
    assert b"INCONCLUSIVE" in first[1].read_bytes() and b"HOLDS" in first[1].read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    figure = draw.plt.figure()

    def broken(path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", broken)
    with pytest.raises(OSError):
        draw.save(figure, tmp_path / "figure")
    assert list(tmp_path.iterdir()) == []


def test_legend_stays_above_the_marks():
    figure, axes = draw.plt.subplots()
    axes.set(yscale="log")
    axes.plot([1, 2], [1.0, 100.0], label="law")
    before = axes.get_ylim()[1]
    draw.legend_above(axes)
    assert axes.get_ylim()[1] > before
    draw.plt.close(figure)


def test_compact_numbers_and_ordered_colours():
    assert [draw.compact(v) for v in (12.0, 1500.0, 2e6, 3e9)] == ["12", "1.5k", "2M", "3G"]
    assert len(set(draw.sequence_of_colours(5))) == 5
