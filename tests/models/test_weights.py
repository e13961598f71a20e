"""Records, initial weights, and where a mesh puts them."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from settings import model_config

from lab import models
from lab.models.axes import partition_spec
from lab.models.weight import ROLES, Record, is_record

CONFIGS = [{}, {"tied": True, "gated": True, "norm": "layer", "kv_heads": 2}, {"qk_norm": False, "head_width": 6}]


@pytest.mark.parametrize("changes", CONFIGS)
def test_records_describe_the_weights(changes):
    config = model_config(**changes)
    model = models.build(config)
    records, weights = model.records(), model.init(jax.random.key(0))
    assert jax.tree.structure(records, is_leaf=is_record) == jax.tree.structure(weights)
    sizes = {"layers": config.depth, "embed": config.width, "vocab": config.vocab_size, "heads": config.heads}
    for record, value in zip(jax.tree.leaves(records, is_leaf=is_record), jax.tree.leaves(weights), strict=True):
        assert record.shape == value.shape and value.dtype == np.float32 and len(record.axes) == len(record.shape)
        assert record.role in ROLES
        assert all(sizes.get(name, size) == size for name, size in zip(record.axes, record.shape, strict=True))
        assert record.depth == (0 if record.axes[0] == "layers" else None)
        assert {record.axes[i] for i in record.width} <= {"embed", "heads", "kv_heads", "head_width", "mlp"}
        used = sorted((*record.fan_in, *record.fan_out, *([0] if record.depth == 0 else [])))
        assert used == list(range(len(record.shape)))


def test_axes_of_the_down_projection():
    record = models.build(model_config()).records()["layers"]["mlp"]["out"]
    assert record == Record((2, 64, 16), ("layers", "mlp", "embed"), (1,), (2,), (1, 2), 0, "residual")
    assert record.unstacked(0) == Record((64, 16), ("mlp", "embed"), (0,), (1,), (0, 1), None, "residual")
    assert record.unstacked(0).stacked(0, "layers", 2) == record


def test_initial_weights_are_of_unit_scale():
    weights = models.build(model_config(width=64, norm="layer")).init(jax.random.key(1))
    assert np.all(weights["final_norm"]["gain"] == 1) and np.all(weights["final_norm"]["bias"] == 0)
    for matrix in (weights["embedding"], weights["readout"], weights["layers"]["attention"]["query"]):
        count = matrix.size
        assert abs(np.mean(matrix)) < 5 / count**0.5 and abs(np.var(matrix) - 1) < 5 * (2 / count) ** 0.5


def test_initial_weights_of_a_layer_do_not_depend_on_depth_and_differ_by_layer_name_and_seed():
    shallow, deep = (models.build(model_config(depth=d)).init(jax.random.key(2)) for d in (2, 5))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[:2]), shallow["layers"], deep["layers"])
    np.testing.assert_array_equal(shallow["embedding"], deep["embedding"])
    attention = deep["layers"]["attention"]
    assert np.all(attention["query"][0] != attention["query"][1]) and np.all(attention["query"] != attention["key"])
    other = models.build(model_config()).init(jax.random.key(3))
    assert np.all(other["embedding"] != shallow["embedding"])


@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 2, 2), (1, 1, 8)])
def test_initial_weights_do_not_depend_on_the_mesh(shape):
    model = models.build(model_config())
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "fsdp", "tensor"))
    places = jax.tree.map(
        lambda record: NamedSharding(mesh, partition_spec(record, mesh.shape)), model.records(), is_leaf=is_record
    )
    alone = jax.jit(model.init)(jax.random.key(7))
    split = jax.jit(model.init, out_shardings=places)(jax.random.key(7))
    assert len(split["layers"]["mlp"]["up"].sharding.device_set) == 8
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), alone, split)


@pytest.mark.parametrize(
    "mesh, expected",
    [
        ({"run": 1, "data": 1, "fsdp": 1, "tensor": 1}, (None, None, None, None)),
        ({"run": 2, "data": 2, "fsdp": 4, "tensor": 2}, (None, "fsdp", "tensor", None)),
        ({"fsdp": 3, "tensor": 8}, (None, None, None, None)),
        ({"tensor": 4}, (None, None, "tensor", None)),
    ],
)
def test_partition_specs_split_only_what_divides(mesh, expected):
    """Queries [2 layers, width 16, 4 heads, head width 4]: whole heads only, though 8 divides 4 x 4."""
    record = models.build(model_config()).records()["layers"]["attention"]["query"]
    assert partition_spec(record, mesh) == PartitionSpec(*expected)


def test_partition_spec_uses_a_mesh_axis_once():
    record = Record((8, 8), ("embed", "embed"), (0,), (1,), (0, 1), None, "hidden")
    assert partition_spec(record, {"fsdp": 2}) == PartitionSpec("fsdp", None)
