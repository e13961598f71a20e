"""What a terminal shows: numbers, tables that fit, the progress line."""

import types

import pytest

from lab.report import display
from lab.report.text import duration, interval, number, paragraph, quantity, table

NAN, INFINITE = float("nan"), float("inf")


def test_numbers_as_people_say_them():
    assert [quantity(x) for x in (0.25, 999, 1234567, 1.2e22)] == ["0.25", "999", "1.23M", "12Z"]
    spans = {5: "5s", 75: "1m15s", 7200: "2h00m", 90000: "1d01h", 1e11: "3170 years", INFINITE: "?"}
    assert {x: duration(x) for x in spans} == spans and duration(NAN) == "?"
    numbers = {0.46834: "0.4683", 16384.0: "16384", 2834567.0: "2.835M", -0.5: "-0.5", None: "-"}
    assert {x: number(x) for x in numbers} == numbers and number(NAN) == "-"
    assert interval([688.4, INFINITE]) == interval([688.4, None]) == "[688.4, ...]" and interval(None) == "no interval"


def test_a_table_of_nothing_says_so():
    assert table({}) == table({"rate": []}) == "(empty)"


COLUMNS = {
    "group": ["85M", "1.2B"],
    "critical_batch_sequences": [745.31, 2533.2],
    "critical_batch_low": [688.42, NAN],
    "critical_batch_high": [815.81, NAN],
    "nothing_known": [NAN, NAN],
    "steps": [1294.0, 3897.0],
}


def test_a_table_shows_intervals_with_their_values_and_no_empty_column():
    lines = table(COLUMNS, 100).splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["85M", "745.3", "[688.4,", "815.8]", "1294"],
        ["1.2B", "2533", "3897"],
    ]
    head = " ".join(" ".join(lines[:-2]).split())
    assert "low" not in head and "nothing" not in head and "critical batch" in head


def test_an_interval_stands_with_its_own_column_though_another_begins_alike():
    lines = table({"alpha_N": [0.35], "a": [0.51], "a_low": [0.48], "a_high": [0.55]}, 100).splitlines()
    assert lines[0].split() == ["alpha_N", "a"] and lines[1].split() == ["0.35", "0.51", "[0.48,", "0.55]"]


@pytest.mark.parametrize("width", [30, 40, 100])
def test_a_table_keeps_to_the_width_and_repeats_its_first_column(width):
    text = table(COLUMNS, width)
    assert max(map(len, text.splitlines())) <= max(width, 31)
    assert all("85M" in block and "1.2B" in block for block in text.split("\n\n"))
    assert (len(text.split("\n\n")) > 1) == (width < 40)


def test_a_paragraph_hangs_under_its_first_word():
    lines = paragraph("word " * 30, 14, "HOLDS", 60).splitlines()
    assert lines[0].startswith("HOLDS         word") and all(line.startswith(" " * 14) for line in lines[1:])
    assert max(map(len, lines)) <= 60


def test_progress_counts_training_and_not_compilation(monkeypatch, capsys):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(display.time, "monotonic", lambda: clock.now)
    shown = display.Display(tokens=10_000)
    cfg = types.SimpleNamespace(
        model=types.SimpleNamespace(width=8, depth=1), run=types.SimpleNamespace(batch_tokens=128)
    )
    shown.pack(0, 1, [types.SimpleNamespace(cfg=cfg)] * 3, 0)
    for seconds in (100.0, 4.0, 4.0, 4.0):  # the first comes after compilation
        clock.now += seconds
        shown.progress(types.SimpleNamespace(tick=1, last_tick=9, live=3, tokens=1000, loss=2.5))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pack 1/1: 3 runs, width 8, depth 1, batches 128 tokens; compiling"
    assert lines[1].endswith("? tokens/s  ? left")
    assert lines[-1].endswith("loss 2.500  250 tokens/s  24s left") and len(lines) == 3
