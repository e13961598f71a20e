"""`lab check parametrization`: document, table, exit codes, files of one's own, what cannot be meant."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.cli.answers import assert_refused

README = Path(__file__).resolve().parents[2] / "lab" / "parametrization" / "README.md"
QUICK = ("--widths", "32,128,512", "--axes", "heads", "--quiet")  # programs of tests/parametrization/test_check.py


@pytest.fixture
def mine(tmp_path):
    """The README's own example, as a file."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "mine.py"
    path.write_text(code, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def registering(monkeypatch):
    """What a file registers is forgotten after its test."""
    module = importlib.import_module("lab.parametrization.scales")
    for name in module.known():
        module.find(name)  # built-in ones register at their import, which happens once
    monkeypatch.setattr(module, "_PARAMETRIZATIONS", dict(module._PARAMETRIZATIONS))


def test_passes_with_a_document(lab):
    code, out, err = lab("check", "parametrization", "mup", "--json", *QUICK)
    document = json.loads(out)
    assert code == 0 and document["passed"] and document["first_offender"] is None and err == ""
    (axis,) = document["axes"]
    assert (axis["axis"], axis["sizes"], document["optimizer"]) == ("heads", [32, 128, 512], "adamw")
    rows = {row["name"]: row for row in axis["rows"]}
    query = rows["update layers/attention/query"]
    assert query["expected"] == [-1, -1] and query["low"] <= query["slope"] <= query["high"]
    assert rows["initial logits"]["expected"] == [-0.5, 0] and len(query["rms"]) == 3 and len(query["rms"][0]) == 10


def test_fails_with_a_table_that_names_the_first_offender(lab):
    code, out, err = lab("check", "parametrization", "standard", "--seeds", "3", *QUICK)
    assert code == 1 and err == ""
    assert re.search(r"update layers/attention/query +[-0-9.]+ \[.*\] +-1 +fail", out)
    assert "heads 32, 128, 512: fail, first at update layers/attention/query" in out
    assert out.splitlines()[-1] == "standard does not pass with adamw"


def test_the_example_of_the_readme(lab, mine):
    """Checked, and trained with, as the README says; it is mup by another name, so that losses are mup's."""
    code, out, _ = lab("check", "parametrization", f"{mine}:table3", "--seeds", "6", *QUICK)
    assert code == 0 and "table3 passes with adamw" in out
    losses = {}
    for name in ("table3", "mup"):
        words = ("--scale", "smoke", f"--parametrization.name={name}", "--parametrization.base_width=8")
        words += ("--data.corpus=synthetic:alphabet=5,documents=300,document_tokens=60", "--quiet", "--json")
        code, out, err = lab("reproduce", f"{mine}:critical-batch-size/fixed-model", *words)
        assert code == 0, err
        table = pd.read_parquet(json.loads(out)["table"])
        losses[name] = table.sort_values(["run.batch_tokens", "optimizer.learning_rate"])["loss"].to_numpy()
    assert len(losses["mup"]) > 1
    np.testing.assert_allclose(losses["table3"], losses["mup"], rtol=1e-3)


@pytest.mark.parametrize(
    "words, said",
    [
        (("mupp",), ("parametrization.name is 'mupp'", "did you mean 'mup'")),
        (("nowhere.py:mine",), ("found no file", "FILE.py:NAME")),
        (("mup", "--widths", "32,64"), ("--widths: found 32, 64", "16 times")),
        (("mup", "--widths", "32,x"), ("--widths: found '32,x'", "whole numbers")),
        (("mup", "--axes", "widht"), ("--axes is 'widht'", "did you mean 'width'")),
        (("mup", "--optimizer", "adam"), ("--optimizer is 'adam'", "did you mean 'adamw'")),
        (("mup", "--run.seed=3"), ("--run.seed", "expected --model.*")),
        (("mup", "--optimizer.name=sgd"), ("--optimizer.name", "--optimizer")),
        (("mup", "--model.widht=3"), ("unknown config key 'model.widht'", "did you mean model.width")),
        (("mup", "--model.heads=3"), ("model.heads=3 does not divide model.width=32",)),
    ],
)
def test_what_cannot_be_meant_is_one_line(lab, words, said):
    assert_refused(lab("check", "parametrization", *words, "--quiet"), *said)


def test_a_file_that_does_not_run_is_one_line(lab, tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    assert_refused(lab("check", "parametrization", f"{tmp_path / 'broken.py'}:x"), "broken.py", "nothing_of_that_name")
    (tmp_path / "other.py").write_text("x = 1\n")
    assert_refused(lab("check", "parametrization", f"{tmp_path / 'other.py'}:mine"), "parametrization.name is 'mine'")
