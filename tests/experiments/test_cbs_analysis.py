from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.cbs_analysis import Settings, analyse, compare_panels, group_table
from experiments.cbs_cells import Group, cells_from_runs, cells_from_table, read_published
from experiments.cbs_figure import panel_figure
from lab.errors import PublishedDataError, ResultsError

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "cbs_steps_to_target.csv"
needs_published = pytest.mark.skipif(
    not PUBLISHED.exists(), reason="shared/data lacks the authors' table: published numbers NOT checked"
)
SEQUENCE, BATCHES = 128, (4, 8, 16, 32, 64, 128)


def table(variable, exponent, noise, rng, sizes=(1.0, 2.0, 4.0, 8.0), seeds=2, level=60.0, censor_above=None):
    """Cells of a world where b / a = level * x^exponent sequences exactly."""
    rows = []
    for x in sizes:
        for batch in BATCHES:
            for seed in range(seeds):
                steps = 400 * x * (1 + level * x**exponent / batch) * np.exp(rng.normal(0, noise))
                cell = {"group": f"{x:g}", "parameters": 2e5, "tokens": 4e6, "target_loss": 2.0, "seed": seed}
                cell |= {variable: x * 1e6, "batch_sequences": batch, "batch_tokens": batch * SEQUENCE}
                censored = censor_above is not None and batch > censor_above
                rows.append(cell | {"steps": steps * (0.7 if censored else 1.0), "censored": censored})
    return pd.DataFrame(rows)


@needs_published
def test_the_authors_table_gives_the_authors_numbers():
    analysis = analyse(read_published(PUBLISHED), "chinchilla", Settings(256.0))
    np.testing.assert_allclose([g.critical for g in analysis.groups], [745.3, 955.2, 1393.7, 1888.5, 2533.4], atol=0.05)
    assert analysis.law.coefficient == pytest.approx(93.197, abs=5e-4)
    assert analysis.law.exponent == pytest.approx(0.46828, abs=5e-6)
    assert analysis.law.linear.coefficient == pytest.approx(99.506, abs=5e-4)
    assert analysis.law.linear.exponent == pytest.approx(0.45764, abs=5e-6)
    assert analysis.law.law.exponent_error == pytest.approx(0.0118, abs=5e-5)
    interval = analysis.law.exponent_interval
    assert interval.contains(0.468) and 0.02 < interval.half_width < 0.1
    assert analysis.limit_law.exponent == pytest.approx(0.619, abs=5e-4)
    assert [f.verdict for f in analysis.findings] == ["holds"] * 3


def test_published_file_errors_are_one_line(tmp_path):
    with pytest.raises(PublishedDataError, match="no file"):
        read_published(tmp_path / "none.csv")
    columns = {"model": "85M", "params_millions": 85, "target_loss": 3.4, "batch_size": 64, "context_length": 512}
    columns |= {"steps_to_target_used_in_fit": 46000, "chinchilla_steps_at_bs256": 13282}
    path = tmp_path / "file.csv"
    bad = [columns | {"batch_size": "many"}, columns | {"batch_size": 0}, columns | {"batch_size": None}]
    del columns["target_loss"]
    for cells, message in ((columns, "lacks the column"), *((b, "line 2 has batch_size") for b in bad)):
        pd.DataFrame([cells]).to_csv(path, index=False)
        with pytest.raises(PublishedDataError, match=message) as caught:
            read_published(path)
        assert "\n" not in str(caught.value)
    path.write_text("")
    with pytest.raises(PublishedDataError, match="not a readable"):
        read_published(path)
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(PublishedDataError):
        read_published(path)


def test_known_exponents_come_back_and_claims_are_decided():
    rng = np.random.default_rng(0)
    grows = analyse(cells_from_table(table("tokens", 0.47, 0.02, rng)), "fixed-model", Settings(4.0))
    assert grows.limit_law.exponent_interval.contains(0.47)
    assert grows.limit_law.exponent == pytest.approx(0.47, abs=0.08)
    assert [f.verdict for f in grows.findings] == ["holds", "inconclusive", "inconclusive"]
    assert "depends on it" in grows.findings[1].reason and "reference batch" in grows.findings[2].reason
    flat = analyse(cells_from_table(table("parameters", 0.0, 0.02, rng)), "fixed-data", Settings(4.0))
    assert flat.findings[0].verdict == "holds" and flat.findings[0].claim.kind == "near_zero"
    assert compare_panels(grows, flat).verdict == "holds"
    assert compare_panels(flat, flat).verdict == "inconclusive"
    falls = analyse(cells_from_table(table("tokens", -0.4, 0.02, rng)), "fixed-model", Settings(4.0))
    assert falls.findings[0].verdict == "contradicted" and falls.findings[1].verdict == "contradicted"
    assert compare_panels(falls, flat).verdict == "contradicted"


def test_exponent_interval_covers():
    rng, hits, trials = np.random.default_rng(1), 0, 60
    settings = Settings(4.0, level=0.9, resamples=300)
    for _ in range(trials):
        cells = cells_from_table(table("tokens", 0.5, 0.05, rng, seeds=1))
        hits += analyse(cells, "fixed-model", settings).limit_law.exponent_interval.contains(0.5)
    assert 0.82 <= hits / trials <= 0.98


def test_noise_decides_nothing_and_the_same_seed_gives_the_same():
    cells = cells_from_table(table("tokens", 0.1, 0.5, np.random.default_rng(3), sizes=(1.0, 2.0), seeds=1))
    one, other = (analyse(cells, "fixed-model", Settings(4.0)) for _ in range(2))
    assert one.findings[0].verdict == "inconclusive"
    assert [f.as_json() for f in one.findings] == [f.as_json() for f in other.findings]


def test_one_group_and_linear_scaling_are_inconclusive_with_reasons():
    rng = np.random.default_rng(0)
    single = analyse(cells_from_table(table("tokens", 0.5, 0.01, rng, sizes=(1.0,))), "fixed-model", Settings(4.0))
    assert {f.verdict for f in single.findings} == {"inconclusive"}
    linear = table("tokens", 0.0, 0.0, rng, level=1e9)
    analysis = analyse(cells_from_table(linear), "fixed-model", Settings(4.0))
    assert {f.verdict for f in analysis.findings} == {"inconclusive"} and not any(g.usable for g in analysis.groups)
    assert "beyond the batch sizes" in analysis.groups[0].reason
    missed = table("tokens", 0.5, 0.01, rng, censor_above=4)
    analysis = analyse(cells_from_table(missed), "fixed-model", Settings(4.0))
    assert {f.verdict for f in analysis.findings} == {"inconclusive"}
    assert all("1 distinct" in g.reason for g in analysis.groups)
    for finding in analysis.findings:
        json.dumps(finding.as_json(), allow_nan=False)


def test_censored_cells_caveats_and_noise_scale_reach_the_report(tmp_path):
    rng = np.random.default_rng(5)
    cells = table("tokens", 0.47, 0.02, rng, censor_above=64)
    group = np.repeat(np.arange(4), 40)
    probes = pd.DataFrame(
        {
            "group": np.array(["1", "2", "4", "8"])[group],
            "squared_difference": 20 * 1.5**group * rng.chisquare(50, 160) / 50,
            "inner_product": rng.normal(1, 0.2, 160),
            "half_sequences": 4,
        }
    )
    analysis = analyse(cells_from_table(cells), "fixed-model", Settings(4.0), probes, ["data were repeated"])
    assert analysis.limit_law.exponent_interval.contains(0.47)
    assert "Data were repeated." in analysis.findings[0].reason and "lower bounds" in analysis.findings[0].reason
    assert analysis.noise["1"].sequences == pytest.approx(40.0, rel=0.2)
    assert analysis.noise_law.exponent == pytest.approx(np.log2(1.5), abs=0.15)
    assert list(analysis.sensitivity["choice"][:4]) == [
        "as stated",
        "overhead 10%",
        "overhead 50%",
        "reference 2 sequences",
    ]
    assert group_table(analysis)["critical_batch_sequences"].gt(0).all()
    png, svg = panel_figure(analysis, tmp_path / "panel", "synthetic")
    assert png.stat().st_size > 20_000 and "INCONCLUSIVE" in svg.read_text()


def test_a_figure_without_any_critical_batch(tmp_path):
    cells = table("tokens", 0.0, 0.0, np.random.default_rng(0), level=1e9)
    analysis = analyse(cells_from_table(cells), "fixed-model", Settings(4.0))
    assert panel_figure(analysis, tmp_path / "panel")[0].exists()


class World:
    """Runs whose loss after S updates at batch B is E + (S / (1 + ratio / B) / s0)^-0.5 with the best learning rate."""

    rates = (0.001, 0.002, 0.004)

    def __init__(self, horizons=(1e6, 4e6), seeds=2, noise=0.0, train_factor=6.0, best=1):
        rng = np.random.default_rng(0)
        rows, self.curves = [], {}
        for batch in BATCHES:
            for index, rate in enumerate(self.rates):
                for seed in range(seeds):
                    run = f"b{batch}-r{index}-s{seed}"
                    last = int(max(horizons) * train_factor / (batch * SEQUENCE))
                    steps = np.unique(np.geomspace(20, last, 60).astype(int))
                    speed = np.exp(rng.normal(0, noise)) * (1.0 if index == best else 0.6) / (1 + 30 / batch)
                    loss = 1.5 + (steps * speed / 50) ** -0.5
                    self.curves[run] = pd.DataFrame({"step": steps, "tokens": steps * batch * SEQUENCE, "loss": loss})
                    rows.append(
                        {
                            "run": run,
                            "model.width": 64,
                            "parameters": 2e5,
                            "run.batch_tokens": batch * SEQUENCE,
                            "optimizer.learning_rate": rate,
                            "run.seed": seed,
                            "run.horizon_tokens": last,
                            "status": "finished",
                            "sequence_length": SEQUENCE,
                        }
                    )
        self.runs = pd.DataFrame(rows)
        self.groups = [Group(f"{h / 1e6:g}M", 2e5, h) for h in horizons]

    def cells(self, runs=None):
        runs = self.runs if runs is None else runs
        return cells_from_runs(runs, self.curves.__getitem__, self.groups, 8 * SEQUENCE)


def test_cells_from_runs_recover_the_world():
    world = World()
    cells = world.cells()
    assert set(cells.table["learning_rate"]) == {0.002} and not cells.table["lr_at_edge"].any()
    for _, row in cells.table.iterrows():
        expected = row["tokens"] / (8 * SEQUENCE) * (1 + 30 / row["batch_sequences"]) / (1 + 30 / 8)
        assert row["steps"] == pytest.approx(expected, rel=0.01) and not row["censored"]
    analysis = analyse(cells, "fixed-model", Settings(8.0, resamples=200))
    assert [g.limit for g in analysis.groups] == pytest.approx([6.0, 6.0], rel=0.05)


def test_short_runs_are_censored_and_edges_flagged():
    world = World(train_factor=1.05, best=2)
    cells = world.cells().table
    assert cells["lr_at_edge"].all()
    large = cells[(cells["batch_sequences"] == 128) & (cells["tokens"] == 4e6)]
    assert large["censored"].all() and (large["steps"] <= 4e6 * 1.05 / (128 * SEQUENCE)).all()
    reference = cells[cells["batch_sequences"] == 8]
    assert not reference["censored"].any()


def test_resamples_repeat_the_choice_of_target_and_rate_and_share_runs():
    world = World(noise=0.5)
    replicates = world.cells().resample(50, np.random.default_rng(0))
    one, four = replicates["1M"], replicates["4M"]
    assert one.log_steps.shape == (50, len(BATCHES) * 2) and np.ptp(one.log_steps, axis=0).max() > 0
    np.testing.assert_array_equal(one.weights, four.weights)
    reference = one.batch == 8
    mean = (one.weights * one.log_steps)[:, reference].sum(1) / one.weights[:, reference].sum(1)
    np.testing.assert_allclose(mean, np.log(1e6 / (8 * SEQUENCE)), atol=0.02)
    again = world.cells().resample(50, np.random.default_rng(0))["1M"]
    np.testing.assert_array_equal(one.log_steps, again.log_steps)


def test_failed_diverged_and_missing_runs():
    world = World()
    runs = world.runs.copy()
    runs.loc[runs["run"] == "b4-r1-s0", "status"] = "failed"
    world.curves["b64-r1-s0"] = world.curves["b64-r1-s0"].assign(loss=np.nan)
    runs.loc[runs["run"] == "b64-r1-s0", "status"] = "diverged"
    cells = world.cells(runs).table
    assert len(cells[(cells["batch_sequences"] == 4) & (cells["group"] == "1M")]) == 1
    assert set(cells.loc[cells["batch_sequences"] == 64, "learning_rate"]) != {0.002}
    with pytest.raises(ResultsError, match="reference batch"):
        world.cells(runs[runs["run.batch_tokens"] != 8 * SEQUENCE])
    world.groups.append(Group("far", 2e5, 1e9))
    assert "far left out" in world.cells().notes[0]
