"""Transfer experiments: made-up valleys whose optima are known, packs and compilations, and the way from sweep to
verdict at smoke."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from small_packs import advance, pack, quickly_compiled  # noqa: F401

from experiments import depth_transfer, mup_transfer, transfer
from lab.config import flatten, override
from lab.errors import ResultsError
from lab.laws.bootstrap import Interval, no_interval
from lab.report.findings import Claim
from lab.sweep.experiment import Results, find_experiments
from lab.sweep.plan import make_packs, make_runs
from lab.sweep.reproduce import open_corpus, open_study, report, results, train_study
from lab.train.store import RunStore

BY = ["parametrization.name", "model.width"]
EXPERIMENTS = ("mup-transfer/width", "mup-transfer/other-axes", "depth-transfer/residual")
CURVATURE = 0.02
EQUAL_PACKS = {"execution.mesh.run": 1, "execution.pack_runs": 6}  # one compilation a shape for all three


@pytest.fixture(autouse=True)
def fewer_copies(monkeypatch):
    monkeypatch.setattr(transfer, "COPIES", 100)


def runs(slope, noise=0.0, tilt=0.0, widths=(32, 64, 128, 256), grid=range(-3, 4), seed=0):
    """A table of runs, two seeds each, with ln L = ln 2.5 + 0.02 (ln lr - ln lr*)^2, lr* = 0.012 (width / 32)^slope.

    `noise` of every run and `tilt` of every seed (a slope in ln lr) are standard deviations of ln L.
    """
    rng, rows = np.random.default_rng(seed), []
    for width in widths:
        for seed in range(2):
            tilted = tilt * rng.normal()
            for step in grid:
                x = np.log(0.01 * 2.0**step / 0.012) - slope * np.log(width / 32)
                log_loss = np.log(2.5) + CURVATURE * x**2 + tilted * x + noise * rng.normal()
                rows.append([width, seed, 0.01 * 2.0**step, np.exp(log_loss), "finished", "mup"])
    columns = ["model.width", "run.seed", transfer.RATE, "loss", "status", "parametrization.name"]
    return pd.DataFrame(rows, columns=columns)


def test_optimum_slope_and_regret_of_exact_parabolas():
    table = runs(-0.4)
    found = transfer.optima(table, BY)
    np.testing.assert_allclose(found["best"], 0.012 * (found["model.width"] / 32) ** -0.4, rtol=1e-9)
    np.testing.assert_allclose(found["loss"], 2.5, rtol=1e-12)
    assert (found["edge"] == "").all()
    assert transfer.drift(found).value == pytest.approx(-0.4)
    assert transfer.regret(table, found).value == pytest.approx(CURVATURE * (0.4 * np.log(8)) ** 2)


def test_regret_beyond_the_parabola_is_read_between_the_runs():
    """Three steps above the widest model's best run: a line between the means of the two nearest rates."""
    table = runs(-1.0, widths=(32, 256), grid=range(-5, 4))
    found = transfer.optima(table, BY)
    mean = np.log(table[table["model.width"] == 256].groupby(transfer.RATE)["loss"].mean())
    between = np.interp(np.log(0.012), np.log(mean.index), mean) - np.log(2.5)
    assert transfer.regret(table, found).value == pytest.approx(between)
    narrow = table[(table["model.width"] == 32) | (table[transfer.RATE] < 0.01)]
    outside = transfer.regret(narrow, transfer.optima(narrow, BY))
    assert np.isnan(outside.value) and "outside of 0.000313 to 0.005" in outside.interval.reason


@pytest.mark.parametrize("noise, tilt", [(0.001, 0.0), (0.0, 0.002)])
def test_copies_scatter_as_the_noise_makes_optima_scatter(noise, tilt):
    """Against the closed form of a vertex -b/2c. Rough noise is counted twice; seeds' deviations are Student's t with
    4 degrees of freedom, whose variance is twice the normal's."""
    grid = np.log(2.0) * np.arange(-2, 3)
    rough = noise / np.sqrt(2) / np.sqrt(np.square(grid).sum())
    expected = np.hypot(rough, tilt / np.sqrt(2)) / (2 * CURVATURE)
    samples = [transfer.optima(runs(0.0, noise, tilt, seed=seed), BY)["samples"] for seed in range(6)]
    scatter = np.sqrt(np.mean([np.var(one) for group in samples for one in group]))
    assert 0.9 * expected < scatter < 2.2 * expected


@pytest.mark.long
@pytest.mark.parametrize("noise, tilt", [(0.002, 0.0), (0.0005, 0.003), (0.002, 0.002)])
def test_intervals_cover_the_slope(noise, tilt):
    tables = (runs(-0.3, noise, tilt, grid=range(-4, 4), seed=seed) for seed in range(100))
    held = [transfer.drift(transfer.optima(table, BY)).interval.contains(-0.3) for table in tables]
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize("slope, edge, word, further", [(2.0, "high", "above", 0.16), (-2.0, "low", "below", 0.000625)])
def test_no_optimum_is_reported_from_an_edge(slope, edge, word, further):
    """The row says which way to extend, and the sweep does so, for every seed."""
    table = runs(slope, noise=1e-4)
    found = transfer.optima(table, BY).set_index("model.width")
    last = found.loc[256]
    assert last["edge"] == edge and f"extend {word}" in last["reason"] and np.isnan(last["best"])
    assert found.loc[32, "edge"] == "" and np.isfinite(found.loc[32, "best"])
    assert np.isnan(transfer.regret(table, found.reset_index()).value)
    points = transfer.extend(Results(table, None, {}), BY)
    widest = [point for point in points if point["model.width"] == 256]
    assert [point["run.seed"] for point in widest] == [0, 1]
    assert {point[transfer.RATE] for point in widest} == {further}
    assert 32 not in {point["model.width"] for point in points}


def test_an_optimum_next_to_divergence_is_none():
    table = runs(0.0, widths=(32, 64, 128))
    table.loc[(table["model.width"] == 64) & (table[transfer.RATE] > 0.01), ["status", "loss"]] = ["diverged", np.nan]
    found = transfer.optima(table, BY).set_index("model.width")
    assert "runs at 0.02 diverged" in found.loc[64, "reason"] and np.isnan(found.loc[64, "best"])
    assert found.loc[[32, 128], "best"].to_numpy() == pytest.approx([0.012, 0.012])


def test_runs_that_a_group_does_not_tell_apart_are_refused():
    with pytest.raises(ResultsError, match="expected groups that tell them apart"):
        transfer.optima(runs(0.0), ["parametrization.name"])


def family(widths, slope, regret, lost=()):
    rows = [{"model.width": w, "best": np.nan if w in lost else 0.01, "reason": "extend" * (w in lost)} for w in widths]
    interval = lambda x: no_interval("none") if np.isnan(x) else Interval(x - 0.002, x + 0.002, 0.95)  # noqa: E731
    both = (transfer.Statistic(x, interval(x)) for x in (slope, regret))
    return transfer.Family("mup", "model.width", pd.DataFrame(rows), [], *both)


@pytest.mark.parametrize(
    "slope, regret, verdicts",
    [
        (-0.01, 0.001, ["holds", "holds", "contradicted"]),
        (-0.7, 0.02, ["contradicted", "contradicted", "holds"]),
        (-0.1, 0.005, ["inconclusive", "inconclusive", "contradicted"]),
        (np.nan, np.nan, ["inconclusive"] * 3),
    ],
)
def test_verdicts_go_both_ways(slope, regret, verdicts):
    found, claims = family((32, 64, 128), slope, regret), mup_transfer.WIDTH_CLAIMS
    judged = [
        transfer.verdict(claims["slope"], found),
        transfer.verdict(claims["regret"], found, "regret"),
        transfer.verdict(claims["standard"], found, shift=mup_transfer.FALLS),
    ]
    assert [finding.verdict for finding in judged] == verdicts


def test_a_slope_through_two_optima_is_not_judged():
    claim = Claim("same", "made up", 0.0, "slope", "near_zero", 0.1)
    two = transfer.verdict(claim, family((32, 64, 128), 0.0, 0.0, lost=(128,)))
    assert two.verdict == "inconclusive" and "model.width 128: extend" in two.reason
    three = transfer.verdict(claim, family((32, 64, 128, 256), 0.0, 0.0, lost=(256,)))
    assert three.verdict == "holds" and "Without model.width 256: extend" in three.reason


def planned(sweep):
    return make_runs(sweep.base, sweep.points, 259, "")


def test_a_width_is_one_pack_and_experiments_share_runs():
    widths, axes, depths = (
        planned(f()) for f in (mup_transfer.width_tiny, mup_transfer.axes_tiny, depth_transfer.tiny)
    )
    packs = make_packs(widths)
    assert sorted(pack[0].cfg.model.width for pack in packs) == [32, 64, 128, 256]
    for members in packs:
        assert {run.cfg.parametrization.name for run in members} == {"standard", "mup"}
        assert {(run.cfg.model.width, run.cfg.model.heads) for run in members} == {
            (members[0].cfg.model.width, members[0].cfg.model.width // 16)
        }
    assert sorted(pack[0].cfg.model.depth for pack in make_packs(depths)) == [2, 4, 8, 16]
    names = [{run.id for run in found} for found in (widths, axes, depths)]
    mup = {run.id for run in depths if run.cfg.parametrization.name == "mup"}
    deep = {run.id for run in axes if run.cfg.model.width == 32}
    assert mup == deep
    base = {run.id for run in widths if run.cfg.model.width == 64 and run.cfg.parametrization.name == "mup"}
    assert base <= names[1] and len(base) == 12 and len(names[0] & names[2]) == 12


def test_other_axes_are_read_apart():
    """Each axis takes the runs that differ from the shared setting along it alone."""
    sweep = mup_transfer.axes_tiny()
    table = pd.DataFrame([flatten(run.cfg) for run in planned(sweep)])
    sizes, where = sweep.settings["sizes"], sweep.settings["where"]
    found = {name: transfer.of(table, where[name]) for name in sizes}
    assert {name: found[name][size].nunique() for name, size in sizes.items()} == {
        "batch": 3, "horizon": 5, "depth": 4, "coupled decay": 4, "independent decay": 3,
    }  # fmt: skip
    for name, size in sizes.items():
        assert not found[name].duplicated([size, transfer.RATE, "run.seed"]).any()


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_every_point_can_be_meant(name, scale, tmp_path):
    study = open_study(find_experiments()[name], scale, {}, RunStore(tmp_path))
    ids = {
        run.id for run in study.runs(SimpleNamespace(vocab_size=study.sweep.base.model.vocab_size or 259, digest=""))
    }
    assert len(ids) == len(study.sweep.points)


@pytest.mark.usefixtures("quickly_compiled")
def test_a_sweep_of_both_parametrizations_is_one_compilation():
    """All rates and both parametrizations of a width, as `mup-transfer/width` has them: one program."""
    sweep = mup_transfer.width_smoke()
    wide = [run.cfg for run in planned(sweep) if run.cfg.model.width == 16]
    made = pack(*(override(cfg, {"execution.mesh.run": 1}) for cfg in wide))
    losses = advance(made, 4)[:, -1, 0]
    assert made.executor.train._cache_size() == 1 and made.executor.init._cache_size() == 1
    assert len(wide) == 12 and len(np.unique(losses)) == 12


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One root for the three experiments, which share runs."""
    return RunStore(tmp_path_factory.mktemp("root"))


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_smoke_goes_from_sweep_to_verdicts(name, store):
    experiment = find_experiments()[name]
    study = open_study(experiment, "smoke", EQUAL_PACKS, store)
    display = SimpleNamespace(**dict.fromkeys(("add", "say", "warn", "pack", "progress"), lambda *_: None))
    corpus = open_corpus(study.sweep.base.data, store, display)
    trained = train_study(study, corpus, display)
    found = experiment.analyse(results(study, trained))
    document = report(study, found, trained, corpus)
    assert document["status"] == {"finished": len(trained)}
    claimed = {"mup-transfer/width": 3, "mup-transfer/other-axes": 6, "depth-transfer/residual": 5}
    assert len(document["verdicts"]) == claimed[name]
    slopes = [entry for entry in document["verdicts"] if "costs" not in entry["claim"]]
    assert all(entry["verdict"] == "inconclusive" and "Fewer than three" in entry["reason"] for entry in slopes)
    assert np.isfinite(found.tables["optima"]["best"]).any()
    assert (study.directory / document["figure"]).stat().st_size > 10_000
