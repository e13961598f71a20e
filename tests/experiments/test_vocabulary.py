"""Tao et al.'s approaches against the constants that their code prints, and on evaluations of a law that is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from experiments import vocabulary

TRUE = {"E": 5.0, "A1": 2.0, "A2": 0.5, "B": 1.5, "alpha1": 0.45, "alpha2": 0.9}


@pytest.fixture(scope="module")
def analysis(published):
    """Without intervals: resamples of approach 3 are slow to solve."""
    return vocabulary.analyse(published, resamples=0)


def simulated():
    """Evaluations in the columns of the release, V in units, D from the characters by the polynomial."""
    rows = []
    for n in (33e6, 85e6, 302e6, 1.1e9):
        for v in (4096, 16384, 65536):
            width = float(vocabulary.width_of(n))
            tokens = 20 * n * np.linspace(0.1, 1.0, 10)
            nv = v * width
            loss = TRUE["A1"] * (n / 1e6) ** -0.45 + TRUE["A2"] * (nv / 1e6) ** -0.9 - TRUE["E"]
            loss = loss + TRUE["B"] * (tokens / 1e9) ** -0.45
            columns = {"vocab_size": v, "embed_dim": width, "Non_vocab_parameters": n, "Lossu": loss}
            columns |= {"num_characters": tokens / vocabulary.tokens_per_character(v), "FLOPs": 6 * (n + nv) * tokens}
            rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def test_the_law_comes_back_with_v_in_units_and_not_in_thousands():
    runs = simulated()
    right = vocabulary.approach_3(runs, thousands=False, resamples=0)["fit"]
    for name, value in TRUE.items():
        assert right.values[name] == pytest.approx(value, rel=1e-4)
    wrong = vocabulary.approach_3(runs, thousands=True, resamples=0)["fit"]
    assert wrong.objective_value > 100 * right.objective_value
    assert abs(wrong.values["alpha2"] - TRUE["alpha2"]) > 0.1


def test_best_vocabulary_is_the_lowest_loss():
    """Against a grid of V, tokens being what the budget leaves."""
    n = 7e9
    best = vocabulary.best_vocabulary(TRUE, n)
    flops = (n / np.exp(vocabulary.APPROACH_1["ln k of Nnv"])) ** 2
    nv = np.geomspace(1e3, 1e7, 20001) * float(vocabulary.width_of(n))
    tokens = flops / (6 * (n + nv)) / 1e9
    loss = TRUE["A2"] * (nv / 1e6) ** -TRUE["alpha2"] + TRUE["B"] * tokens ** -TRUE["alpha1"]
    assert best * vocabulary.width_of(n) == pytest.approx(nv[loss.argmin()], rel=1e-3)
    ends = [vocabulary.best_vocabulary(TRUE, n) * vocabulary.width_of(n) for n in (1e11, 4e11)]
    assert np.log(ends[1] / ends[0]) / np.log(4) == pytest.approx(vocabulary.growth(TRUE), abs=0.01)


def test_envelope_is_the_lowest_loss_so_far():
    flops, loss = np.array([3.0, 1.0, 2.0, 5.0, 4.0]), np.array([2.0, 4.0, 5.0, 1.0, 2.0])
    assert vocabulary.envelope(flops, loss).tolist() == [True, True, False, True, False]


def test_published_constants(analysis):
    """Approach 1 with interpolated losses is between Huber's optimum and least squares; approach 3 with the unit slip
    gives the published constants at an objective no higher."""
    table = analysis.tables["published-against-ours"].set_index(["approach", "quantity"])
    huber, squares = (table.loc[f"1, interpolated rows{rule}"] for rule in ("", ", least squares"))
    assert squares.ours["a of Nv"] == pytest.approx(0.4163623, abs=0.001)
    assert huber.ours["a of Nv"] == pytest.approx(0.4356, abs=5e-4)
    assert huber.ours["ln k of Nnv"] == pytest.approx(-2.4846510, abs=0.001)
    slip, units = table.loc[f"3, {vocabulary.SLIP}"], table.loc[f"3, {vocabulary.UNITS}"]
    assert slip.ours["alpha2"] == pytest.approx(0.6707, abs=0.01)
    assert units.ours["alpha2"] == pytest.approx(1.06, abs=0.005)
    assert slip.ours["objective"] <= slip.published["objective"] <= slip.ours["objective"] * 1.0001
    assert (table["reason"] != "").all()


def test_figure_without_intervals(analysis, tmp_path):
    assert [finding.verdict for finding in analysis.findings] == ["inconclusive"] * 4
    assert all("only 0 of 0 resamples" in finding.reason for finding in analysis.findings)
    assert analysis.tables["approach-3"]["rows"].tolist() == [1054, 1054]
    assert analysis.draw(tmp_path / "figure").stat().st_size > 20_000


@pytest.mark.parametrize(
    "a, alpha2, expected",
    [
        (vocabulary.APPROACH_1["a of Nv"], 0.67, ["holds", "holds", "contradicted", "holds"]),
        (0.60, 0.30, ["contradicted", "contradicted", "contradicted", "contradicted"]),
        (0.42, (1.4466 / vocabulary.GAMMA) - 1, ["holds", "contradicted", "holds", "holds"]),
    ],
)
def test_verdicts_come_out_both_ways(a, alpha2, expected):
    rng, runs = np.random.default_rng(0), simulated()
    values = vocabulary.APPROACH_3 | {"alpha1": 0.4466, "alpha2": alpha2}
    samples = {name: value + 0.005 * rng.standard_normal(200) for name, value in values.items()}
    first = {"Nv": SimpleNamespace(values={"k": 1.0, "a": a}), "runs": runs}
    third = {"fit": SimpleNamespace(values=values), "samples": samples, "curves": 60}
    findings = vocabulary.verdicts(first, a + 0.005 * rng.standard_normal(200), third)
    assert [finding.verdict for finding in findings] == expected


@pytest.mark.long
def test_sixty_curves_do_not_identify_the_exponent(published):
    analysis = vocabulary.analyse(published)
    interval = analysis.findings[1].interval
    assert interval.known and interval.high - interval.low > 1.0
    assert {finding.verdict for finding in analysis.findings} <= {"holds", "inconclusive"}
