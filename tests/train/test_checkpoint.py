"""Checkpoints: exact, overlapped, and whole or passed over, whatever happens to the process or to its files."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lab.errors import CheckpointError, UserError
from lab.files import unseal
from lab.train.checkpoint import Checkpointer, export


@struct.dataclass
class State:
    weights: dict
    optimizer: tuple
    step: jax.Array
    keys: jax.Array
    tokens: np.ndarray


def sharding(devices):
    mesh = jax.make_mesh((devices,), ("run",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec("run"))


def make_state(seed, devices=8, runs=8, width=6):
    rng = np.random.default_rng(seed)
    weights = {"embed": rng.normal(size=(runs, 5, width)), "mlp": {"up": rng.normal(size=(runs, width))}}
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights)
    weights["low"] = jnp.asarray(rng.normal(size=(runs, 3)), jnp.bfloat16)
    optimizer = jax.vmap(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init)(weights)
    keys = jax.vmap(jax.random.key)(jnp.arange(runs) + seed)
    state = State(weights, optimizer, jnp.full((runs,), seed, jnp.int32), keys, jnp.arange(runs) * seed)
    return jax.device_put(state, sharding(devices))


def abstract(state, devices):
    placed = sharding(devices)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), state)


def plain(state):
    raw = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state)
    return jax.tree.map(np.asarray, raw)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.map(lambda x: str(x.dtype), found) == jax.tree.map(lambda x: str(x.dtype), expected)
    jax.tree.map(np.testing.assert_array_equal, plain(found), plain(expected))


@pytest.mark.parametrize("saved_on", [8, 1, 2])
def test_restores_on_other_device_counts(tmp_path, saved_on):
    state = make_state(3, saved_on)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(17, state, {"runs": ["a", "b"]})
        for devices in (1, 2, 4, 8):
            tick, found, meta = checkpointer.restore(abstract(state, devices))
            assert (tick, meta) == (17, {"runs": ["a", "b"]})
            assert_same(found, state)
            assert all(leaf.sharding.num_devices == devices for leaf in jax.tree.leaves(found))


def test_save_overlaps_updates_that_donate_the_state(tmp_path):
    """What is on disk is the state at the call of save, though its buffers are reused at once."""
    update = jax.jit(lambda state: jax.tree.map(lambda x: x * 2 + 1, state), donate_argnums=0)
    for devices in (1, 8):
        first = np.arange(8 * 300_000, dtype=np.float32).reshape(8, -1)
        state = {"weights": jax.device_put(first.copy(), sharding(devices))}
        host = {"counter": np.zeros(8)}
        with Checkpointer(tmp_path / str(devices)) as checkpointer:
            checkpointer.save(1, state | host, {})
            assert checkpointer.busy
            host["counter"] += 1
            for _ in range(5):
                state = update(state)
            checkpointer.save(2, state | host, {})
            later = np.array(state["weights"])
            state = update(state)
            checkpointer.wait()
            assert not checkpointer.busy
            target = abstract(state, devices) | {"counter": jax.ShapeDtypeStruct((8,), np.float64)}
            for tick, expected in ((2, later), (1, first)):
                found_tick, found, _ = checkpointer.restore(target)
                assert found_tick == tick
                np.testing.assert_array_equal(found["weights"], expected)
                np.testing.assert_array_equal(found["counter"], np.full(8, tick - 1.0))
                (tmp_path / str(devices) / f"tick-{tick:012d}" / "manifest.json").unlink()


def test_keeps_the_last_ones_and_reads_their_meta(tmp_path):
    state = make_state(1)
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.restore(abstract(state, 8)) is None
        assert checkpointer.latest() is None and checkpointer.read_meta() is None
        for tick in (1, 2, 3):
            checkpointer.save(tick, state, {"tick": tick})
        checkpointer.wait()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["tick-000000000002", "tick-000000000003"]
        assert checkpointer.latest() == 3 and checkpointer.read_meta() == (3, {"tick": 3})
        checkpointer.save(3, state, {"tick": "again"})
        checkpointer.wait()
        assert checkpointer.read_meta() == (3, {"tick": "again"}) and len(list(tmp_path.iterdir())) == 2
        checkpointer.save(1, state, {"tick": "from the start"})
        checkpointer.wait()
        assert checkpointer.latest() == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A directory with ticks 1 and 2, and what they hold."""
    directory = tmp_path_factory.mktemp("two")
    states = {tick: make_state(tick) for tick in (1, 2)}
    with Checkpointer(directory) as checkpointer:
        for tick, state in states.items():
            checkpointer.save(tick, state, {"tick": tick, "runs": list("abcdefgh")})
    return directory, states


def test_damage_to_any_file_is_found_and_passed_over(tmp_path, two_checkpoints):
    source, states = two_checkpoints
    rng = np.random.default_rng(0)
    directory = tmp_path / "copy"
    shutil.copytree(source, directory)
    newest = directory / "tick-000000000002"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert len(files) > 5
    target = abstract(states[1], 4)

    def fell_back():
        warnings = []
        with Checkpointer(directory, warn=warnings.append) as checkpointer:
            tick, found, meta = checkpointer.restore(target)
        (warning,) = warnings
        assert tick == meta["tick"] == 1 and str(newest) in warning and "\n" not in warning
        return found

    for file in files:
        content = file.read_bytes()
        flipped = bytearray(content)
        if content:
            bit = int(rng.integers(8 * len(content)))
            flipped[bit // 8] ^= 1 << bit % 8
            for damaged in (bytes(flipped), content[: len(content) // 2]):
                file.write_bytes(damaged)
                found = fell_back()
        file.unlink()
        fell_back()
        file.write_bytes(content)
    assert_same(found, states[1])
    with Checkpointer(directory, warn=pytest.fail) as checkpointer:
        assert checkpointer.restore(target)[0] == 2


def test_every_bit_of_a_manifest_counts(two_checkpoints):
    document = (two_checkpoints[0] / "tick-000000000002" / "manifest.json").read_bytes()
    for bit in range(0, 8 * len(document), 7):
        flipped = bytearray(document)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            unseal(bytes(flipped))


def test_the_save_after_a_fallback_replaces_the_damaged_one(tmp_path, two_checkpoints):
    shutil.copytree(two_checkpoints[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tick-000000000002" / "state" / "manifest.ocdbt").write_bytes(b"")
    state = make_state(5)
    with Checkpointer(tmp_path, keep=1, warn=lambda _: None) as checkpointer:
        assert checkpointer.restore(abstract(state, 8))[0] == 1
        checkpointer.save(2, state, {})
        checkpointer.wait()
        assert [path.name for path in tmp_path.iterdir()] == ["tick-000000000002"]
        assert_same(checkpointer.restore(abstract(state, 1))[1], state)


def test_falling_back_past_a_pack_that_had_shrunk(tmp_path):
    """The target follows from the meta of the checkpoint that is whole, not from that of the newest."""
    states = {1: make_state(1, runs=8), 2: make_state(2, 4, runs=4)}
    with Checkpointer(tmp_path, warn=lambda _: None) as checkpointer:
        for tick, state in states.items():
            checkpointer.save(tick, state, {"runs": len(state.step)})
        for tick in (2, 1):
            found_tick, found, _ = checkpointer.restore(lambda meta: abstract(make_state(0, 4, meta["runs"]), 4))
            assert found_tick == tick
            assert_same(found, states[tick])
            (tmp_path / f"tick-{tick:012d}" / "state" / "_METADATA").write_bytes(b"")


def test_checkpoint_of_another_config_is_refused_in_one_line(two_checkpoints):
    directory, states = two_checkpoints
    target = abstract(states[1], 8)
    others = {
        "weights/embed is float32[8, 5, 6], expected float32[8, 5, 7]": dataclasses.replace(
            target, weights=target.weights | {"embed": jax.ShapeDtypeStruct((8, 5, 7), jnp.float32)}
        ),
        "step is int32[8], expected float32[8]": dataclasses.replace(
            target, step=jax.ShapeDtypeStruct((8,), jnp.float32)
        ),
        "has no weights/extra": dataclasses.replace(target, weights=target.weights | {"extra": target.step}),
        "has optimizer/1/0/count, which": dataclasses.replace(target, optimizer=()),
        "keys is key<fry>[8], expected uint32[8, 2]": dataclasses.replace(
            target, keys=jax.ShapeDtypeStruct((8, 2), jnp.uint32)
        ),
    }
    for message, other in others.items():
        with Checkpointer(directory) as checkpointer, pytest.raises(CheckpointError) as caught:
            checkpointer.restore(other)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_export_takes_one_run_out(tmp_path, two_checkpoints):
    directory, states = two_checkpoints
    expected = plain(states[2])
    assert export(directory, 3, tmp_path / "run.npz") == (2, {"tick": 2, "runs": list("abcdefgh")})
    with np.load(tmp_path / "run.npz") as taken:
        np.testing.assert_array_equal(taken["weights/embed"], expected.weights["embed"][3])
        np.testing.assert_array_equal(taken["weights/low"], expected.weights["low"][3].astype(np.float32))
        np.testing.assert_array_equal(taken["keys"], expected.keys[3])
        assert taken["step"] == 2 and json.loads(str(taken["meta"]))["tick"] == 2
        assert len(taken.files) == len(jax.tree.leaves(expected)) + 1
    assert export(directory, 0, tmp_path / "run.npz", tick=1, prefixes=("weights/",))[0] == 1
    with np.load(tmp_path / "run.npz") as taken:
        assert sorted(taken.files) == ["meta", "weights/embed", "weights/low", "weights/mlp/up"]
    for wrong in ({"index": 8}, {"index": 0, "tick": 7}, {"index": 0, "prefixes": ("wieghts/",)}):
        with pytest.raises(CheckpointError):
            export(directory, out=tmp_path / "absent.npz", **wrong)
    assert not (tmp_path / "absent.npz").exists()
    with pytest.raises(CheckpointError, match="not of a pack"), Checkpointer(tmp_path / "single") as checkpointer:
        checkpointer.save(1, {"a": np.zeros(3), "b": np.float64(1)}, {})
        checkpointer.wait()
        export(tmp_path / "single", 0, tmp_path / "absent.npz")


def test_full_disk_says_so_and_leaves_the_earlier_checkpoint(tmp_path, caplog):
    """On a real file system of 8 MB where the tests may mount one; the error is the kernel's."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        small, large = ({"weights": np.arange(8.0)}, {"weights": np.random.default_rng(0).normal(size=2_000_000)})
        target = {"weights": jax.ShapeDtypeStruct((8,), np.float64)}
        with Checkpointer(disk / "pack", warn=pytest.fail) as checkpointer:
            checkpointer.save(1, small, {})
            checkpointer.save(2, large, {})
            with pytest.raises(UserError, match="no space left") as caught:
                checkpointer.wait()
            assert "\n" not in str(caught.value)
            assert [path.name for path in (disk / "pack").iterdir()] == ["tick-000000000001"]
            assert checkpointer.restore(target)[0] == 1
            checkpointer.save(3, small, {})
            checkpointer.wait()
            assert checkpointer.latest() == 3
            filler = disk / "filler"
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(65536 if shutil.disk_usage(disk).free >= 65536 else 1024))
            with pytest.raises(UserError, match="no space left"):
                checkpointer.save(4, small, {})
                checkpointer.wait()
            assert checkpointer.restore(target)[0] == 3
        assert not caplog.records
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_other_errors_of_a_save_surface_as_they_are(tmp_path, monkeypatch):
    with Checkpointer(tmp_path) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr("lab.train.checkpoint._sha256", lambda file: 1 / 0)
            checkpointer.save(1, {"a": np.zeros(3)}, {})
            with pytest.raises(ZeroDivisionError):
                checkpointer.save(2, {"a": np.zeros(3)}, {})
        assert list(tmp_path.iterdir()) == []
        checkpointer.save(2, {"a": np.zeros(3)}, {})
    assert checkpointer.latest() == 2


WRITER = """
import os, sys, threading, time
import numpy as np
from lab.train.checkpoint import Checkpointer

import jax
directory, delay = sys.argv[1], float(sys.argv[2])
target = {"weights": jax.ShapeDtypeStruct((4, 1000), np.float64), "tick": jax.ShapeDtypeStruct((), np.int64)}
with Checkpointer(directory, keep=2, warn=lambda line: None) as checkpointer:
    restored = checkpointer.restore(target)
    tick = restored[0] if restored else 0
    if restored:
        assert restored[1]["tick"] == tick and (restored[1]["weights"] == tick).all()
    print("restored", tick, flush=True)
    while True:
        tick += 1
        checkpointer.save(tick, {"weights": np.full((4, 1000), float(tick)), "tick": np.int64(tick)}, {"tick": tick})
        print("saving", tick, flush=True)
        if tick == (restored[0] if restored else 0) + 2:  # counted by saves, as a busy machine's first may take seconds
            threading.Timer(delay, os.kill, (os.getpid(), 9)).start()
"""


def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path):
    """Each life resumes at least from the save before the one that was under way when the life before it ended."""
    started = 0
    for delay in np.random.default_rng(1).uniform(0, 0.5, size=4):
        life = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path), str(delay)], capture_output=True, text=True)
        assert life.returncode == -9, life.stderr
        lines = [line.split() for line in life.stdout.splitlines()]
        restored = int(lines[0][1])
        assert lines[0][0] == "restored" and restored >= started - 1
        started = max([restored, *(int(tick) for word, tick in lines if word == "saving")])
    assert started >= 4
    with Checkpointer(tmp_path, warn=lambda line: None) as checkpointer:
        assert checkpointer.latest() >= started - 1
        checkpointer.save(started + 1, {"weights": np.zeros((4, 1000))}, {})
        checkpointer.wait()
        assert [(path / "manifest.json").exists() for path in tmp_path.iterdir()] == [True, True]
