"""The Gemstones' saved fits against their own objective, and ours against theirs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import huber

from experiments import gemstones


@pytest.fixture(scope="module")
def analysis(published):
    return gemstones.analyse(published, resamples=60)


def test_the_saved_objectives_come_back_at_the_saved_constants(analysis):
    objectives = analysis.tables["objectives"]
    assert len(objectives) == 12
    np.testing.assert_allclose(objectives["at_saved_constants"], objectives["saved_objective"], atol=6e-11)


def test_no_objective_exceeds_the_saved_one(analysis):
    objectives = analysis.tables["objectives"]
    assert (objectives["ours"] <= objectives["saved_objective"] * (1 + 1e-8) + 5e-11).all()
    assert objectives["converged"].all()
    assert objectives["excess"].max() == pytest.approx(0.027, abs=2e-3)


def test_the_objective_is_scipys(published, analysis):
    ours = analysis.tables["published-against-ours"]
    for name, delta, _, _ in gemstones.saved_fits(published)[::5]:
        rows, _ = gemstones.rows_of_fit(published, name)
        p = ours[(ours["data"] == name) & (ours["delta"] == f"{delta:g}")].set_index("quantity")["ours"]
        N, D = rows.columns["N"], rows.columns["D"]
        predicted = p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]
        objectives = analysis.tables["objectives"].set_index(["data", "delta"])["ours"]
        assert objectives[name, delta] == pytest.approx(huber(delta, np.log(rows.target / predicted)).sum(), rel=1e-9)


def test_verdicts_and_figure(analysis, tmp_path):
    assert [finding.verdict for finding in analysis.findings] == ["inconclusive"] * 3
    assert analysis.draw(tmp_path / "figure").stat().st_size > 30_000
