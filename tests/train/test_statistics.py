"""Statistics of tensors: against numpy, off and on, and through a run that is interrupted."""

import os
import signal

import jax
import ml_dtypes
import numpy as np
import pytest
from small_packs import assert_same, config, corpus, pack, state_of

from lab import models
from lab.errors import ResultsError
from lab.sweep.reproduce import read_statistics
from lab.train import statistics
from lab.train.checkpoint import Checkpointer
from lab.train.loop import Interrupted, train
from lab.train.pack import Pack
from lab.train.store import RunStore

CHANGES = {"evaluation__statistics": True, "model__depth": 2, "parametrization__name": "umup"}
EVALUATED = [0, 2, 4, 8]  # steps, of a run of eight updates


def trained(directory, resumed=False, **changes):
    """The store of a pack of two, interrupted once after its second tick where it is to be resumed; and the pack."""
    store = RunStore(directory)
    members = [config(**{**CHANGES, **changes, "run__seed": seed}) for seed in (0, 1)]
    made = pack(*members)

    def stop(progress):
        if resumed and 2 <= progress.tick < 8:
            os.kill(os.getpid(), signal.SIGINT)

    with Checkpointer(directory / "checkpoints") as checkpointer:
        if resumed:
            with pytest.raises(Interrupted):
                train(made, store, checkpointer, {}, stop)
            made = pack(*members, start=False)
            written = store.curves("1").read("statistics")
            store.curves("1").write("statistics", 3, np.full((1, written.shape[1]), 7.0))  # of another history
            assert made.resume(checkpointer) is not None and 0 < made.tick < 8
        train(made, store, checkpointer, {}, lambda progress: None)
    return store, made


@pytest.fixture(scope="module", autouse=True)
def less_optimized():
    """Compilation in half the time; bits are compared within this module only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole"))


def test_they_are_read_back_by_step_tensor_kind_and_layer(whole):
    found = read_statistics(whole[0], "0")
    assert sorted(found["step"].unique()) == EVALUATED and not found.isna().any().any()
    assert set(found["kind"]) == {"weight", "activation", "gradient", "weight_gradient"}
    layers = found[found["step"] == 0].groupby(["kind", "tensor"])["layer"].apply(list)
    assert layers["weight", "layers/mlp/up"] == [0, 1] and layers["weight", "embedding"] == [statistics.OUTSIDE]
    assert layers["gradient", "layers/mlp/up.out"] == [0, 1] and layers["activation", "logits"] == [-1]
    weights = layers["weight"].index
    assert list(weights) == list(layers["weight_gradient"].index) and len(weights) == 11
    assert list(layers["activation"].index) == list(layers["gradient"].index)


def test_they_are_those_of_numpy_before_the_first_update(whole):
    """Weights and embeddings of a fresh pack, and the gradients of its own model, in numpy on the same sequences."""
    found = read_statistics(whole[0], "1")
    found = found[found["step"] == 0].set_index(["kind", "tensor", "layer"])
    made = pack(*(config(**CHANGES, run__seed=seed) for seed in (0, 1)))
    weights = state_of(made, "1").weights
    tokens = corpus().batch("validation", 0, 16, 0, 8)
    multipliers = made.members["1"].hyper()["multipliers"]
    gradient = jax.jit(jax.grad(models.build(made.cfg.model).nll))(weights, tokens, multipliers)

    def check(key, x, kind):
        x = np.asarray(x, np.float32)
        row, size = found.loc[key], np.abs(x)
        np.testing.assert_allclose(row["rms"], np.sqrt(np.mean(x.astype(float) ** 2)), rtol=1e-4)
        np.testing.assert_allclose(row["largest"], size.max(), rtol=1e-4)
        info, rounded = ml_dtypes.finfo(kind), size.astype(kind).astype(float)
        shares = [rounded == 0, (rounded > 0) & (rounded < float(info.smallest_normal)), size > float(info.max)]
        expected = [(share & (size > 0)).sum() / (size > 0).sum() for share in shares]
        np.testing.assert_allclose(row[["flushed", "subnormal", "saturated"]].astype(float), expected, atol=2 / x.size)

    forward, backward = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
    for layer in (0, 1):
        check(("weight", "layers/mlp/up", layer), weights["layers"]["mlp"]["up"][layer], forward)
        of_weight = gradient["layers"]["mlp"]["up"][layer] / np.sqrt(8 * 16)
        check(("weight_gradient", "layers/mlp/up", layer), of_weight, backward)
    check(("activation", "embedded", -1), weights["embedding"][tokens[:, :-1]], forward)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float16"])
def test_shares_of_values_on_both_sides_of_every_edge(name):
    """Zeros are not counted; half the least subnormal is flushed (ties go to even), the largest does not saturate."""
    info = ml_dtypes.finfo(name)
    least, normal, most = (float(x) for x in (info.smallest_subnormal, info.smallest_normal, info.max))
    up = 1 + 2**-20
    below = [0.5 * least, -0.3 * least]
    inside = [0.5 * least * up, least, -(normal - least)]
    normals = [normal, 1.0, -most]
    above = [most * up, -1e30 if name != "float16" else -1e6, np.inf]
    x = np.array([0.0, 0.0, *below, *inside, *normals, *above], np.float32)
    found = [float(share) for share in jax.jit(statistics.shares, static_argnums=1)(x, name)]
    np.testing.assert_allclose(found, [2 / 11, 3 / 11, 3 / 11], rtol=1e-6)
    assert [float(share) for share in statistics.shares(np.zeros(3, np.float32), name)] == [0, 0, 0]


def test_interrupted_and_resumed_they_are_those_of_the_run_left_alone(whole, tmp_path):
    cut, _ = trained(tmp_path, resumed=True)
    for run in "01":
        assert read_statistics(cut, run).equals(read_statistics(whole[0], run))


def test_off_they_cost_nothing_and_on_they_change_nothing(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(Pack, "statistics", None)
    store, made = trained(tmp_path, evaluation__statistics=False)
    assert not (tmp_path / "runs/0/curves/statistics").exists()
    for name in ("train", "evaluations"):
        assert store.curves("0").read(name).equals(whole[0].curves("0").read(name))
    assert_same(state_of(made, "0"), state_of(whole[1], "0"))
    with pytest.raises(ResultsError, match="evaluation.statistics=true"):
        read_statistics(store, "0")
