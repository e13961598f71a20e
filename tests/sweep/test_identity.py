"""A run's name: what its config means, and nothing of how or where it is executed."""

import json

import pytest
from small_packs import config

from lab.config import default_config, flatten, identity, meaning, override, shape

BASE = override(default_config(), {"model.vocab_size": 256})
HASH = identity(BASE, "corpus")
UNREAD = {key for key in flatten(BASE) if key.startswith(("execution.", "data."))} | {"model.kind", "model.remat"}


def named(**changes):
    return identity(override(BASE, {k.replace("__", "."): v for k, v in changes.items()}), "corpus")


@pytest.mark.parametrize("key", sorted(flatten(BASE).keys() - UNREAD))
def test_every_setting_that_is_read_changes_it(key):
    """Each one in a config that reads it; of the data only the digest counts, and there is one kind of model so far."""
    reading = {
        "optimizer.momentum": {"optimizer.name": "sgd"},
        "schedule.cooldown_fraction": {"schedule.name": "wsd"},
        "schedule.final_fraction": {"schedule.name": "linear"},
        "averaging.window_tokens": {"averaging.name": "exponential"},
        "averaging.window_fraction": {"averaging.name": "polynomial"},
        "parametrization.base_width": {"parametrization.name": "mup"},
        "parametrization.base_depth": {"parametrization.name": "completep"},
        "optimizer.decay": {"optimizer.weight_decay": 0.1},
        "model.heads": {"model.kv_heads": 2},
    }
    others = {
        "model.heads": 2,
        "model.kv_heads": 2,
        "model.head_width": 8,
        "model.activation": "silu",
        "model.norm": "layer",
        "model.compute_dtype": "bfloat16",
        "model.precision": "fp8",
        "parametrization.base_depth": 2,
        "optimizer.decay": "independent",
        "parametrization.name": "mup",
        "optimizer.name": "lion",
        "schedule.name": "cosine",
        "averaging.name": "polynomial",
    }
    cfg = override(BASE, reading.get(key, {}))
    value = flatten(cfg)[key]
    other = others.get(
        key, not value if isinstance(value, bool) else value / 2 if isinstance(value, float) and value else 8
    )
    assert identity(override(cfg, {key: other}), "corpus") != identity(cfg, "corpus")


def test_execution_paths_and_what_is_not_read_do_not():
    for key, value in flatten(default_config().execution).items():
        other = {"run_axis": "vmap"}.get(key, 7)
        assert other != value and named(**{f"execution__{key.replace('.', '__')}": other}) == HASH
    assert named(data__corpus="/another/path/to/the/same/text") == HASH != identity(BASE, "other")
    for unread in (
        {"optimizer__momentum": 0.5},
        {"schedule__cooldown_fraction": 0.5},
        {"schedule__final_fraction": 0.5},
        {"averaging__window_tokens": 7},
        {"averaging__window_fraction": 0.7},
        {"parametrization__base_width": 128},
        {"parametrization__base_depth": 1},
        {"optimizer__decay": "independent"},  # of no decay
        {"data__vocabulary": "sentencepiece", "data__vocabulary_size": 7, "data__validation_fraction": 0.2},
        {"model__remat": "full"},
        {"model__head_width": 16},  # what 0 stands for here
        {"model__mlp_width": 256},
    ):
        assert named(**unread) == HASH, unread
    sgd = named(optimizer__name="sgd")
    assert sgd == named(optimizer__name="sgd", optimizer__beta1=0.5, optimizer__beta2=0.1, optimizer__epsilon=1.0)
    assert (
        named(optimizer__learning_rate="0.001")
        == named(optimizer__learning_rate=1e-3)
        == named(optimizer__learning_rate=0.0010)
    )
    assert named(run__seed="3") == named(run__seed=3.0)


def test_it_is_made_of_plain_json():
    assert json.loads(json.dumps(meaning(BASE))) == meaning(BASE)


def test_shape_is_what_differs_between_programs():
    numbers = {
        "optimizer__learning_rate": 0.1,
        "run__batch_tokens": 256,
        "run__horizon_tokens": 2048,
        "run__seed": 1,
        "run__data_seed": 1,
        "schedule__name": "wsd",
        "parametrization__init_scale": 2.0,
        "loss__z_loss": 1.0,
        "evaluation__points": 5,
    }
    for key, value in numbers.items():
        assert shape(config(**{key: value})) == shape(config()), key
    for change in (
        {"model__depth": 2},
        {"optimizer__name": "lion"},
        {"averaging__name": "polynomial"},
        {"run__batch_tokens": 32},
    ):
        assert shape(config(**change)) != shape(config()), change
    assert shape(config(averaging__name="polynomial")) == shape(config(averaging__name="exponential"))
