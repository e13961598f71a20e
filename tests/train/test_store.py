"""The run store: whole or absent, exactly once, one holder at a time, and no flipped bit unseen."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas
import pytest

from lab.errors import HeldError, ResultsError, UserError
from lab.train.store import CHUNK_ROWS, RunStore, read_json, read_table, write_json, write_table

LAYOUT = {
    "train": {"rows": 2500, "fields": ["tokens", "loss", "norm"], "dtype": "float64"},
    "evaluations": {"rows": 12, "fields": ["tokens", "loss"], "dtype": "float32"},
}


def flips(path, seed, count):
    """Write `path` back `count` times with one random bit flipped, and whole at the end."""
    content = path.read_bytes()
    for bit in np.random.default_rng(seed).integers(8 * len(content), size=count):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        yield
    path.write_bytes(content)


def assert_one_line(caught):
    assert str(caught.value) and "\n" not in str(caught.value)


def test_curves_are_the_rows_written_and_only_those(tmp_path):
    store = RunStore(tmp_path)
    curves = store.curves("a", LAYOUT)
    assert len(curves.read("train")) == 0 and list(curves.read("train")) == ["tokens", "loss", "norm"]
    rows = np.random.default_rng(0).normal(size=(1500, 3))
    rows[700, 1:] = np.nan
    curves.write("train", 0, rows[:900])
    curves.write("train", 900, rows[900:])
    curves.write("evaluations", 4, [[1.0, 2.0]])
    for opened in (curves, store.curves("a"), store.curves("a", LAYOUT)):
        read = opened.read("train")
        np.testing.assert_array_equal(read.to_numpy(), rows)
        assert list(read.index) == list(range(1500)) and read["loss"].dtype == np.float64
        assert opened.read("evaluations").index.tolist() == [4]
    curves.forget("train", 1000)
    np.testing.assert_array_equal(curves.read("train").to_numpy(), rows[:1000])
    assert len(store.curves("a", LAYOUT | {"evaluations": LAYOUT["evaluations"] | {"rows": 5}}).read("train")) == 0


def test_rows_that_do_not_fit_are_refused(tmp_path):
    curves = RunStore(tmp_path).curves("a", LAYOUT)
    for first, shape in ((2499, (2, 3)), (-1, (1, 3)), (0, (1, 2))):
        with pytest.raises(ValueError, match="do not fit"):
            curves.write("train", first, np.zeros(shape))


def test_rewriting_rows_changes_no_byte(tmp_path):
    """A history cut and repeated from an earlier row leaves the files of the uninterrupted one."""
    store = RunStore(tmp_path)
    rows = np.random.default_rng(0).normal(size=(2500, 3))
    whole, cut = store.curves("whole", LAYOUT), store.curves("cut", LAYOUT)
    whole.write("train", 0, rows)
    cut.write("train", 0, rows[:1300])
    for first in range(1000, 2500, 100):
        store.curves("cut").write("train", first, rows[first : first + 100])

    def files(run):
        directory = store.run_directory(run)
        return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}

    assert files("whole") == files("cut")
    assert len([name for name in files("cut") if "train/c/" in name]) == -(-2500 // CHUNK_ROWS)


def test_a_flipped_bit_in_any_file_of_the_curves_is_found(tmp_path):
    store = RunStore(tmp_path)
    rows = np.random.default_rng(0).normal(size=(2000, 3))
    curves = store.curves("a", LAYOUT)
    curves.write("train", 0, rows)
    curves.write("evaluations", 0, rows[:12, :2])
    files = sorted(path for path in store.run_directory("a").rglob("*") if path.is_file())
    assert len(files) == 1 + 2 + 2 + 1
    for seed, file in enumerate(files):
        for _ in flips(file, seed, 15):
            with pytest.raises(ResultsError) as caught:
                opened = store.curves("a")
                for name in LAYOUT:
                    opened.read(name)
            assert_one_line(caught)
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ResultsError):
            opened = store.curves("a")
            for name in LAYOUT:
                opened.read(name)
        file.write_bytes(content)
    np.testing.assert_array_equal(store.curves("a").read("train").to_numpy(), rows)


def test_documents_and_tables_find_every_flipped_bit(tmp_path):
    document = {"learning_rate": 0.1, "name": "é", "loss": float("nan"), "seeds": [1, 2]}
    write_json(tmp_path / "a.json", document)
    assert str(read_json(tmp_path / "a.json")) == str(document)
    assert json.loads((tmp_path / "a.json").read_text())["content"]["seeds"] == [1, 2]
    table = pandas.DataFrame({"run": ["a", "b"], "loss": [1.5, np.nan], "steps": [3, 4], "reached": [True, False]})
    write_table(tmp_path / "t.parquet", table)
    pandas.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), table)
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "t.parquet"), table)
    for name, read in (("a.json", read_json), ("t.parquet", read_table)):
        for _ in flips(tmp_path / name, 0, 400):
            with pytest.raises(ResultsError) as caught:
                read(tmp_path / name)
            assert_one_line(caught)
        read(tmp_path / name)
        with pytest.raises(ResultsError) as caught:
            read(tmp_path / "absent")
        assert_one_line(caught)
    write_table(tmp_path / "t.parquet", table.head(0))
    assert len(read_table(tmp_path / "t.parquet")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "t.parquet"]


def test_a_record_is_written_once_and_only_a_failure_is_cleared(tmp_path):
    store = RunStore(tmp_path)
    assert store.read_record("a") is None and store.read_config("a") is None
    store.write_config("a", {"width": 64})
    store.write_record("a", {"status": "failed", "reason": "out of memory"})
    store.write_record("a", {"status": "failed", "reason": "out of memory"})
    with pytest.raises(ResultsError, match="only once"):
        store.write_record("a", {"status": "finished"})
    store.clear_failed("a")
    store.write_record("a", {"status": "finished", "loss": 2.25})
    with pytest.raises(ResultsError, match="not failed"):
        store.clear_failed("a")
    assert store.read_record("a") == {"status": "finished", "loss": 2.25} and store.read_config("a") == {"width": 64}
    store.clear_failed("never started")


def test_directories(tmp_path):
    store = RunStore(tmp_path)
    pack = store.pack_directory(["a", "b"])
    assert pack == store.pack_directory(iter(["a", "b"])) != store.pack_directory(["b", "a"])
    assert store.sweep_directory("critical-batch-size/chinchilla", "tiny").relative_to(tmp_path).parts == (
        "sweeps",
        "critical-batch-size",
        "chinchilla",
        "tiny",
    )


HOLDER = """
import sys, time
from lab.train.store import RunStore

store = RunStore(sys.argv[1])
with store.hold(sys.argv[2:]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holding(root, *runs):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(root), *runs], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    store = RunStore(tmp_path)
    with holding(tmp_path, "b", "c") as process:
        with pytest.raises(HeldError) as caught, store.hold(["a", "b", "d"]):
            pytest.fail("held twice")
        message = str(caught.value)
        assert f"process {process.pid} on {os.uname().nodename} since {time.strftime('%Y-%m')}" in message
        assert "run b" in message and "\n" not in message
        with store.hold(["a", "d"]):  # what was acquired before the refusal is free again
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with store.hold(["a", "b", "c"]):
            with pytest.raises(HeldError, match=f"process {os.getpid()} "), store.hold(["c"]):
                pytest.fail("held twice")
        with store.hold(["c"]):
            pass


def test_many_runs_are_held_at_once(tmp_path):
    with RunStore(tmp_path).hold(f"run-{i}" for i in range(1200)):
        pass


WRITER = """
import sys
import numpy as np
from lab.train.store import RunStore

curves = RunStore(sys.argv[1]).curves("a", {"train": {"rows": 4000, "fields": ["x"], "dtype": "float64"}})
row = max(len(curves.read("train")) - 5, 0)
print("at", row, flush=True)
while row < 4000:
    curves.write("train", row, [[row]])
    print("wrote", row, flush=True)
    row += 1
"""


def test_a_killed_writer_leaves_readable_rows(tmp_path):
    wrote = -1
    for delay in (0.05, 0.15, 0.3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        lines = process.communicate()[0].splitlines()
        wrote = max([wrote, *(int(line.split()[1]) for line in lines if line.startswith("wrote ") and line[6:])])
        rows = RunStore(tmp_path).curves("a").read("train")
        assert len(rows) > wrote > 0 and (rows["x"] == rows.index).all()


def test_full_disk_says_so(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        store = RunStore(disk)
        store.write_record("a", {"status": "failed"})
        curves = store.curves("a", {"train": {"rows": 100_000, "fields": ["x"], "dtype": "float64"}})
        curves.write("train", 0, np.ones((1024, 1)))
        with pytest.raises(UserError, match="no space left") as caught:
            curves.write("train", 1024, np.ones((90_000, 1)))
        assert_one_line(caught)
        with pytest.raises(UserError, match="no space left"):
            store.write_record("b", {"status": "x" * 300_000})
        assert store.read_record("b") is None and store.read_record("a") == {"status": "failed"}
        assert len(store.curves("a").read("train")) >= 1024
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
