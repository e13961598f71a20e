"""However a pack is executed, it trains the same runs: alone or together, looped or vmapped, on one device or eight."""

import functools

import jax
import numpy as np
import pytest
from small_packs import advance, assert_close, assert_same, config, corpus, pack, quickly_compiled, state_of  # noqa: F401

from lab.train.checkpoint import Checkpointer
from lab.train.pack import Member, Pack

TICKS = 5
RUNS = [{}, {"run__data_seed": 1}, {"run__batch_tokens": 384}, {"optimizer__learning_rate": 0.01}] * 2


def runs(**execution):
    """8 configs: half of them the other half under another seed; one of four accumulates over 3 ticks."""
    same = {"averaging__name": "exponential", "averaging__window_tokens": 512}
    return [config(**same, **change, run__seed=i // 4, **execution) for i, change in enumerate(RUNS)]


@functools.cache
def trained(mode, devices):
    """A pack of the 8 runs after TICKS ticks on `devices` devices along the run axis, and its metrics by run."""
    made = pack(*runs(execution__run_axis=mode, execution__mesh__run=devices))
    lines = advance(made, TICKS)
    return made, {run: lines[slot] for slot, run in enumerate(made.slots)}


def losses(made):
    return {run: row[2] for run, row in made.evaluate(set(made.slots) - {None}).items()}


def test_map_is_the_same_to_the_bit_on_two_devices_and_on_eight():
    """On one device XLA rounds otherwise than on several: gradients agree within float32."""
    (one, reference), (two, expected), (eight, lines) = (trained("map", devices) for devices in (1, 2, 8))
    for leaf in jax.tree.leaves(eight.state):
        assert leaf.sharding.num_devices == 8 and leaf.addressable_shards[0].data.shape[0] == 1
    for run in one.slots:
        np.testing.assert_array_equal(lines[run], expected[run])
        assert_same(state_of(eight, run), state_of(two, run))
        first = 2 if run in "26" else 0
        np.testing.assert_allclose(lines[run][first, :2], reference[run][first, :2], rtol=1e-5)
        np.testing.assert_allclose(lines[run][:, 0], reference[run][:, 0], rtol=1e-3)


def test_map_equals_the_run_alone_to_the_bit():
    together, lines = trained("map", 1)
    cfgs = runs(execution__mesh__run=1)
    for run in ("2", "5"):
        alone = Pack([Member.of(run, cfgs[int(run)])], corpus())
        alone.start()
        np.testing.assert_array_equal(advance(alone, TICKS)[0], lines[run])
        assert_same(state_of(alone, run), state_of(together, run))
        assert losses(alone)[run] == losses(together)[run]


@pytest.mark.usefixtures("quickly_compiled")
def test_vmap_over_devices_equals_map_within_rounding_and_shrinks():
    """Losses and gradient norms before Adam has amplified float32 rounding; then the pack shrinks as runs leave."""
    (one, expected), (made, lines) = trained("map", 1), trained("vmap", 2)
    assert made.mode == "vmap" and set(made.slots) == set(one.slots)
    for leaf in jax.tree.leaves(made.state):
        assert leaf.addressable_shards[0].data.shape[0] == 4
    for run in one.slots:
        first = 2 if run in "26" else 0
        np.testing.assert_allclose(lines[run][first, :2], expected[run][first, :2], rtol=1e-5)
        np.testing.assert_allclose(lines[run][:, 0], expected[run][:, 0], rtol=1e-3)
    before = {run: state_of(made, run) for run in "25"}
    made.drop({"0", "7", "4"})
    assert len(made.slots) == 8
    made.drop({"1", "6", "3"})
    assert sorted(run for run in made.slots if run) == ["2", "5"] and len(made.slots) == 2
    for run in "25":
        assert_same(state_of(made, run), before[run])
    further, reference = advance(made, 3), advance(one, 3)
    trained.cache_clear()
    for run in "25":
        found, expected = further[made.slots.index(run), :, 0], reference[one.slots.index(run), :, 0]
        np.testing.assert_allclose(found, expected, rtol=5e-3)
        assert state_of(made, run).step == (2 if run == "2" else 8)


def test_a_nan_stays_in_its_own_lane_of_a_vmap():
    sound, wild = (pack(*runs(execution__run_axis="vmap", execution__mesh__run=2)) for _ in range(2))
    slot = wild.slots.index("4")
    wild.state = wild.state.replace(weights=jax.tree.map(lambda w: w.at[slot].set(np.nan), wild.state.weights))
    for made in (sound, wild):
        advance(made, TICKS)
    for run in "0123567":
        assert_same(state_of(wild, run), state_of(sound, run))
    assert state_of(wild, "4").diverged == 1


def test_checkpoints_move_between_meshes_and_go_on_to_the_bit(tmp_path):
    """Saved on 8 devices, taken up on 1, 2 and 4, and the other way; what follows on 2 is what follows on 8."""
    whole = pack(*runs(execution__mesh__run=8))
    advance(whole, 8)
    for saved_on, taken_up_on in ((8, (1, 2, 4)), (2, (1, 8)), (1, (4,))):
        made = pack(*runs(execution__mesh__run=saved_on))
        advance(made, 4)
        middle = {run: state_of(made, run) for run in whole.slots}
        with Checkpointer(tmp_path / str(saved_on)) as checkpointer:
            checkpointer.save(4, made.state, made.place)
            for devices in taken_up_on:
                again = pack(*runs(execution__mesh__run=devices), start=False)
                assert again.resume(checkpointer)["left"] == [] and again.tick == 4
                for leaf in jax.tree.leaves(again.state):
                    assert leaf.addressable_shards[0].data.shape[0] == 8 // devices
                for run, state in middle.items():
                    assert_same(state_of(again, run), state)
                if {saved_on, devices} == {2, 8}:
                    advance(again, 4)
                    for run in middle:
                        assert_same(state_of(again, run), state_of(whole, run))


def test_a_pack_whose_slots_do_not_divide_moves_to_another_mesh(tmp_path):
    """5 runs on 1 device, 2 of them gone, on 2 devices: 3 live runs on 4 slots."""
    cfgs = runs(execution__mesh__run=1)[:5]
    made = pack(*cfgs)
    made.drop({"1", "2"})
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(7, made.state, made.place)
        cfgs = runs(execution__mesh__run=2)
        again = Pack([Member.of(run, cfgs[int(run)]) for run in "034"], corpus())
        again.resume(checkpointer)
    assert again.slots == ["0", "3", "4", None] and [member.run for member in again.live] == ["0", "3", "4"]
    for run in "034":
        assert_same(state_of(again, run), state_of(made, run))
    assert all(leaf.addressable_shards[0].data.shape[0] == 2 for leaf in jax.tree.leaves(again.state))


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield {"model__compute_dtype": "float64", "execution__noise_probe_ticks": 0, "optimizer__name": "sgd"}
    jax.config.update("jax_enable_x64", False)


def pair(**changes):
    """Two runs after 5 ticks, of which one is in the middle of its second batch; with its losses and its metrics."""
    changes = {"model__kv_heads": 2, **changes}
    made = pack(config(**changes, run__batch_tokens=384), config(**changes, run__seed=1, loss__z_loss=0.01))
    ticks = 5 * 128 // changes.get("execution__microbatch_tokens", 128)
    lines = advance(made, ticks)
    return made, lines


@pytest.mark.usefixtures("quickly_compiled")
def test_every_mesh_gives_the_gradients_and_weights_of_one_device(float64):
    """Data-parallel, FSDP x tensor, and both under a split run axis: float64, so that an error of logic stands out."""
    one, expected = pair(**float64)
    assert state_of(one, "0").tokens == 256 and state_of(one, "0").step == 1
    meshes = (
        ({"data": 4}, "map"),
        ({"fsdp": 2, "tensor": 2}, "map"),
        ({"run": 2, "fsdp": 2}, "map"),
        ({"run": 2, "fsdp": 2, "tensor": 2}, "vmap"),
    )
    for mesh, mode in meshes:
        made, lines = pair(**float64, **{f"execution__mesh__{axis}": devices for axis, devices in mesh.items()})
        assert made.mode == mode
        whole = {"data": 1, "fsdp": 1, "tensor": 1, "run": 1} | mesh
        for tree in (made.state.weights, made.state.gradient, made.state.optimizer.trace):
            check_split(tree, whole)
        for run in "01":
            found, reference = state_of(made, run), state_of(one, run)
            assert_close(
                (found.weights, found.gradient, found.optimizer),
                (reference.weights, reference.gradient, reference.optimizer),
                rtol=1e-7,
                atol=1e-12,
            )
        np.testing.assert_allclose(lines, expected, rtol=1e-6)
        assert jax.tree.leaves(made.state.weights)[0].dtype == np.float64


def check_split(weights, mesh):
    """Each leaf lies where it should: its part on a device is the whole over the axes that split it."""
    split = {
        "embedding": {-1: "fsdp", -2: "tensor"},
        "readout": {-2: "fsdp", -1: "tensor"},
        "up": {-2: "fsdp", -1: "tensor"},
        "query": {-3: "fsdp", -2: "tensor"},
        "key": {-3: "fsdp", -2: "tensor"},
        "value": {-3: "fsdp", -2: "tensor"},
    }
    checked = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
        part, name = leaf.addressable_shards[0].data.shape, path[-1].key
        assert part[0] == leaf.shape[0] // mesh["run"]
        for axis, over in split.get(name, {}).items():
            assert part[axis] == leaf.shape[axis] // mesh[over], (name, leaf.shape, part)
            checked.add(name)
        if (
            name == "out"
        ):  # of attention [run, layer, head, head width, width], of the MLP [run, layer, MLP width, width]
            assert part[2] == leaf.shape[2] // mesh["tensor"] and part[-1] == leaf.shape[-1] // mesh["fsdp"]
    assert checked == set(split)


@pytest.mark.usefixtures("quickly_compiled")
def test_micro_batches_of_any_size_make_the_same_updates(float64):
    """What a run reads in an update depends on the sequences consumed alone: on other data nothing would agree."""
    one, expected = pair(**float64)
    made, lines = pair(**float64, execution__microbatch_tokens=64)
    for run, accumulation in (("0", 3), ("1", 1)):
        updates, halves = (slice(accumulation * k - 1, None, accumulation * k) for k in (1, 2))
        found, reference = lines[made.slots.index(run)][halves], expected[one.slots.index(run)][updates]
        assert len(found) == len(reference) == (1 if run == "0" else 5)
        np.testing.assert_allclose(found, reference, rtol=1e-6)
        found, reference = state_of(made, run), state_of(one, run)
        assert_close((found.weights, found.gradient), (reference.weights, reference.gradient), rtol=1e-8, atol=1e-13)
        assert found.tokens == reference.tokens and found.tick == 2 * reference.tick
