"""The commands as a user gives them: documents, exit codes, one line for what the user can mend, Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import numpy as np
import pytest

from lab import cli
from tests.cli.answers import assert_refused, document, spoken

ROOT = Path(__file__).resolve().parents[2]
ID = "critical-batch-size/fixed-model"
QUICK_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
SMALL = "--data.corpus=synthetic:alphabet=5,documents=300,document_tokens=60"
VERDICT = {"claim", "published", "ours", "interval", "verdict", "reason"}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A root in which `smoke` was reproduced, by a process of its own; what the process said."""
    root = tmp_path_factory.mktemp("root")
    return root, shell("reproduce", ID, "--scale", "smoke", "--root", root, "--json")


def shell(*argv, **options):
    """A command in a process of its own, as a new user has it: no emulated devices."""
    return subprocess.run(command(*argv), env=environment(), capture_output=True, text=True, timeout=300, **options)


def command(*argv):
    return [sys.executable, "-m", "lab", *map(str, argv)]


def environment():
    return {**os.environ, "XLA_FLAGS": QUICK_COMPILE, "PYTHONPATH": str(ROOT)}


def test_list_names_every_experiment(lab):
    known = document(lab("list", "--json"))
    assert all({"id", "paper", "scales"} <= set(experiment) for experiment in known)
    ids = [experiment["id"] for experiment in known]
    assert {f"critical-batch-size/{panel}" for panel in ("chinchilla", "fixed-model", "fixed-data")} <= set(ids)
    scales = {experiment["id"]: set(experiment["scales"]) for experiment in known}
    assert all({"smoke", "tiny", "small", "paper"} <= scales[name] or scales[name] == {"published"} for name in ids)
    assert scales["chinchilla/replication"] == {"published"} and "tiny" in scales["critical-batch-size/chinchilla"]
    code, out, _ = lab("list")
    assert code == 0 and all(name in out for name in ids)


def test_help_and_version_say_what_to_type():
    words = {"--help": "lab reproduce", "--version": "windtunnel", "plan --help": "--section.key"}
    for given, word in words.items():
        done = shell(*given.split())
        assert done.returncode == 0 and word in done.stdout


def test_plan_trains_nothing(lab, tmp_path):
    plan = document(lab("plan", ID, "--scale", "smoke", "--root", tmp_path, "--json"))
    assert {"id", "scale", "runs", "packs", "tokens", "flops", "state_bytes", "seconds", "notes"} <= set(plan)
    assert plan["runs"] == sum(pack["runs"] for pack in plan["pack_list"]) > 0 and plan["finished"] == 0
    assert not (tmp_path / "runs").exists() and not (tmp_path / "sweeps").exists()
    code, out, _ = lab("plan", ID, "--scale", "smoke", "--root", tmp_path)
    assert code == 0 and f"{plan['runs']} runs" in out and "FLOPs" in out


def test_plan_of_the_published_setting_needs_no_corpus(lab, tmp_path):
    plan = document(lab("plan", ID, "--scale", "paper", "--root", tmp_path, "--json", "--data.corpus=absent/c4.jsonl"))
    assert plan["pack_list"][0]["parameters"]["non_embedding"] > 300e6 and plan["flops"] > 1e21
    assert "absent/c4.jsonl" in plan["notes"][0]


def test_plan_shows_every_key_and_an_override_changes_one(lab, tmp_path):
    given = ("--scale", "smoke", "--root", tmp_path, "--config", "--json")
    before, after = document(lab("plan", ID, *given)), document(lab("plan", ID, *given, "--model.depth=2"))
    assert {key for key in before if before[key] != after[key]} == {"model.depth"} and after["model.depth"] == 2
    assert document(lab("plan", ID, *given, "--model.depth", "2")) == after


def test_reproduce_ends_with_a_figure_and_verdicts(reproduced):
    root, done = reproduced
    report = spoken(done)
    assert {"id", "scale", "runs", "verdicts", "figure", "table"} <= set(report)
    assert report["id"] == ID and report["scale"] == "smoke" and report["status"] == {"finished": report["runs"]}
    assert report["verdicts"] and all(VERDICT <= set(verdict) for verdict in report["verdicts"])
    assert {v["verdict"] for v in report["verdicts"]} <= {"holds", "contradicted", "inconclusive"}
    assert all(v["reason"] for v in report["verdicts"])
    assert Path(report["figure"]).read_bytes().startswith(b"\x89PNG") and Path(report["table"]).is_file()
    assert {"hardware", "code", "cost", "corpus"} <= set(report)
    assert "pack 1/" in done.stderr and "{" not in done.stderr


def test_a_second_run_trains_nothing(reproduced, lab, monkeypatch):
    root, done = reproduced

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr("lab.sweep.run.train_pack", never)
    given = ("--scale", "smoke", "--root", root)
    assert document(lab("run", ID, *given, "--json"))["status"] == {"finished": 6}
    again = document(lab("reproduce", ID, *given, "--json"))
    assert again["verdicts"] == json.loads(done.stdout)["verdicts"]
    code, out, err = lab("run", ID, *given, "--quiet")
    assert code == 0 and "6 finished" in out and err == ""
    assert document(lab("plan", ID, *given, "--json"))["finished"] == 6


def test_show_reads_what_was_reproduced(reproduced, lab):
    root, done = reproduced
    report = json.loads(done.stdout)
    given = ("show", ID, "--scale", "smoke", "--root", root)
    shown = document(lab(*given, "--json"))
    assert shown["verdicts"] == report["verdicts"] and shown["figure"] == report["figure"]
    code, out, _ = lab(*given)
    assert code == 0 and report["figure"] in out
    squeezed = " ".join(out.split())
    for verdict in report["verdicts"]:
        assert verdict["verdict"].upper() in out and " ".join(verdict["reason"].split()) in squeezed


def test_show_reads_committed_results_where_nothing_was_trained(reproduced, lab, monkeypatch, tmp_path):
    root, done = reproduced
    shutil.copytree(root / "sweeps", tmp_path / "committed")
    monkeypatch.setattr(cli, "COMMITTED", tmp_path / "committed")
    shown = document(lab("show", ID, "--scale", "smoke", "--root", tmp_path / "fresh", "--json"))
    assert shown["verdicts"] == json.loads(done.stdout)["verdicts"]
    assert Path(shown["figure"]).is_relative_to(tmp_path / "committed") and not (tmp_path / "fresh").exists()


def test_every_committed_result_is_shown(lab, tmp_path):
    committed = sorted(cli.COMMITTED.rglob("report.json"))
    assert committed
    for path in committed:
        name = path.parent.relative_to(cli.COMMITTED)
        shown = document(lab("show", name.parent, "--scale", name.name, "--root", tmp_path, "--json"))
        assert shown["verdicts"] and Path(shown["figure"]).is_file() and Path(shown["table"]).is_file()
        assert str(ROOT) not in path.read_text(encoding="utf-8")


def test_export_takes_out_the_weights_of_one_run(reproduced, lab, tmp_path):
    root, _ = reproduced
    run = sorted(path.name for path in (root / "runs").iterdir())[0]
    answer = document(lab("export", run[:9], tmp_path / "weights.npz", "--root", root, "--json"))
    assert answer["run"] == run and answer["tick"] > 0
    taken, kept = dict(np.load(answer["out"])), dict(np.load(root / "runs" / run / "weights.npz"))
    chex.assert_trees_all_equal(taken, kept)
    chex.assert_tree_all_finite(taken)
    assert any(name.startswith("average/") for name in taken)


def test_the_readme_experiment_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "EXPERIMENTS" in block)
    mine = tmp_path / "mine.py"
    mine.write_text(code, encoding="utf-8")
    smaller = ("--model.width=16", "--model.depth=1", "--model.sequence_length=16", "--run.horizon_tokens=8192")
    quicker = ("--run.batch_tokens=512", "--execution.microbatch_tokens=512", "--execution.noise_probe_ticks=0")
    small = (*smaller, *quicker, "--evaluation.points=2", SMALL)
    report = spoken(shell("reproduce", mine, "--root", tmp_path, "--json", "--quiet", *small))
    assert report["id"] == "mine/rates" and report["status"] == {"finished": 3} and Path(report["figure"]).is_file()
    rows = (Path(report["figure"]).parent / "rates.csv").read_text().splitlines()
    assert len(rows) == 4
    assert spoken(shell("show", f"{mine}:mine/rates", "--root", tmp_path, "--json", *small)) == report


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], ["VERB"]),
        (["lst"], ["'lst'", "list"]),
        (["list", "--bogus"], ["--bogus"]),
        (["list", "--model.width=3"], ["no config overrides"]),
        (["plan"], ["ID"]),
        (["plan", "critical-batch-size/chinchila"], ["did you mean critical-batch-size/chinchilla?"]),
        (["plan", "nothing-like-it"], ["unknown experiment", "lab list"]),
        (["plan", "./absent.py"], ["absent.py"]),
        (["plan", ID, "--scale", "tinny"], ["'tinny'", "did you mean tiny?"]),
        (["plan", ID, "--model.widht=128"], ["did you mean model.width?"]),
        (["plan", ID, "--width=128"], ["did you mean --model.width=value?"]),
        (["plan", ID, "--model.depth"], ["no value"]),
        (["plan", ID, "--model.depth=three"], ["'three'", "whole number"]),
        (["plan", ID, "--model.depth=1.5"], ["whole number"]),
        (["plan", ID, "--model.tied=maybe"], ["true or false"]),
        (["plan", ID, "--optimizer.learning_rate=nan"], ["number"]),
        (["plan", ID, "--optimizer.learning_rate=-1"], ["above 0"]),
        (["plan", ID, "--optimizer.name=adamv"], ["did you mean adamw?"]),
        (["plan", ID, "--run.batch_tokens=192"], ["192", "multiple of the micro-batch"]),
        (["plan", ID, "--model.heads=3", "--model.head_width=0"], ["heads=3", "divide"]),
        (["plan", ID, "--model.kind=mamba"], ["mamba", "decoder"]),
        (["plan", ID, "--data.corpus=pydoc"], ["did you mean pydocs?"]),
        (["plan", ID, "--data.corpus=absent/file.txt"], ["absent/file.txt"]),
        (["plan", ID, "--data.corpus=cache:absent"], ["absent", "token cache"]),
        (["run", ID, "--execution.mesh.data=64", SMALL], ["64 devices", "found"]),
        (["run", ID, "--evaluation.sequences=0", SMALL], ["evaluation.sequences"]),
        (["show", ID], ["no report", "lab reproduce"]),
        (["reproduce", "critical-batch-size/chinchilla", "--published", "absent.csv"], ["absent.csv"]),
        (["reproduce", ID, "--published", "absent.csv"], ["no published table"]),
        (["export", "0123", "out.npz"], ["'0123'", "none"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_leaves_nothing_half_written(lab, tmp_path, argv, words):
    options = []
    if argv and argv[0] != "list" and len(argv) > 1:
        options = ["--root", tmp_path / "root", "--json"]
        options += ["--scale", "smoke"] if argv[0] != "export" and "--scale" not in argv else []
    assert_refused(lab(*argv, *options), *words)
    assert_nothing_half_written(tmp_path)


def assert_nothing_half_written(directory):
    names = [path.name for path in directory.rglob("*")]
    assert not [name for name in names if name.endswith((".tmp", ".part")) or ".building-" in name]
    assert not {"record.json", "report.json", "figure.png", "table.parquet"} & set(names)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("empty.txt", b"", ["empty"]),
        ("one.txt", b"too short", ["one document"]),
        ("latin.txt", b"caf\xe9 " * 100, ["UTF-8", "offset 3"]),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', ["line 2"]),
    ],
)
def test_a_file_that_is_no_corpus_is_refused(lab, tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    given = ("--scale", "smoke", "--root", tmp_path / "root", "--json", f"--data.corpus={path}")
    assert_refused(lab("run", ID, *given), *words)
    assert_nothing_half_written(tmp_path)


def test_a_corpus_shorter_than_a_batch_is_refused(lab, tmp_path):
    long = ("--run.batch_tokens=32768", "--run.horizon_tokens=32768")
    answer = lab("run", ID, "--scale", "smoke", "--root", tmp_path, "--json", SMALL, *long)
    assert_refused(answer, "497 sequences of 32", "1024 are needed")
    assert_nothing_half_written(tmp_path)


def test_a_flipped_bit_in_the_token_cache_is_found(lab, tmp_path):
    given = ("--scale", "smoke", "--root", tmp_path, SMALL)
    document(lab("plan", ID, *given, "--json"))
    cache = next(path.parent for path in (tmp_path / "cache").glob("*/manifest.json"))
    chunk = max(cache.rglob("tokens.train/c/*"), key=lambda path: path.stat().st_size)
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    assert_refused(lab("run", ID, *given, "--json"), "damaged", "tokens.train", "prepare again")


def test_the_cache_of_another_corpus_is_refused(lab, tmp_path):
    for corpus in (SMALL, SMALL.replace("300", "301")):
        document(lab("plan", ID, "--scale", "smoke", "--root", tmp_path, "--json", corpus))
    first, second = sorted(path.parent for path in (tmp_path / "cache").glob("*/manifest.json"))
    shutil.rmtree(first)
    second.rename(first)
    answers = [lab("plan", ID, "--scale", "smoke", "--root", tmp_path, c) for c in (SMALL, SMALL.replace("300", "301"))]
    refused = [answer for answer in answers if answer[0]]
    assert len(refused) == 1
    assert_refused(refused[0], "another corpus", "delete")


def test_a_published_file_without_its_columns_is_refused(lab, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("model,params_millions,batch_size\n85M,85,64\n")
    given = ("--published", table, "--root", tmp_path / "root", "--json")
    assert_refused(lab("reproduce", "critical-batch-size/chinchilla", *given), "target_loss", "table.csv")
    assert not (tmp_path / "root").exists()


def test_a_root_that_is_a_file_is_refused(lab, tmp_path):
    (tmp_path / "root").write_text("in the way")
    for verb in ("plan", "run", "reproduce"):
        assert_refused(lab(verb, ID, "--scale", "smoke", "--root", tmp_path / "root", "--json", SMALL), "root")
    assert (tmp_path / "root").read_text() == "in the way"


def test_a_full_disk_is_one_line(lab, tmp_path, monkeypatch):
    given = ("--scale", "smoke", "--root", tmp_path, SMALL)
    document(lab("plan", ID, *given, "--json"))

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    assert_refused(lab("run", ID, *given, "--json"), "no space left", "free some space")
    assert_nothing_half_written(tmp_path)


def test_output_may_be_cut_short(reproduced):
    root, _ = reproduced
    shown = " ".join(command("show", ID, "--scale", "smoke", "--root", root))
    cut = ["bash", "-c", f"{shown} | head -n 1; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(cut, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(ID) and done.stderr == "" and done.returncode in (0, 141)


def test_ctrl_c_leaves_a_sweep_that_goes_on(tmp_path):
    shape = ("--run.batch_tokens=512", "--run.horizon_tokens=65536", "--execution.noise_probe_ticks=0")
    given = ("run", ID, "--scale", "smoke", "--root", tmp_path, *shape)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(*given), env=environment(), **pipes) as process:
        said = process.stderr.readline()
        while "compiling" not in said:
            said = process.stderr.readline()
            assert said, "ended before it trained"
        time.sleep(1.0)  # it compiles for longer than that
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err, err
    last = err.splitlines()[-1]
    assert "goes on" in last and f"lab run {ID} --scale smoke" in last
    assert not list(tmp_path.glob("runs/*/record.json")) and list(tmp_path.glob("packs/*/checkpoints/*/manifest.json"))
    again = shell(*given, "--json")
    assert spoken(again)["status"] == {"finished": 2} and "resumed 2 runs at tick" in again.stderr
    assert not list(tmp_path.glob("packs/*/checkpoints"))
