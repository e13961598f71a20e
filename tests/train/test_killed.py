"""A sweep killed again and again ends as the one that was left alone: real processes, real signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lab.train.store import RunStore, read_table

TICKS, LONGER, EVERY = 252, 336, 11  # checkpoints fall inside the accumulation windows of 3 and of 7 ticks

EXPERIMENT = """
from lab.config import default_config, override
from lab.sweep.axes import axis, product
from lab.sweep.experiment import Experiment, Sweep

BASE = override(default_config(), {
    "model.width": 16, "model.depth": 1, "model.heads": 2, "model.kv_heads": 2, "model.mlp_width": 32,
    "model.sequence_length": 16, "data.corpus": "synthetic:alphabet=5,documents=300,document_tokens=60",
    "run.horizon_tokens": 252 * 64, "averaging.name": "exponential", "averaging.window_tokens": 2048,
    "evaluation.points": 4, "evaluation.first_tokens": 2048, "evaluation.sequences": 8,
    "execution.microbatch_tokens": 64, "execution.checkpoint_seconds": 0.0,
})
POINTS = product(axis("run.batch_tokens", [64, 192, 448]), axis("optimizer.learning_rate", [0.003, 0.01]))
POINTS += [{"run.horizon_tokens": 336 * 64, "run.batch_tokens": 192, "run.data_seed": 1}]
EXPERIMENTS = [Experiment("mine/only", "", "", {"tiny": lambda: Sweep(BASE, POINTS, "")}, lambda results: None)]
"""

LAB = """
import sys
from lab import cli
from lab.train import backend

configure = backend.configure

def configured(*arguments):
    configure(*arguments)
    import jax, numpy
    from lab.train.pack import Pack
    drop = Pack.drop

    def keep_and_drop(pack, runs):
        leaves = jax.tree_util.tree_flatten_with_path(pack.state)[0]
        for run in runs:
            slot = pack.slots.index(run)
            numpy.savez(f"{sys.argv[1]}/{run}.npz", **{jax.tree_util.keystr(k): v[slot] for k, v in leaves})
        drop(pack, runs)

    Pack.drop = keep_and_drop

backend.configure = configured
sys.exit(cli.main(sys.argv[2:]))
"""


class Lab:
    """`lab run` on a root of its own; the state of each run at its end is kept beside it, optimizer included."""

    def __init__(self, directory: Path, *options: str):
        self.root, self.ends = directory / "root", directory / "ends"
        self.ends.mkdir(parents=True)
        (directory / "mine.py").write_text(EXPERIMENT)
        words = ["run", str(directory / "mine.py"), "--root", str(self.root), *options]
        self.command = [sys.executable, "-c", LAB, str(self.ends), *words]
        self.environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def newest(self) -> int:
        """Tick of the newest checkpoint that is sealed; 0 while there is none."""
        sealed = self.root.glob("packs/*/checkpoints/*/manifest.json")
        return max((int(path.parent.name[5:17]) for path in sealed), default=0)

    def wait(self, process: subprocess.Popen, reached) -> None:
        """Until `reached()`; the process must still be at work then."""
        deadline = time.monotonic() + 240
        while not reached():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def end(self, process: subprocess.Popen, number: int, code: int) -> str:
        process.send_signal(number)
        errors = process.communicate()[1]
        assert process.returncode == code, errors
        return errors

    def finish(self) -> None:
        process = self.start()
        errors = process.communicate()[1]
        assert process.returncode == 0, errors

    def history(self) -> list[dict]:
        (path,) = self.root.glob("packs/*/history.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_killed_at_random_and_resumed_is_the_run_left_alone(tmp_path):
    rng = np.random.default_rng()
    cut = Lab(tmp_path / "cut", f"--execution.checkpoint_ticks={EVERY}")
    process = cut.start()
    cut.wait(process, lambda: any(path.stat().st_size for path in cut.root.glob("packs/*/history.jsonl")))
    cut.end(process, signal.SIGKILL, -signal.SIGKILL)
    assert cut.newest() == 0
    killed = [0]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process, goal = cut.start(), cut.newest() + int(rng.integers(1, 25))
        goal = goal if len(killed) < 3 else TICKS + EVERY  # the last time when one run is left
        cut.wait(process, lambda goal=goal: cut.newest() >= goal)
        time.sleep(rng.uniform(0, 0.05))
        errors = cut.end(process, number, 130 if number == signal.SIGINT else -number)
        assert ("stopped" in errors) == (number == signal.SIGINT)
        killed.append(cut.newest())
    cut.finish()
    assert not list(cut.root.glob("packs/*/checkpoints")) and cut.newest() == 0

    events = cut.history()
    resumed = [event["tick"] for event in events if event["event"] == "resume"]
    assert (
        len(resumed) == 3
        and 0 < killed[1] <= resumed[0]
        and resumed == sorted(resumed)
        and TICKS < resumed[-1] < LONGER
    )
    assert any(tick % 3 and tick % 7 for tick in resumed)
    assert [e["event"] for e in events] == ["start", "start", "resume", "stop", "resume", "resume", "end"]

    whole = Lab(tmp_path / "whole")  # without a checkpoint: other chunks of ticks, too
    shutil.copytree(cut.root / "cache", whole.root / "cache")
    whole.finish()
    runs = sorted(path.name for path in whole.root.glob("runs/*"))
    assert len(runs) == 7
    for run in runs:
        found, expected = (contents(lab.root / "runs" / run) for lab in (cut, whole))
        assert {"weights.npz", "record.json", "curves/curves.json"} <= found.keys()
        assert any(name.startswith("curves/train/c/") for name in found)
        others = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
        assert others <= {"config.json", "lock"}  # how the run was executed, and by whom
        with np.load(cut.ends / f"{run}.npz") as found, np.load(whole.ends / f"{run}.npz") as expected:
            assert {".optimizer.mu['embedding']", ".average['embedding']", ".step"} <= set(expected.files)
            for name in expected.files:
                np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
        train, evaluations = (RunStore(cut.root).curves(run).read(name) for name in ("train", "evaluations"))
        steps = int(evaluations["step"].iloc[-1])
        assert steps in (TICKS, TICKS // 3, TICKS // 7, LONGER // 3) and train.index.tolist() == list(range(steps))
        assert np.isfinite(train.to_numpy()).all() and train["loss"].iloc[-1] < train["loss"].iloc[0]
    tables = [read_table(next(lab.root.glob("sweeps/**/table.parquet"))) for lab in (cut, whole)]
    assert tables[0].equals(tables[1]) and (tables[0]["status"] == "finished").all()
