"""Loss prediction, the ladder and the searches of u-muP: simulated tables with known answers, and smoke runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from small_packs import quickly_compiled  # noqa: F401

from experiments import cerebras, loss_prediction, transfer, umup
from lab.sweep.axes import apply
from lab.sweep.experiment import Results, find_experiments
from lab.sweep.reproduce import open_corpus, open_study, report, results, train_study
from lab.train.store import RunStore

NAME, WIDTH, N, RATE = loss_prediction.NAME, loss_prediction.WIDTH, loss_prediction.N, transfer.RATE
WIDTHS = (32, 40, 48, 64, 80, 96, 128, 160, 192, 256)
PACKS = {"execution.mesh.run": 1, "execution.pack_runs": 2}  # one compilation a shape, whatever the stage
GRID = [point[RATE] for point in transfer.rates(1e-2, 3, 3)]


@pytest.fixture(autouse=True)
def fewer_copies(monkeypatch):
    monkeypatch.setattr(transfer, "COPIES", 60)


def run(loss, **columns):
    status = "finished" if np.isfinite(loss) else "diverged"
    plain = {"run": "r", "status": status, "loss": loss, "model.vocab_size": 256, "tokens": 131072, "epochs": 0.5}
    return {**plain, **columns}


def size(width):
    return 24 * width**2


def law(n, floor=1.5):
    return floor + 0.8 * (n / size(32)) ** -0.3


def world(noise=0.001, seeds=2, standard=1.0, best=1e-2, stages=2):
    """Runs of loss_prediction: muP on a law, standard's best rate falling as width^-standard, 2 % a squared e-fold."""
    rng, rows = np.random.default_rng(0), []
    for name, slope in (("standard", standard), ("mup", 0.0)):
        for width in WIDTHS:
            for rate in GRID if width == 32 else GRID[3:4] * (stages > 1):
                for seed in range(seeds):
                    off = np.log(rate / best) + slope * np.log(width / 32)
                    loss = law(size(width)) * np.exp(0.02 * off**2 + rng.normal(0, noise) + 0.002 * seed)
                    rows.append(run(loss, **{NAME: name, WIDTH: width, N: size(width), RATE: rate, "run.seed": seed}))
    return pd.DataFrame(rows)


def widths(table, seeds=2):
    return Results(table, lambda name: None, {"widths": WIDTHS, "seeds": seeds})


def verdicts(analysis):
    return [finding.verdict for finding in analysis.findings]


def test_a_law_of_the_small_widths_predicts_the_largest():
    found = loss_prediction.analyse(widths(world()))
    assert verdicts(found)[:2] == ["holds", "holds"]
    table = found.tables["predictions"].set_index("parametrization")
    assert table.loc["mup", "predicted"] == pytest.approx(law(size(256)), rel=3e-3)
    assert table.loc["mup", "learning rate"] == table.loc["standard", "learning rate"] == GRID[3]
    assert table.loc["standard", "error %"] > 0.5


def test_the_largest_width_does_not_enter_its_prediction():
    table = world()
    wrong = table.assign(loss=np.where(table[WIDTH] == 256, 9.0, table["loss"]))
    one, other = (loss_prediction.predict(transfer.ended(t), "mup", WIDTHS) for t in (table, wrong))
    assert one.predicted == other.predicted and one.error.value != other.error.value
    assert verdicts(loss_prediction.analyse(widths(wrong)))[0] == "contradicted"


def test_stages_follow_one_another():
    first = world(stages=1)
    assert {p[WIDTH] for p in loss_prediction.extend(widths(first))} == set(WIDTHS[:-1])
    second = world()[lambda t: t[WIDTH] < 256]
    last = loss_prediction.extend(widths(second))
    assert {(p[NAME], p[WIDTH], p[RATE], p["run.seed"]) for p in last} == {
        (name, 256, GRID[3], seed) for name in ("standard", "mup") for seed in range(2)
    }


def test_an_edge_extends_and_decides_nothing():
    edge = world(best=0.2, stages=1)
    assert {p[RATE] for p in loss_prediction.extend(widths(edge))} == {0.16}
    found = loss_prediction.analyse(widths(edge))
    assert verdicts(found) == ["inconclusive"] * 3
    assert "edge" in found.findings[0].reason


def test_diverged_runs_count_as_a_uniform_guess():
    table = world()
    gone = (table[NAME] == "standard") & (table[WIDTH] >= 192)
    table.loc[gone, ["loss", "status"]] = [np.nan, "diverged"]
    found = loss_prediction.analyse(widths(table))
    assert verdicts(found)[1] == "holds" and "2 of 2 runs of width 192 diverged" in " ".join(found.notes)
    measured = found.tables["predictions"].set_index("parametrization").loc["standard", "measured"]
    assert measured == pytest.approx(np.log(256))


def test_one_seed_is_enough_for_a_scatter_about_the_law(tmp_path):
    found = loss_prediction.analyse(widths(world(seeds=1), seeds=1))
    assert found.findings[0].interval.known and found.draw(tmp_path / "figure").stat().st_size > 10_000


def test_prediction_intervals_hold_the_largest():
    rng, hits, trials = np.random.default_rng(1), 0, 80
    sizes = np.array([size(w) for w in WIDTHS])
    for _ in range(trials):
        losses = law(sizes) * np.exp(rng.normal(0, 0.002, len(sizes)))
        curve = loss_prediction.curve_through(sizes[:-1], losses[:-1])
        hits += abs(np.log(losses[-1] / curve(sizes[-1])[0])) <= curve.reach(sizes[-1])[0]
    assert 0.88 <= hits / trials <= 1.0


def test_a_ratio_of_spreads_is_fishers():
    """Two ladders of equal noise: the interval holds 0 about as often as its level says."""
    rng, hits, trials = np.random.default_rng(2), 0, 80
    sizes = np.geomspace(1, 100, 8)
    for _ in range(trials):
        curves = [
            loss_prediction.curve_through(sizes, law(sizes * size(32)) * np.exp(rng.normal(0, 0.002, 8))) for _ in "ab"
        ]
        hits += loss_prediction.ratio_of_spreads(*curves).interval.contains(0.0)
    assert 0.88 <= hits / trials <= 1.0


def ladder(noise, gain=0.004, seeds=2, count=7):
    """Runs of a ladder: muP on a law with noise[1], standard above it with noise[0] that seeds share."""
    rng, rows = np.random.default_rng(4), []
    sizes = np.round(6000 * 1.7 ** np.arange(count)).astype(int)
    for name, scatter, above in (("standard", noise[0], gain), ("mup", noise[1], 0.0)):
        for n in sizes:
            shared = rng.normal(0, scatter)
            part = cerebras.share(n / sizes[0]) if name == "standard" else 1.0
            tuning = n == sizes[0] and name == "mup"
            for rate in GRID if tuning else [float(f"{GRID[3] * part:.4g}")]:
                for seed in range(seeds):
                    off = np.log(rate / (GRID[3] * part))
                    loss = law(n) * np.exp(above + shared + 0.02 * off**2 + rng.normal(0, 1e-4))
                    rest = {NAME: name, N: n, RATE: rate, "run.seed": seed, "flops_per_token.with_attention": 8 * n}
                    rows.append(run(loss, **rest, **{"tokens": 20 * n}))
    return Results(pd.DataFrame(rows), lambda name: None, {"rates": None, "seeds": seeds})


def test_a_ladder_tells_scatter_and_gain(tmp_path):
    found = cerebras.analyse(ladder((0.006, 0.0003)))
    assert verdicts(found) == ["holds", "holds"]
    table = found.tables["laws"].set_index("parametrization")
    assert table.loc["standard", "scatter %"] > 5 * table.loc["mup", "scatter %"]
    assert found.draw(tmp_path / "figure").stat().st_size > 10_000
    assert verdicts(cerebras.analyse(ladder((0.0003, 0.006), -0.02))) == ["contradicted", "contradicted"]
    assert verdicts(cerebras.analyse(ladder((0.002, 0.002), 0.0)))[0] == "inconclusive"


def test_a_ladder_says_what_it_lacks():
    assert "3 sizes" in cerebras.analyse(ladder((0.006, 0.0003), count=3)).findings[0].reason
    single = cerebras.analyse(ladder((0.006, 0.0003), seeds=1))
    assert verdicts(single) == ["holds", "inconclusive"] and "one seed" in single.findings[1].reason
    results = ladder((0.006, 0.0003))
    gone = (results.table[NAME] == "standard") & (results.table[N] == results.table[N].max())
    results.table.loc[gone, ["loss", "status"]] = [np.nan, "diverged"]
    found = cerebras.analyse(results)
    assert len(found.tables["laws"]) == 2 and "diverged" in " ".join(found.notes)
    edge = results.table[results.table[RATE] <= GRID[3]]
    assert verdicts(cerebras.analyse(Results(edge, None, results.settings))) == ["inconclusive"] * 2


def test_the_standard_ladder_lowers_its_rate_as_published():
    assert [cerebras.share(times) for times in (1, 2, 5, 30, 60)] == pytest.approx([1, 1, 1 / 3, 1 / 3, 0.2])
    sweep = cerebras.paper()
    by_name = {}
    for point in sweep.points:
        cfg = apply(sweep.base, point)
        by_name.setdefault(point[NAME], []).append((cfg.optimizer.learning_rate, cfg.run.horizon_tokens))
    assert [rate for rate, _ in by_name["standard"]] == [6e-4, 6e-4, 2e-4, 2e-4, 2e-4, 1.2e-4, 1.2e-4]
    assert [rate for rate, _ in by_name["mup"]] == [6e-3] * 5
    assert by_name["mup"][0][1] == pytest.approx(20 * 7.1e7, rel=0.02)


def surface(name, setting, width=32):
    """ln loss of a setting: a valley in the rate, and one in every multiplier, which muP's all have at 2."""
    logs = np.log(np.array(setting[1:]) / (1.0 if name == "umup" else 2.0))
    off = np.log(setting[0] / {"umup": 0.5, "mup": 3.2e-2, "standard": 3.2e-2 * 32 / width}[name])
    return np.log(2.0) - 0.05 * np.log(width / 32) + 0.02 * off**2 + 0.004 * (logs**2).sum()


def searched(noise=3e-4, draws=24, stages=3, shift=0.0):
    """The results of umup at tiny after some stages, the losses from `surface`; `shift` is added to u-muP's."""
    sweep = umup.sweep(umup.mup_transfer.width_tiny(), 0.5, (2, 2), draws, "simulated")
    rng, rows, seen = np.random.default_rng(3), [], set()

    def train(points):
        for point in points:
            name, width, seed = point[NAME], point[WIDTH], point["run.seed"]
            columns = {**dict.fromkeys(umup.EVERY, 1.0), **point}
            mine = [columns[f"parametrization.{key}"] for key in umup.MULTIPLIERS.get(name, ())]
            key = (name, width, seed, point[RATE], *mine)
            if key not in seen:
                seen.add(key)
                loss = surface(name, (point[RATE], *mine), width) + rng.normal(0, noise)
                rows.append(run(np.exp(loss + shift * (name == "umup")), **columns, **{"data.corpus": "simulated"}))

    train(sweep.points)
    for _ in range(stages):
        train(umup.extend(Results(pd.DataFrame(rows), None, sweep.settings)))
    return Results(pd.DataFrame(rows), None, sweep.settings)


def of_searches(results):
    """Findings by the key of their claim."""
    found = umup.judged({name: umup.search(results, name) for name in umup.MULTIPLIERS})
    return dict(zip(("rate", "runs", "apart"), found))


def test_independent_search_arrives_where_multipliers_do_not_interact(tmp_path):
    results = searched()
    assert searched(stages=4).table.shape == results.table.shape
    analysis = umup.analyse(results)
    found = dict(zip(umup.CLAIMS, analysis.findings))
    assert {key: f.verdict for key, f in found.items()} == {
        "slope": "holds", "regret": "holds", "loss": "holds", "rate": "holds", "runs": "holds", "apart": "inconclusive",
    }  # fmt: skip
    table = analysis.tables["searches"].set_index(["parametrization", "search"])
    assert table.loc[("umup", "independent"), "needed"] == 5  # the five rates of the line
    assert table.loc[("mup", "independent"), "runs"] == 6 + 4 * 4 + 1
    assert list(table.loc[("mup", "independent"), list(umup.MULTIPLIERS["mup"])]) == [2.0] * 4
    assert analysis.draw(tmp_path / "figure").stat().st_size > 10_000


def test_a_search_that_does_not_arrive_is_open_below():
    """Rate and multiplier have to move together, by which only draws get to 2.0; fresh seeds agree."""
    line, alone, last = [(0.1, 1.0), (0.2, 1.0)], [(0.1, 2.0), (0.1, 4.0)], [(0.1, 2.0)]
    joint = [(0.2, 4.0), (0.2, 0.25), (0.4, 4.0)]
    losses = dict(zip([*line, *alone, *joint], [2.2, 2.3, 2.15, 2.3, 2.0, 2.6, 2.4]))
    fresh = {seed: {s: loss + 0.01 * seed for s, loss in losses.items()} for seed in (1, 2)}
    found = umup.Search("mup", [("rate", line), ("readout", alone), ("together", last)], joint, losses, fresh)
    assert umup.independent_runs(found) == np.inf and umup.joint_runs(found).value == 2.0
    ratio = umup.ratio_of_runs(found)
    assert ratio.value == pytest.approx(np.log(2 / 5)) and ratio.interval.low == -np.inf
    np.testing.assert_allclose(umup.above(found, "independent"), np.log([2.16 / 2.01, 2.17 / 2.02]))
    np.testing.assert_allclose(umup.above(found, "rate alone"), np.log([2.21 / 2.01, 2.22 / 2.02]))
    assert [step[:2] for step in umup.so_far(found)] == [(2, 2.2), (4, 2.15), (5, 2.15)]


def test_the_widest_models_are_compared_each_at_its_best():
    tuned = 4 * 0.004 * np.log(2) ** 2  # what muP's multipliers of 1 cost in `surface`
    for shift, noise in ((0.05, 3e-4), (0.0, 3e-3)):
        runs = umup.transferred(searched(shift=shift, noise=noise, stages=0, draws=1).table)
        families = [transfer.study(name, runs[runs[NAME] == name], WIDTH) for name in umup.MULTIPLIERS]
        assert umup.lower(*families).interval.contains(tuned - shift)


def test_a_search_that_is_not_complete_decides_nothing():
    for stages in (0, 1):
        found = of_searches(searched(stages=stages))
        assert {finding.verdict for finding in found.values()} == {"inconclusive"}
        assert "not complete" in found["runs"].reason
    assert "fresh seeds" in of_searches(searched(stages=2))["apart"].reason


def test_a_diverged_draw_is_no_success():
    results = searched()
    name, setting = "umup", tuple(results.settings["joint"]["umup"][0])
    table = results.table
    mine = (table[NAME] == name) & (table[WIDTH] == 32) & (table[RATE] == setting[0])
    for key, value in zip(umup.MULTIPLIERS[name], setting[1:]):
        mine &= table[f"parametrization.{key}"] == value
    table.loc[mine, ["loss", "status"]] = [np.nan, "diverged"]
    found = umup.search(results, name)
    assert found.whole and np.isinf(found.losses[setting]) and umup.joint_runs(found).value > 1


def test_expected_runs_of_a_joint_search_are_clopper_and_pearsons():
    losses = {(float(i),): 1.0 if i < 4 else 2.0 for i in range(20)}
    found = umup.Search("umup", [("learning rate", [(0.0,)]), ("together", [(0.0,)])], list(losses), losses, {})
    value, interval = umup.joint_runs(found)
    from scipy.stats import binomtest

    ends = binomtest(4, 20).proportion_ci(0.95, "exact")
    assert value == pytest.approx(21 / 5)
    assert (interval.low, interval.high) == pytest.approx((1 / ends.high, 1 / ends.low))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One root for the experiments, two of which share runs."""
    return RunStore(tmp_path_factory.mktemp("root"))


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("name, claims", [("umup/width", 6), ("loss-prediction/mup", 3), ("cerebras/ladder", 2)])
def test_smoke_goes_from_sweep_to_verdicts(name, claims, store):
    experiment = find_experiments()[name]
    study = open_study(experiment, "smoke", PACKS, store)
    display = SimpleNamespace(**dict.fromkeys(("add", "say", "warn", "pack", "progress"), lambda *_: None))
    corpus = open_corpus(study.sweep.base.data, store, display)
    trained = train_study(study, corpus, display)
    found = experiment.analyse(results(study, trained))
    document = report(study, found, trained, corpus)
    assert document["status"] == {"finished": len(trained)} and len(document["verdicts"]) == claims
    wanted = {"umup/width": "searches", "loss-prediction/mup": "predictions", "cerebras/ladder": "laws"}[name]
    assert len(found.tables[wanted]) == (4 if wanted == "searches" else 2)
    assert (study.directory / document["figure"]).stat().st_size > 10_000
