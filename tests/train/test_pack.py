"""Runs of a pack: one program for every number, no run disturbs another, and what is measured on the way."""

import functools
import os
import signal

import jax
import numpy as np
import pytest
from small_packs import advance, assert_close, assert_same, config, corpus, pack, state_of

from lab import models, parametrization
from lab.errors import ConfigError
from lab.train.checkpoint import Checkpointer
from lab.train.loop import Interrupted, train
from lab.train.store import RunStore

AVERAGED = {"averaging__name": "exponential", "averaging__window_tokens": 512, "schedule__name": "cosine"}
VARIANTS = [
    {"optimizer__learning_rate": 0.01},
    {"run__batch_tokens": 384},
    {"run__horizon_tokens": 1536},
    {"run__seed": 3},
    {"schedule__name": "wsd", "schedule__cooldown_fraction": 0.9},
    {"schedule__warmup_tokens": 512},
    {"schedule__final_fraction": 0.3},
    {"averaging__window_tokens": 256},
    {"averaging__name": "polynomial"},
    {"optimizer__beta1": 0.5},
    {"optimizer__beta2": 0.8},
    {"optimizer__epsilon": 1e-3},
    {"optimizer__weight_decay": 0.2},
    {"optimizer__clip_norm": 0.05},
    {"parametrization__init_scale": 0.5},
    {"parametrization__embedding_multiplier": 2.0},
    {"parametrization__residual_multiplier": 0.5},
    {"parametrization__readout_multiplier": 0.5},
    {"parametrization__attention_multiplier": 2.0},
    {"loss__z_loss": 0.01},
    {"run__batch_tokens": 256, "optimizer__learning_rate": 0.02},
]
COMPILATIONS = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILATIONS.append(seconds) if "backend_compile" in event else None
)


def averaged(**changes):
    return config(**AVERAGED | changes)


def eight(*changes):
    """A pack of 8 runs with two data seeds: the base run, its copy on other data, and others as told."""
    return pack(*(averaged(**change) for change in ({}, {"run__data_seed": 1}, *changes, *[{}] * (6 - len(changes)))))


def test_every_axis_of_a_pack_is_served_by_one_program():
    base = eight()
    advance(base, 7)
    base.evaluate(set(base.slots))
    expected = [state_of(base, run) for run in ("0", "1")]
    COMPILATIONS.clear()
    for first in range(0, len(VARIANTS), 6):
        variants = VARIANTS[first : first + 6]
        varied = eight(*variants)
        lines = advance(varied, 7, chunk=3)
        losses = varied.evaluate(set(varied.slots))
        assert np.isfinite(lines).all() and all(np.isfinite(row[2]) for row in losses.values())
        for run, state in enumerate(expected):
            assert_same(state_of(varied, str(run)), state)
        for run, change in enumerate(variants, start=2):
            found = state_of(varied, str(run))
            same = jax.tree.map(np.array_equal, found, expected[0])
            assert not all(jax.tree.leaves(same)), change
            assert found.step == 7 * 128 // change.get("run__batch_tokens", 128)
    assert not COMPILATIONS
    jax.jit(lambda x: x + len(VARIANTS))(np.zeros(3))
    assert len(COMPILATIONS) == 1


def test_a_run_that_diverges_or_breaks_disturbs_no_neighbour():
    others = VARIANTS[:4]
    sound, wild = eight(*others, {}), eight(*others, {"optimizer__learning_rate": 1e30})
    broken = wild.slots.index("5")
    wild.state = wild.state.replace(weights=jax.tree.map(lambda w: w.at[broken].set(np.nan), wild.state.weights))
    lines = [advance(made, 8) for made in (sound, wild)]
    for run in ("0", "1", "2", "3", "4", "7"):
        assert_same(state_of(wild, run), state_of(sound, run))
        np.testing.assert_array_equal(*(found[made.slots.index(run)] for found, made in zip(lines, (sound, wild))))
    assert state_of(wild, "5").diverged == 1 and 1 <= state_of(wild, "6").diverged <= 3
    assert not np.isfinite(lines[1][broken, 0, 0])


def test_members_that_finish_or_diverge_leave_with_a_record(tmp_path):
    """Through the loop: records, curves that end at the divergence, and a slot that is skipped from then on."""
    made = eight({"optimizer__learning_rate": 1e30}, {"run__horizon_tokens": 512}, {"run__batch_tokens": 384})
    store, seen = RunStore(tmp_path), []
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        train(made, store, checkpointer, {}, seen.append)
    wild, short, large, whole = (store.read_record(run) for run in "2340")
    assert wild["status"] == "diverged" and 1 <= wild["diverged_tick"] <= 3 and wild["loss"] is None
    assert (short["status"], short["steps"], short["tokens"]) == ("finished", 4, 512)
    assert (large["steps"], large["tokens"], whole["steps"], whole["tokens"]) == (2, 768, 8, 1024)
    assert whole["diverged_tick"] is None and whole["epochs"] == 64 / corpus().sequences("train", 16)
    curve = store.curves("2").read("train")
    assert curve.index.tolist() == list(range(wild["diverged_tick"]))
    assert np.isfinite(curve["loss"].to_numpy()[:-1]).all() and not np.isfinite(curve.to_numpy()[-1]).all()
    assert store.curves("0").read("train")["tokens"].tolist() == [128.0 * (i + 1) for i in range(8)]
    assert seen[0].live == 8 and seen[-1].live < 8 and [p.tick for p in seen] == sorted({p.tick for p in seen})
    assert sum(p.tokens for p in seen) <= 8 * 1024 and all(np.isfinite(p.loss) for p in seen)
    assert store.curves("0").read("evaluations")["step"].tolist() == [2, 4, 8]
    last = store.curves("0").read("evaluations")["loss"].iloc[-1]
    with np.load(tmp_path / "runs" / "0" / "weights.npz") as kept:
        average = {name.removeprefix("average/"): kept[name] for name in kept.files if name.startswith("average/")}
    np.testing.assert_allclose(last, validation_loss(average), rtol=1e-5)
    np.testing.assert_array_equal(whole["loss"], last)


def test_asked_to_stop_it_saves_and_goes_on_from_there(tmp_path):
    """A signal inside an accumulation window; rows of a history that is not repeated are gone after the resume."""
    runs = {"0": {}, "1": {"run__data_seed": 1}, "2": {"run__batch_tokens": 384, "run__horizon_tokens": 2304}}
    changes = [*runs.values(), *[{}] * 5]
    whole, cut, again = (pack(*(averaged(**change) for change in changes)) for _ in range(3))
    stores = RunStore(tmp_path / "whole"), RunStore(tmp_path / "cut")
    with Checkpointer(tmp_path / "a") as checkpointer:
        train(whole, stores[0], checkpointer, {}, lambda progress: None)

    def stop(progress):
        if progress.tick >= 2:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with Checkpointer(tmp_path / "b") as checkpointer:
        with pytest.raises(Interrupted):
            train(cut, stores[1], checkpointer, {"note": 1}, stop)
        assert signal.getsignal(signal.SIGINT) is handler
        assert 0 < cut.tick < 8 and checkpointer.latest() == cut.tick
        stores[1].curves("2").write("train", 5, np.full((1, 6), 77.0))  # of a process on other hardware, say
        assert again.resume(checkpointer)["note"] == 1 and again.tick == cut.tick
        train(again, stores[1], checkpointer, {}, lambda progress: None)
    for run in runs:
        assert stores[0].read_record(run) == stores[1].read_record(run)
        for name in ("train", "evaluations"):
            found, expected = (store.curves(run).read(name) for store in reversed(stores))
            assert found.equals(expected)
    assert_same(state_of(again, "2"), state_of(whole, "2"))


@functools.cache
def summed_loss_and_gradient():
    """(weights, tokens) -> summed nats and their gradient, by the model alone under the standard parametrization."""
    cfg = config()
    scales = parametrization.scales(cfg.model, cfg.parametrization, "adam")
    model = models.build(cfg.model)

    def loss(weights, tokens):
        return model.nll(weights, tokens, scales.multipliers)

    return jax.jit(jax.value_and_grad(loss))


def gradient(weights, tokens):
    """Mean loss and gradient over the predictions of tokens [4, 17], in float64 from there on."""
    found = summed_loss_and_gradient()(weights, tokens)
    return jax.tree.map(lambda x: np.asarray(x, np.float64) / tokens[:, 1:].size, found)


def validation_loss(flat):
    """Mean nats per token over the validation sequences, of weights given by path."""
    weights = {}
    for name, value in flat.items():
        node = weights
        *parents, leaf = name.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    tokens = corpus().batch("validation", 0, 16, 0, 8)
    return np.mean([gradient(weights, half)[0] for half in (tokens[:4], tokens[4:])])


def test_noise_probe_is_what_the_halves_of_its_micro_batches_give():
    """|gA - gB|^2 and gA . gB at ticks 0, 3, 6, from gradients of the model alone on the sequences of those ticks."""
    still = {"optimizer__learning_rate": 1e-30}
    made = eight({**still, "run__seed": 3}, still)
    weights = jax.tree.map(lambda leaf: leaf.copy(), state_of(made, "3").weights)
    lines = advance(made, 8)
    expected = np.zeros(3)
    for tick in (0, 3, 6):
        tokens = corpus().batch("train", 0, 16, 8 * tick, 8)
        (loss_a, a), (loss_b, b) = (gradient(weights, half) for half in (tokens[:4], tokens[4:]))
        pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
        expected += [sum(((x - y) ** 2).sum() for x, y in pairs), sum((x * y).sum() for x, y in pairs), 1]
        slot = made.slots.index("3")
        mean = np.sqrt(sum((((x + y) / 2) ** 2).sum() for x, y in pairs))
        np.testing.assert_allclose(lines[slot, tick, :2], [(loss_a + loss_b) / 2, mean], rtol=1e-5)
    np.testing.assert_allclose(state_of(made, "3").noise, expected, rtol=2e-4)
    assert not np.allclose(state_of(made, "2").noise, expected, rtol=0.01)


def test_evaluation_reads_the_same_sequences_whatever_the_micro_batch():
    for asked, used in ((8, 8), (20, 16), (3, 3), (10**9, corpus().sequences("validation", 16) // 8 * 8)):
        shapes = set()
        for micro in (16, 48, 128, 384):
            made = pack(
                config(evaluation__sequences=asked, execution__microbatch_tokens=micro, run__batch_tokens=384),
                start=False,
            )
            rows = made.validation.reshape(-1, 17)
            np.testing.assert_array_equal(rows, corpus().batch("validation", 0, 16, 0, used))
            shapes.add(made.validation.shape)
        assert used < 20 or len(shapes) > 1


def test_a_mesh_that_cannot_be_is_refused_in_one_line():
    for change, message in (
        ({"execution__mesh__run": 3, "execution__mesh__data": 4}, "needs 12 devices, found 8"),
        ({"execution__mesh__data": 3}, "do not share a micro-batch of 8 sequences"),
        (
            {f"execution__mesh__{axis}": 2 for axis in ("run", "data", "tensor")} | {"execution__run_axis": "map"},
            "expected vmap",
        ),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            pack(config(**change), start=False)
        assert "\n" not in str(caught.value)


def test_averages_are_the_closed_form_of_the_weights_seen():
    made = eight({"averaging__name": "polynomial", "averaging__window_fraction": 0.5})
    seen = {run: [state_of(made, run).weights] for run in "02"}
    for _ in range(6):
        advance(made, 1)
        for run in seen:
            seen[run].append(state_of(made, run).weights)
    keep = np.exp(-128 / 512)
    exponential = [keep**6, *((1 - keep) * keep ** (6 - i) for i in range(1, 7))]
    polynomial = [0, *(2 * (i - 1) / (6 * 5) for i in range(1, 7))]
    polynomial[1] = 0.0
    for run, weights in (("0", exponential), ("2", polynomial)):
        assert sum(weights) == pytest.approx(1)
        expected = jax.tree.map(lambda *all: sum(c * w for c, w in zip(weights, all)), *seen[run])  # noqa: B023
        assert_close(state_of(made, run).average, expected, rtol=1e-4, atol=1e-6)
