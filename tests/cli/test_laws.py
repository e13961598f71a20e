"""`lab fit`, `lab laws` and `lab design` as a user gives them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from lab import cli, cli_laws
from lab.laws.datasets import DATASETS
from lab.laws.fit import fit
from lab.laws.law import law
from lab.laws.objective import Objective
from lab.laws.solve import Rows
from tests.cli.answers import assert_refused, document, spoken

ROOT = Path(__file__).resolve().parents[2]
TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
MAP = ("--map", "N=params", "--map", "D=tokens", "--map", "loss=final_loss")
QUICK = ("--no-sensitivity", "--counting", "N without embeddings")
LAW_FILE = """
from lab.laws.law import Column, Law, exponent, positive, register

register(Law(
    name="tokens-only",
    formula="L = E + B / D^beta",
    source="ours",
    columns=(Column("D", "tokens"),),
    target=Column("loss", "nats per token"),
    parameters=(positive("E"), positive("B"), exponent("beta")),
    predict=lambda p, x: p["E"] + p["B"] * x["D"] ** -p["beta"],
    linear=("E", "B"),
))
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Sixty runs of the Hoffmann law with half a percent of noise, columns as users name them."""
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(7.5, 10, 60), 10 ** rng.uniform(9, 11.5, 60)
    loss = TRUTH["E"] + TRUTH["A"] * params ** -TRUTH["alpha"] + TRUTH["B"] * tokens ** -TRUTH["beta"]
    loss = loss * np.exp(0.005 * rng.standard_normal(60))
    frame = pandas.DataFrame({"sweep": np.arange(60) // 5, "params": params, "tokens": tokens, "final_loss": loss})
    frame = frame.assign(name="run", C="text")  # columns that no law reads
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    frame.to_csv(path, index=False)
    return path


def test_a_fit_is_that_of_the_library_and_its_record_makes_it_again(lab, table, root):
    said = document(lab("fit", "hoffmann", table, *MAP, *QUICK, "--objective", "least-squares", "--json"))
    frame = pandas.read_csv(table)
    columns = {"N": frame["params"].to_numpy(), "D": frame["tokens"].to_numpy()}
    rows = Rows(columns, frame["final_loss"].to_numpy(), np.ones(60), np.zeros(60, bool))
    ours = fit(law("hoffmann"), rows, Objective("least-squares"))
    for name, truth in TRUTH.items():
        entry = said["parameters"][name]
        assert entry["value"] == pytest.approx(ours.values[name], rel=1e-6)
        low, high = entry["interval"]
        assert low < entry["value"] < high and low / 1.5 < truth < high * 1.5
    assert said["derived"]["a"]["interval"][0] < TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    assert said["law"] == "hoffmann" and said["rows"] == 60 and said["objective"]["name"] == "least-squares"
    assert said["certificate"]["converged"] and said["certificate"]["identified"]
    assert said["data"]["map"] == {"N": "params", "D": "tokens", "loss": "final_loss"}
    assert said["data"]["counting"] == "N without embeddings" and said["notes"] == []

    record = json.loads(Path(said["record"]).read_text())
    assert Path(said["record"]).is_relative_to(root) and Path(said["figure"]).read_bytes()[:4] == b"\x89PNG"
    theta = np.array(record["coordinates"]["values"])
    predicted = np.exp(theta[0]) + np.exp(theta[1]) * columns["N"] ** -np.exp(theta[3])
    predicted += np.exp(theta[2]) * columns["D"] ** -np.exp(theta[4])
    again = 0.5 * (np.log(predicted / rows.target) ** 2).sum()
    assert again == pytest.approx(said["objective"]["value"], rel=1e-9)
    assert np.linalg.eigvalsh(np.array(record["coordinates"]["covariance"])).min() > 0
    assert {"jax", "numpy", "python", "windtunnel"} <= set(record["versions"]) and record["seed"] == 0


def test_three_laws_of_a_file_are_compared_by_held_out_error_in_one_command(lab, table):
    names = "hoffmann,hoffmann-shared,kaplan"
    code, out, err = lab("fit", names, table, *MAP, *QUICK, "--hold-out", "largest:params")
    assert code == 0, err
    lines = out.strip().splitlines()
    assert lines[0].startswith("Held-out error: largest params")
    (end,) = (i for i, line in enumerate(lines) if "predicts these rows best" in line)
    order = [line.split()[0] for line in lines[2:end] if line.split() and line.split()[0] in names.split(",")]
    assert sorted(order) == sorted(names.split(","))
    assert order[-1] == "kaplan" and "nearest run" in out  # it has no floor, and the truth has one
    assert lines[end].startswith(f"{order[0]} ") and "kaplan" not in lines[end]

    said = document(lab("fit", "hoffmann,kaplan", table, *MAP, *QUICK, "--json"))
    assert [each["law"] for each in said["fits"]] == ["hoffmann", "kaplan"]
    held = {row["law"]: row for row in said["comparison"]["held_out"]}
    assert {"hoffmann", "kaplan"} <= set(held) and said["comparison"]["hold_out"] == "largest D"
    assert held["hoffmann"]["mean_error"] < 0.01 < held["nearest run"]["mean_error"]


def test_bootstrap_by_rows_and_by_groups(lab, table):
    options = ("--objective", "least-squares", "--bootstrap", "200", "--json")
    rows = document(lab("fit", "hoffmann", table, *MAP, *QUICK, *options))
    again = document(lab("fit", "hoffmann", table, *MAP, *QUICK, *options))
    assert rows["parameters"] == again["parameters"]
    assert rows["intervals"]["method"] == "bootstrap percentiles" and rows["intervals"]["resamples"] == 200
    groups = document(lab("fit", "hoffmann", table, *MAP, *QUICK, *options, "--by", "sweep", "--level", "0.5"))
    assert groups["parameters"]["alpha"]["interval"] != rows["parameters"]["alpha"]["interval"]
    assert groups["intervals"]["level"] == 0.5
    record, other = (json.loads(Path(said["record"]).read_text()) for said in (rows, groups))
    assert (record["asked"]["by"], other["asked"]["by"]) == (None, "sweep")
    assert record["parameters"] == rows["parameters"] and other["parameters"] == groups["parameters"]


@pytest.mark.parametrize("how", [(), ("--bootstrap", "50")])
def test_constants_held_fixed(lab, table, how):
    """In the laws that have them: in fit, resamples, held-out fits, sensitivity and the record."""
    held = ("--fix", "beta=0.37", "--fix", "alpha_N=0.08")
    options = ("--objective", "least-squares", "--hold-out", "largest:params", *how, *held)
    said = document(lab("fit", "hoffmann,kaplan", table, *MAP, "--counting", "all", *options, "--json"))
    ours, kaplan = said["fits"]
    assert ours["fixed"] == {"beta": 0.37} and kaplan["fixed"] == {"alpha_N": 0.08}
    assert ours["parameters"]["beta"]["value"] == pytest.approx(0.37, rel=1e-12)
    assert ours["parameters"]["beta"]["interval"] is None and ours["parameters"]["beta"]["reason"] == "held fixed"
    assert ours["parameters"]["alpha"]["interval"] and ours["certificate"]["identified"]
    assert {row["beta"] for row in ours["sensitivity"]} == {ours["parameters"]["beta"]["value"]}
    errors = {row["law"]: row["constants"] for row in said["comparison"]["held_out"]}
    fitted = {row["law"]: row["constants"] for row in said["comparison"]["fitted"]}
    assert errors["hoffmann"] == fitted["hoffmann"] == 4
    record = json.loads(Path(ours["record"]).read_text())
    assert record["fixed"] == {"beta": 0.37} and record["asked"]["fix"] == ["beta=0.37", "alpha_N=0.08"]

    frame = pandas.read_csv(table)
    columns = {"N": frame["params"].to_numpy(), "D": frame["tokens"].to_numpy()}
    rows = Rows(columns, frame["final_loss"].to_numpy(), np.ones(60), np.zeros(60, bool))
    alone = fit(law("hoffmann"), rows, Objective("least-squares"), fixed={"beta": 0.37})
    assert ours["parameters"]["alpha"]["value"] == pytest.approx(alone.values["alpha"], rel=1e-6)


def test_what_is_held_fixed_is_said(lab, table):
    code, out, err = lab("fit", "hoffmann", table, *MAP, *QUICK, "--fix", "beta=0.37")
    assert code == 0, err
    assert "Held fixed: beta." in out and "WARNING" not in out


def test_what_is_not_identified_is_said_first(lab, tmp_path):
    """A loss without a floor: E runs to its bound."""
    x = np.geomspace(1e7, 1e10, 60)  # as many rows as the other fits here: a number of rows is compiled once
    path = tmp_path / "line.csv"
    loss = 100 * x**-0.2 * np.exp(0.01 * np.random.default_rng(0).standard_normal(60))
    pandas.DataFrame({"N": x, "D": 20 * x, "loss": loss}).to_csv(path, index=False)
    code, out, err = lab("fit", "hoffmann", path, *QUICK)
    assert code == 0, err
    assert out.strip().splitlines()[1].startswith("WARNING: not identified")


def test_as_many_rows_as_constants_are_fitted_and_said_to_decide_nothing(lab, tmp_path):
    pandas.DataFrame({"x": [1.0, 10.0], "y": [3.0, 1.0]}).to_csv(tmp_path / "two.csv", index=False)
    said = document(lab("fit", "power", tmp_path / "two.csv", "--json"))
    assert said["parameters"]["p"]["value"] == pytest.approx(-np.log10(3), rel=1e-9)
    assert said["parameters"]["p"]["interval"] is None and not said["certificate"]["identified"]
    assert "no interval for c, p, 2 rows for 2 constants" in said["certificate"]["warnings"][0]


def test_sensitivity_and_markdown(lab, table):
    code, out, err = lab("fit", "hoffmann", table, *MAP, "--recount", "N=params * 1.1", "--markdown")
    assert code == 0, err
    assert "| constant | value |" in out and "## Sensitivity" in out
    assert "N = params * 1.1" in out and "moves most with" in out
    assert "counted is not stated" in out


def test_a_law_of_the_users_own(lab, table, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(LAW_FILE.replace("tokens-only", "tokens-only-file"))
    options = (*MAP[2:], *QUICK, "--law-file", path)
    said = document(lab("fit", "tokens-only-file", table, *options, "--json"))
    assert set(said["parameters"]) == {"E", "B", "beta"}
    assert_refused(lab("fit", "hoffmann", table, "--law-file", tmp_path / "none.py"), "found no file", "--law-file")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("mine.txt", "", ("another kind of file", "expected Python (.py)")),
        ("mine.py", "law: hoffmann = yes or no or", ("SyntaxError", "expected Python that runs")),
        ("mine.py", "register = 1 / 0", ("ZeroDivisionError: division by zero", "expected Python that runs")),
        ("mine.py", LAW_FILE.replace("tokens-only", "hoffmann"), ("law 'hoffmann' is registered twice",)),
        (
            "mine.py",
            LAW_FILE.replace("tokens-only", "wrong-column").replace('x["D"]', 'x["tokens"]'),
            ("law wrong-column: KeyError: 'tokens'", "constants E, B, beta and the columns D"),
        ),
        (
            "mine.py",
            LAW_FILE.replace("tokens-only", "wrong-constant").replace('p["beta"]', 'p["b"]'),
            ("law wrong-constant: KeyError: 'b'",),
        ),
    ],
)
def test_a_law_file_that_cannot_be_meant(lab, table, tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    assert_refused(lab("fit", "hoffmann", table, "--law-file", path), *words)


def test_records_of_other_commands_lie_apart(table, tmp_path):
    """An option that changes the answer, or bytes that do, change the directory; the form of the answer does not."""
    path = tmp_path / "mine.py"
    path.write_text(LAW_FILE)

    def place(*words, bytes_of_the_table="0"):
        options, _ = cli.parse(["fit", "hoffmann", str(table), *words])
        return cli_laws.default_out(options, bytes_of_the_table)

    drawn = ("--bootstrap", "50", "--by", "sweep")
    options = [
        (), drawn, (*drawn[:-1], "other"), (*drawn, "--seed", "1"), (*drawn, "--level", "0.8"), ("--seed", "1"),
        ("--hold-out", "largest:params"), ("--hold-out", "params > 5e9"), ("--no-sensitivity",), ("--map", "N=params"),
        ("--unit", "N=millions"), ("--where", "N > 4e7"), ("--objective", "lad"), ("--delta", "0.1"),
        ("--run", "sweep"), ("--space", "linear"), ("--weights", "w"), ("--censored", "c"), ("--counting", "all"),
        ("--recount", "N=all"), ("--fix", "alpha=0.3"), ("--fix", "alpha=0.4"), ("--law-file", str(path)),
    ]  # fmt: skip
    places = [place(*words) for words in options] + [place(bytes_of_the_table="1")]
    path.write_text(LAW_FILE + "# another law")
    places.append(place("--law-file", str(path)))
    assert len(set(places)) == len(places)
    assert place("--json", "--markdown", "--data-root", str(tmp_path)) == places[0]
    elsewhere = place("--root", str(tmp_path))
    assert elsewhere.name == places[0].name and elsewhere.parent == tmp_path / "fits"


@pytest.mark.parametrize(
    "options, words",
    [
        (("hofman", "runs.csv"), ("unknown law 'hofman'", "did you mean 'hoffmann'")),
        (("hoffmann", "nowhere.csv"), ("found no file nowhere.csv", "lab laws --data")),
        (("hoffmann", "chinchila_svg"), ("did you mean 'chinchilla_svg'",)),
        (("hoffmann", "RUNS"), ("reads column N", "--map N=params")),
        (("hoffmann", "RUNS", "--map", "N"), ("--map N: expected NAME=VALUE",)),
        (("hoffmann", "RUNS", *MAP, "--where", "params < 0"), ("found no row of 60",)),
        (("hoffmann", "RUNS", *MAP, "--where", "params > 9e9"), ("expected at least 5",)),
        (("hoffmann", "RUNS", *MAP, "--objective", "ols"), ("invalid choice", "ols")),
        (("step-law", "RUNS"), ("did you mean 'step-law-lr' or 'step-law-batch'",)),
        (("hoffmann", "RUNS", *MAP, "--delta", "-1"), ("found delta -1",)),
        (("hoffmann", "RUNS", *MAP, "--delta", "inf"), ("found delta inf", "finite")),
        (("hoffmann", "RUNS", *MAP, "--fix", "gama=1"), ("--fix gama=1", "expected one of E, A, B, alpha, beta")),
        (("hoffmann", "RUNS", *MAP, "--fix", "alpha=x"), ("--fix alpha=x", "expected a number")),
        (("hoffmann", "RUNS", *MAP, "--fix", "alpha=-1"), ("alpha = -1 to hold fixed", "above 0")),
        (("hoffmann", "RUNS", *MAP, "--hold-out", "largest:name"), ("column name", "expected numbers")),
        (("hoffmann", "RUNS", *MAP, "--bootstrap", "3"), ("at least 50",)),
        (("hoffmann", "RUNS", *MAP, "--bootstrap", "50", "--seed", "-1"), ("--seed: found -1", "0 or more")),
        (("hoffmann", "RUNS", *MAP, "--by", "sweep"), ("--bootstrap",)),
        (("hoffmann", "RUNS", *MAP, "--level", "90"), ("--level", "0.9")),
        (("hoffmann", "RUNS", *MAP, "--hold-out", "largest:flops"), ("no column 'flops'",)),
        (("hoffmann", "RUNS", *MAP, "--hold-out", "params > 0"), ("0 kept",)),
        (("hoffmann", "RUNS", *MAP, "--model.width=3"), ("takes no config overrides",)),
        (("hoffmann,hoffmann", "RUNS", *MAP), ("each law once",)),
        ((",", "RUNS", *MAP), ("found ','", "expected the name of a law")),
    ],
)
def test_what_the_user_can_mend_is_one_line(lab, table, options, words):
    assert_refused(lab("fit", *(table if word == "RUNS" else word for word in options), "--no-sensitivity"), *words)


def test_laws_are_listed_and_described(lab):
    listed = document(lab("laws", "--json"))
    assert {"power", "hoffmann", "kaplan"} <= {each["law"] for each in listed}
    assert all(each["formula"] and each["parameters"] and each["reads"] for each in listed)
    code, out, _ = lab("laws")
    assert code == 0 and all(each["law"] in out for each in listed)
    one = document(lab("laws", "hoffmann", "--json"))
    assert one["formula"] == "L = E + A / N^alpha + B / D^beta" and one["reads"]["N"]["unit"] == "parameters"
    code, out, _ = lab("laws", "hoffmann")
    assert "arXiv 2203.15556" in out and "1.693374" in out
    assert_refused(lab("laws", "hofmann"), "did you mean 'hoffmann'")
    data = document(lab("laws", "--data", "--json"))
    assert {each["name"] for each in data} == set(DATASETS)


def test_a_design_shrinks_the_interval_that_was_asked_for(lab, table):
    said = document(lab("design", "hoffmann", table, *MAP, "--budget", "1e22", "--for", "alpha", "--json"))
    errors = [run["standard_error"] for run in said["runs"]]
    assert errors == sorted(errors, reverse=True) and said["runs"][-1]["spent"] <= 1e22
    assert all(run["cost"] == pytest.approx(6 * run["N"] * run["D"]) for run in said["runs"])
    dear = ("--cost", "6 * N * D + 1e21 * N / N")
    other = document(lab("design", "hoffmann", table, *MAP, "--budget", "1e22", "--for", "alpha", *dear, "--json"))
    assert len(other["runs"]) <= 9 and other["runs"][0]["cost"] > 1e21
    assert_refused(lab("design", "hoffmann", table, *MAP, "--budget", "1e22", "--for", "gamma"), "gamma", "alpha")
    for option, words in (("--reach", "finite number above 1"), ("--runs", "1 or more")):
        wrong = lab("design", "hoffmann", table, *MAP, "--budget", "1e22", option, "0")
        assert_refused(wrong, f"{option}: found 0, expected", words)
    far = ("design", "hoffmann", table, *MAP, "--budget", "1e22", "--at", "N=1e11,D=1e12")
    aimed = document(lab(*far, "--json"))
    assert aimed["runs"][-1]["standard_error"] < aimed["runs"][0]["standard_error"] < aimed["standard_error"]
    shrunk = aimed["runs"][-1]["standard_error"] / aimed["standard_error"]
    assert aimed["runs"][-1]["shrinks"] == pytest.approx(1 - shrunk)
    assert_refused(lab(*far, "--at", "N=1e11"), "--at N=1e11", "each of N, D")
    assert_refused(lab(*far, "--for", "alpha"), "one of them")
    flat = document(lab("design", "hoffmann", table, *MAP, "--budget", "10", "--for", "alpha", "--cost", "5", "--json"))
    assert [run["cost"] for run in flat["runs"]] == [5.0, 5.0]
    text = lab("design", "hoffmann", table, *MAP, "--budget", "10", "--cost", "'a'")
    assert_refused(text, "column cost: found 'a'", "expected numbers")


def shell(*argv, **environment):
    command = [sys.executable, "-m", "lab", *map(str, argv)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    environment.pop("XLA_FLAGS", None)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_list_of_laws_is_quick():
    """In seconds of computing, as other work may share the machine; it is about 1.3 on an idle one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = shell("laws")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_the_chinchilla_points_from_the_shell_are_besiroglus(root, published):
    """Their grid search, printed in their notebook: 477.8417, 2143.8638, 1.817236, 0.347313, 0.367183."""
    published("chinchilla_svg")
    done = shell("fit", "hoffmann", "chinchilla_svg", "--where", "loss < 3.4451", "--bootstrap", "200", "--json")
    said = spoken(done)
    assert said["rows"] == 240 and said["objective"]["value"] <= 0.0010182740346 * (1 + 1e-8)
    printed = {"A": 477.8417, "B": 2143.8638, "E": 1.817236, "alpha": 0.347313, "beta": 0.367183}
    for name, value in printed.items():
        assert said["parameters"][name]["value"] == pytest.approx(value, rel=2e-3)
    tex = next(source for source in said["published"] if "TeX" in source["source"])
    assert tex["objective"] > 1.2 * said["objective"]["value"]
    assert said["data"]["licence"] == "none" and "epoch-research" in said["data"]["origin"]
