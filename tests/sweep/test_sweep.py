"""What a sweep still lacks is trained, once, whichever pack, experiment or process it falls to."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from small_packs import config, corpus, quickly_compiled  # noqa: F401

from lab.errors import HeldError
from lab.sweep.axes import axis
from lab.sweep.plan import make_runs
from lab.sweep.run import export, missing, table, train_missing
from lab.train import provenance
from lab.train.loop import Interrupted
from lab.train.store import RunStore

pytestmark = pytest.mark.usefixtures("quickly_compiled")


class Told:
    """A display that remembers what it was told, and may do something at each progress."""

    def __init__(self, act=lambda progress: None):
        self.lines, self.warnings, self.packs, self.act = [], [], [], act

    def add(self, tokens):
        pass

    def say(self, line):
        self.lines.append(line)

    def warn(self, line):
        self.warnings.append(line)

    def pack(self, index, packs, runs, tick):
        self.packs.append((sorted(run.id for run in runs), tick))

    def progress(self, progress):
        self.act(progress)


def sweep(rates, **changes):
    """One run per learning rate, 8 ticks each, saved every 2."""
    base = config(execution__checkpoint_ticks=2, **changes)
    return make_runs(base, axis("optimizer.learning_rate", rates), corpus().vocab_size, corpus().digest)


def names(runs):
    return sorted(run.id for run in runs)


def train(store, runs, act=lambda progress: None, **options):
    told = Told(act)
    train_missing(store, runs, corpus(), told, **options)
    return told


def stop_at(tick):
    """A display's act: Ctrl-C once `tick` is reported."""
    return lambda progress: progress.tick >= tick and os.kill(os.getpid(), signal.SIGINT)


def history(store):
    (path,) = (store.root / "packs").glob("*/history.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def interrupted(store, runs):
    """Trains until Ctrl-C; returns the tick from which it will go on."""
    with pytest.raises(Interrupted):
        train(store, runs, stop_at(2))
    assert missing(store, runs) == runs
    return history(store)[-1]["tick"]


def test_adding_a_learning_rate_trains_one_run(tmp_path):
    store = RunStore(tmp_path)
    two, three = sweep([0.01, 0.02]), sweep([0.01, 0.005, 0.02])
    assert train(store, two).packs == [(names(two), 0)]
    assert train(store, two).packs == []
    added = [run for run in three if run.id not in names(two)]
    assert len(added) == 1 and train(store, three).packs == [(names(added), 0)]
    rows = table(store, three)
    assert rows["run"].tolist() == [run.id for run in three] and (rows["status"] == "finished").all()
    assert rows["optimizer.learning_rate"].tolist() == [0.01, 0.005, 0.02] and (rows["steps"] == 8).all()
    assert not any(name.startswith("execution.") for name in rows) and rows["loss"].is_unique
    # another experiment that shares two of them, under other execution settings
    shared = sweep([0.02, 0.005], execution__microbatch_tokens=64, execution__run_axis="map")
    assert set(names(shared)) < set(names(three)) and train(store, shared).packs == []
    assert table(store, sweep([0.5]))["status"].tolist() == ["missing"]
    assert not list((tmp_path / "packs").glob("*/checkpoints"))
    out = tmp_path / "out.npz"
    assert export(store, three[0].id[:9], out)["run"] == three[0].id
    with np.load(out) as taken:
        assert taken["weights/embedding"].shape == (8, 16)


def test_an_interrupted_pack_goes_on_as_the_pack_it_was(tmp_path, monkeypatch):
    """Under a sweep that has grown; on other hardware, which is recorded and said."""
    store, runs = RunStore(tmp_path), sweep([0.01, 0.02])
    tick = interrupted(store, runs)
    assert 2 <= tick < 8
    grown = sweep([0.03, 0.01, 0.02])
    hardware = provenance.hardware()
    monkeypatch.setattr(provenance, "hardware", lambda: hardware | {"cores": 1000})
    told = train(store, grown)
    assert told.packs[0] == (names(runs), tick) and len(told.packs) == 2 and told.packs[1][1] == 0
    change = f"hardware.cores: {hardware['cores']} -> 1000"
    assert told.warnings == [f"resumed under a change: {change}"]
    (directory,) = {p.parent for p in tmp_path.glob("packs/*/history.jsonl") if "resume" in p.read_text()}
    start, stop, resume, end = (json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines())
    assert [e["event"] for e in (start, stop, resume, end)] == ["start", "stop", "resume", "end"]
    assert resume["changes"] == [change] and resume["hardware"]["cores"] == 1000 and start["changes"] == []
    assert (
        stop["seconds"] > 0 and end["seconds"] > 0 and stop["flops"] / end["flops"] == pytest.approx(tick / (8 - tick))
    )
    fresh = RunStore(tmp_path / "fresh")
    train(fresh, runs)
    for run in runs:
        assert store.read_record(run.id) == fresh.read_record(run.id)
        assert store.curves(run.id).read("train").equals(fresh.curves(run.id).read("train"))


def test_part_of_an_interrupted_pack_leaves_the_others_where_they_were(tmp_path):
    store, runs = RunStore(tmp_path), sweep([0.01, 0.02])
    tick = interrupted(store, runs)
    assert train(store, runs[:1]).packs == [(names(runs[:1]), 0)]
    assert train(store, runs).packs == [(names(runs[1:]), tick)]


def test_another_micro_batch_starts_an_interrupted_pack_anew_and_says_so(tmp_path):
    store, runs = RunStore(tmp_path), sweep([0.01, 0.02])
    interrupted(store, runs)
    again = sweep([0.01, 0.02], execution__microbatch_tokens=64)
    assert names(again) == names(runs)
    told = train(store, again)
    assert told.packs == [(names(runs), 0)]
    assert len(told.warnings) == 1 and "used micro-batches of 128 tokens, this sweep asks for 64" in told.warnings[0]
    assert [store.read_record(run.id)["microbatch_tokens"] for run in runs] == [64, 64]


def test_a_pack_that_breaks_is_reported_the_others_go_on_and_it_is_tried_again_when_asked(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    broken, sound = sweep([0.01, 0.02]), sweep([0.01, 0.02], evaluation__sequences=16)
    runs = broken + sound
    from lab.train.pack import Pack

    evaluate, evaluations = Pack.evaluate, []

    def fail_once(pack, due):
        evaluations.append(due)
        if pack.cfg.evaluation.sequences == 8 and len(evaluations) == 2:
            raise RuntimeError("out of luck\nand more")
        return evaluate(pack, due)

    monkeypatch.setattr(Pack, "evaluate", fail_once)
    told = train(store, runs)
    assert table(store, runs)["status"].tolist() == ["failed"] * 2 + ["finished"] * 2
    assert set(table(store, broken)["error"]) == {"RuntimeError: out of luck"}
    assert len(told.warnings) == 1 and "a pack of 2 runs failed: RuntimeError: out of luck" in told.warnings[0]
    assert train(store, runs).packs == [] and missing(store, runs) == []
    assert missing(store, runs, retry_failed=True) == broken
    told = train(store, runs, retry_failed=True)
    assert told.packs == [(names(broken), 2)] and (table(store, runs)["status"] == "finished").all()
    assert train(store, runs, retry_failed=True).packs == []


HOLDER = """
import sys, time
from pathlib import Path
from lab.train.store import RunStore

with RunStore(Path(sys.argv[1])).hold([sys.argv[2]]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_process_is_told_who_holds_the_work(tmp_path):
    """And what it does not lack it need not hold."""
    store, runs = RunStore(tmp_path), sweep([0.01, 0.02])
    done = sweep([0.03])
    train(store, done)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holders = [subprocess.Popen([*command, run.id], stdout=subprocess.PIPE, text=True) for run in (runs[1], done[0])]
    try:
        for holder in holders:
            assert holder.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=f"{runs[1].id} is held by process {holders[0].pid} on") as caught:
            train(store, runs + done)
        assert "\n" not in str(caught.value) and missing(store, runs) == runs
        assert train(store, runs[:1] + done).packs == [(names(runs[:1]), 0)]
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
            holder.stdout.close()
    assert train(store, runs + done).packs == [(names(runs[1:]), 0)]
