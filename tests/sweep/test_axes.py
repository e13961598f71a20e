"""Axes, points, packs and edges: sweeps as plain data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_packs import config

from lab.config import default_config
from lab.errors import ConfigError
from lab.models import counts
from lab.sweep.axes import apply, axis, chain, log_spaced, merge, powers, product, zipped
from lab.sweep.experiment import edge_points
from lab.sweep.plan import cost, make_packs, make_runs, whole_tokens

RATES, BATCHES = axis("optimizer.learning_rate", [0.1, 0.2]), axis("run.batch_tokens", [128, 256, 384])


def test_product_zip_and_chain():
    both = product(RATES, BATCHES)
    assert both[:2] == [merge([RATES[0], BATCHES[0]]), {"optimizer.learning_rate": 0.1, "run.batch_tokens": 256}]
    assert len(both) == 6 and product() == [{}] and product(RATES, []) == []
    assert zipped(RATES, BATCHES[:2]) == [{**a, **b} for a, b in zip(RATES, BATCHES)]
    assert chain(both, RATES, both[2:4], RATES) == [*both, *RATES]
    assert product(chain(RATES, RATES[:1]), BATCHES) == both


def test_what_cannot_be_meant_is_refused_in_one_line():
    for made, message in (
        (lambda: zipped(RATES, BATCHES), "lengths [2, 3], expected equal"),
        (lambda: product(RATES, RATES), "optimizer.learning_rate: set by two axes"),
        (lambda: apply(default_config(), {"optimizer.learning_rat": 1.0}), "did you mean optimizer.learning_rate"),
        (lambda: make_runs(default_config(), [{"run.batch_tokens": 100}], 8, "d"), "nearest: 128"),
    ):
        with pytest.raises(ConfigError) as caught:
            made()
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_spacings():
    assert log_spaced(0.001, 0.1, 3) == [0.001, 0.01, 0.1] and log_spaced(1, 2, 3)[1] == 1.414
    assert powers(128, 1100) == [128, 256, 512, 1024] and powers(1, 81, 3) == [1, 3, 9, 27, 81] and powers(5, 5) == [5]


def test_a_value_may_follow_from_the_config_of_its_point():
    """Twenty tokens per parameter, and a batch that is a function of that horizon: in the point's order."""
    point = {
        "run.horizon_tokens": lambda cfg: 20 * counts.parameters(cfg.model)["non_embedding"],
        "run.batch_tokens": lambda cfg: cfg.run.horizon_tokens // 1280 * 128,
        "model.width": 32,
    }
    base = config()
    cfg = apply(base, point)
    n = 4 * 32 * 32 + 2 * 32 * 32 + 3 * 32  # attention, an MLP that is 32 wide, and three gains
    assert (cfg.model.width, cfg.run.horizon_tokens) == (32, 20 * n)
    assert cfg.run.batch_tokens == 20 * n // 1280 * 128 and base.model.width == 16


def test_runs_are_each_identity_once_and_packs_are_of_one_shape():
    points = product(axis("model.width", [16, 32]), chain(RATES, RATES), axis("run.batch_tokens", [32, 128, 512]))
    runs = make_runs(config(), [*points, *points[:3]], 8, "digest")
    assert len(runs) == len({run.id for run in runs}) == 12
    packs = make_packs(runs)
    shapes = [{(run.cfg.model.width, run.cfg.run.batch_tokens == 32) for run in pack} for pack in packs]
    assert all(len(shape) == 1 for shape in shapes) and len(packs) == 4  # batches of 32 have micro-batches of their own
    assert sorted(run.id for pack in packs for run in pack) == sorted(run.id for run in runs)
    (pack,) = make_packs(
        make_runs(config(execution__pack_runs=9), product(RATES, axis("run.horizon_tokens", [1000, 3000])), 8, "d")
    )
    assert [run.cfg.run.horizon_tokens for run in pack] == [3000, 3000, 1000, 1000]
    assert [whole_tokens(run.cfg) for run in pack] == [2944, 2944, 896, 896]
    assert len(make_packs(make_runs(config(execution__pack_runs=2), points[:9:3], 8, "d"))) == 2
    planned = cost(pack, train_tokens=1472)
    assert (planned["runs"], planned["tokens"], planned["epochs"]) == (4, 7680, 2.0)
    assert planned["flops"] == 7680 * counts.flops_per_token(pack[0].cfg.model)["with_attention"]


def test_edges():
    tried = {"a": [1, 2, 4], "b": [4.0, 1.0, 2.0], "c": [1, 2, 4], "d": [1, 2, 4], "e": [3]}
    best = {"a": 4, "b": 1.0, "c": 2, "d": 1, "e": 3}
    assert edge_points(best, tried, (0.5, 8)) == {"a": 8.0, "b": 0.5, "d": 0.5}
    assert edge_points(best, tried, (0.6, 7)) == {}
    assert edge_points({"a": 0.2828}, {"a": [0.1, 0.1414, 0.2, 0.2828]}, (0, 1)) == {"a": 0.3999}


@given(count=st.integers(2, 8), ratio=st.floats(1.2, 4), first=st.floats(1e-4, 1.0))
def test_an_edge_moves_on_by_the_ratio_of_its_grid(count, ratio, first):
    values = [first * ratio**i for i in range(count)]
    found = edge_points({"g": values[-1], "h": values[0]}, {"g": values, "h": values}, (0.0, 1e9))
    assert found["g"] == pytest.approx(values[-1] * ratio, rel=1e-3)
    assert found["h"] == pytest.approx(first / ratio, rel=1e-3)
