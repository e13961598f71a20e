"""The lower envelope of zero-shot error: on points whose law is known, and on the published table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments import openclip
from lab.laws.power import fit_power_law


@pytest.fixture(scope="module")
def analysis(published):
    return openclip.analyse(published)


def test_the_envelope_takes_the_least_error_of_each_bin_that_holds_a_model():
    compute = 10.0 ** np.array([0.0, 0.1, 0.9, 3.9])
    centres, least = openclip.binned(compute, np.array([0.5, 0.4, 0.6, 0.1]), bins=4)
    np.testing.assert_allclose(np.log10(centres), [0.5, 3.5])
    np.testing.assert_allclose(least, [0.4, 0.1])


def test_unbeaten_models_are_those_that_no_cheaper_one_beats():
    compute, error = np.array([3.0, 1.0, 2.0, 2.0]), np.array([0.3, 0.5, 0.6, 0.4])
    np.testing.assert_allclose(openclip.unbeaten(compute, error), [[1, 2, 3], [0.5, 0.4, 0.3]])


def test_models_on_one_line_give_its_exponent_whatever_the_choice():
    compute = np.geomspace(1e10, 1e13, 30)
    error = 5 * compute**-0.1
    for x, y in ((compute, error), openclip.unbeaten(compute, error)):
        assert fit_power_law(x, y).exponent == pytest.approx(-0.1, rel=1e-9)
    assert fit_power_law(*openclip.binned(compute, error)).exponent == pytest.approx(-0.1, abs=0.006)


def simulated(exponents, noise, seed=0):
    """Models whose error falls as C^exponent, for LAION and for WIT on both tasks, half of them above the envelope."""
    rng, rows = np.random.default_rng(seed), []
    for task in openclip.TASKS:
        for names, exponent in zip(openclip.SOURCES.values(), exponents):
            for i, compute in enumerate(np.geomspace(1e10, 1e13, 31)):
                error = 0.4 * (compute / 1e10) ** exponent * np.exp(rng.normal(0, noise)) * (1 + 0.2 * (i % 2))
                row = {"downstream_dataset": task, "upstream_dataset": names[i % len(names)], "gmacs_total": compute}
                rows.append({**row, "acc1": 1 - error, "image_retrieval_recall@5": 1 - error})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "exponents, noise, imagenet, steeper",
    [
        ((-0.11, -0.16), 0.02, {"LAION": "holds", "WIT": "holds"}, "holds"),
        ((-0.16, -0.11), 0.02, {"LAION": "contradicted", "WIT": "contradicted"}, "contradicted"),
        ((-0.13, -0.13), 0.2, {"LAION": "inconclusive", "WIT": "inconclusive"}, "inconclusive"),
    ],
)
def test_verdicts_go_both_ways(exponents, noise, imagenet, steeper):
    found = openclip.analyse(lambda name: simulated(exponents, noise))
    verdicts = [finding.verdict for finding in found.findings]
    assert dict(zip(imagenet, verdicts)) == imagenet and verdicts[-1] == steeper


def test_reasons_follow_the_data():
    reasons = [
        openclip.analyse(lambda name: simulated(exponents, 0.01)).tables["published-against-ours"]["reason"]  # noqa: B023
        for exponents in ((-0.11, -0.16), (-0.2, -0.3))
    ]
    assert (reasons[0] != reasons[1]).all()


def test_the_published_exponents_follow_from_the_published_table(analysis, tmp_path):
    table = analysis.tables["published-against-ours"].set_index(["task", "models"])["ours"]
    assert table["ImageNet", "LAION"] == pytest.approx(-0.11, abs=0.005)
    assert table["MS-COCO retrieval", "LAION"] == pytest.approx(-0.08, abs=0.005)
    choices = analysis.tables["choices"].set_index(["task", "models", "choice"])["exponent"]
    assert choices["ImageNet", "WIT", "all models"] == pytest.approx(-0.16, abs=0.005)
    assert choices["MS-COCO retrieval", "WIT", "all models"] == pytest.approx(-0.05, abs=0.005)
    assert analysis.draw(tmp_path / "figure").stat().st_size > 10_000


def test_three_models_decide_nothing(analysis):
    verdicts = {finding.claim.text: finding.verdict for finding in analysis.findings}
    assert verdicts["ImageNet: error of models trained on LAION falls as C^-0.11"] == "inconclusive"
    assert verdicts["ImageNet: error of models trained on WIT falls as C^-0.16"] == "inconclusive"
    assert verdicts["On ImageNet error falls faster with compute for WIT than for LAION"] == "inconclusive"
