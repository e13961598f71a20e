"""The check passes for what claims to transfer, and fails for the standard parametrization and for planted faults."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lab import cli_check, models
from lab.config import default_config, override
from lab.errors import ConfigError
from lab.models import weight
from lab.models.model import Model
from lab.models.scaling import tap
from lab.parametrization import check as checking
from lab.parametrization import mup, probe, register, scales
from lab.parametrization.scales import find

WIDTHS, DEPTHS = (32, 128, 512), (2, 8, 32)
PLAIN = {}
OTHER = {  # everything that PLAIN is not
    "model.gated": True,
    "model.activation": "silu",
    "model.norm": "layer",
    "model.tied": True,
    "model.kv_heads": 1,
    "model.qk_norm": False,
    "model.logit_soft_cap": 10.0,
}
MUP_LIKE = ("mup", "depth-mup", "completep", "umup")


def config(name, optimizer="adamw", **changes):
    named = {"parametrization.name": name, "optimizer.name": optimizer}
    return override(default_config(), {**cli_check.FAMILY, **named, **changes})


def check(name, variant=PLAIN, optimizer="adamw", **options):
    cfg = config(name, optimizer, **variant)
    options = {"widths": WIDTHS, "depths": DEPTHS, **options}
    found = checking.check(cfg.model, cfg.parametrization, cli_check.optimizer_of(cfg, False), **options)
    assert found.axes
    return found


def told(found):
    """The offenders, for the message of an assertion."""
    return [(axis.axis, row) for axis in found.axes for row in axis.rows if row.verdict != "pass"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["mup", "umup"])
def test_passes_in_every_axis_that_it_claims(name):
    found = check(name)
    claimed = ["width", "heads"] if name == "mup" else ["width", "heads", "depth"]
    assert [axis.axis for axis in found.axes] == claimed
    assert found.passed, told(found)
    assert set(found.left_out) == {"width", "heads", "depth"} - set(claimed)


@pytest.mark.parametrize("name, axes", [("mup", ("width",)), ("umup", ("width", "depth"))])
def test_passes(name, axes):
    found = check(name, axes=axes)
    assert found.passed, told(found)


@pytest.mark.parametrize("name", ["depth-mup", "completep"])
def test_depth_rules_pass_in_depth_and_are_mup_in_width(name):
    cfg, size = config(name), {"model.width": 512}
    based = {"parametrization.base_width": 32, "parametrization.base_depth": cfg.model.depth}
    one, other = (config(which, **size, **based) for which in (name, "mup"))
    same = [scales(node.model, node.parametrization, "adam") for node in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *map(dataclasses.asdict, same))
    found = check(name, axes=("depth",))
    assert found.passed, told(found)


@pytest.mark.parametrize("name", ["mup", "umup"])
def test_passes_with_other_models(name):
    """Gated, layer norm, tied, grouped keys, no QK-norm, a soft cap: the paths of each are others."""
    found = check(name, OTHER, axes=("width",))
    assert found.passed, told(found)


@pytest.mark.long
@pytest.mark.parametrize("name", MUP_LIKE)
@pytest.mark.parametrize("variant", [PLAIN, OTHER], ids=["plain", "other"])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "lion"])
def test_passes_with_every_optimizer_and_model(name, variant, optimizer):
    found = check(name, variant, optimizer)
    assert found.passed, told(found)


@pytest.mark.long
def test_under_sgd_the_first_updates_of_queries_and_keys_are_late():
    """The gradient of a score is a sum over features of values times gradients, which at initialization do not know of
    each other: 1/sqrt(width) of the aligned sum. All else passes."""
    found = check("mup", optimizer="sgd", axes=("width",))
    slopes = {row.name: row.slope for row in found.axes[0].rows}
    assert found.offender[1].name == "update layers/attention/query"
    for part in ("query", "key"):
        assert -1.75 < slopes[f"update layers/attention/{part}"] < -1.25
    late = ("attention/query", "attention/key", "attention/scores")
    assert all(any(part in row.name for part in late) for _, row in told(found)), told(found)


@pytest.mark.parametrize("variant", [PLAIN, OTHER], ids=["plain", "other"])
def test_standard_fails_first_at_the_first_weight_that_sums_over_the_width(variant):
    found = check("standard", variant, axes=("width",), seeds=3)
    assert found.offender[1].name == "update layers/attention/query" and found.offender[1].verdict == "fail"
    slopes = {row.name: row.slope for row in found.axes[0].rows}
    assert slopes["change layers[0]/attention/query.out"] > 0.75  # the update does not shrink: it sums to width^1


def test_ntk_fails_where_features_that_move_meet_scores_of_1_over_sqrt_d():
    """Under Adam features move (arXiv:2407.05872); aligned queries and keys then give scores of sqrt(head width)."""
    found = check("ntk", axes=("width",))
    assert found.offender[1].name == "change layers[0]/attention/scores" and found.offender[1].verdict == "fail"


def test_no_transfer_in_depth_without_a_rule_for_it():
    found = check("mup", axes=("depth",), seeds=3)
    assert found.offender[1].name == "update layers/attention_norm/gain" and found.offender[1].verdict == "fail"


def readout_not_scaled(role):
    return lambda s: dataclasses.replace(role(s), forward=1.0)


def embedding_rate_scaled(role):
    return lambda s: dataclasses.replace(role(s), learning_rate=role(s).learning_rate / s.r_out)


def attention_of_1_over_sqrt_d(context):
    return mup.multipliers(context) | {"attention": context.given.attention_multiplier}


FAULTS = {
    "readout": ({"readout": readout_not_scaled(mup.readout)}, mup.multipliers, PLAIN, "update readout"),
    "attention": ({}, attention_of_1_over_sqrt_d, OTHER, "change layers[0]/attention/scores"),
    "embedding": ({"embedding": embedding_rate_scaled(mup.embedding)}, mup.multipliers, PLAIN, "update embedding"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(registering, fault):
    rules, multipliers, variant, first = FAULTS[fault]
    right = find("mup")
    register(fault, dataclasses.replace(right, rules=right.rules | rules, multipliers=multipliers))
    found = check(fault, variant, axes=("width",), seeds=10 if fault == "attention" else 3)
    assert found.offender[1].name == first and found.offender[1].verdict == "fail", told(found)


class Bigram(nn.Module):
    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, tokens_BT, multipliers):
        down = {"vocab": self.vocab_size, "embed": self.width}
        table = weight.declare(self, "embedding", down, role="embedding", fan_in=(0,), fan_out=(1,), width=(1,))
        up = {"embed": self.width, "vocab": self.vocab_size}
        readout = weight.declare(self, "readout", up, role="readout", fan_in=(0,), fan_out=(1,), width=(0,))
        x_ND = jnp.take(table, tokens_BT.reshape(-1), axis=0)
        return tap(self, "logits", x_ND @ readout * multipliers["readout"])


@pytest.mark.parametrize("name, first", [("mup", None), ("standard", "update readout")])
def test_a_kind_that_taps_nothing_but_logits(monkeypatch, name, first):
    monkeypatch.setattr("lab.models.registry._KINDS", {})
    models.register("bigram")(lambda config, unroll: Model(Bigram(config.vocab_size, config.width), config.vocab_size))
    found = check(name, {"model.kind": "bigram"})
    assert [axis.axis for axis in found.axes] == ["width"] and set(found.left_out) == {"heads", "depth"}
    assert [row.name for row in found.axes[0].rows] == [
        "update embedding", "update readout", "initial logits", "change logits",
    ]  # fmt: skip
    assert (found.offender and found.offender[1].name) == first, told(found)


def test_the_order_is_that_of_computation():
    cfg = config("mup", **{"model.tied": True})
    names = probe.names(models.build(cfg.model, 1), per_layer=True)
    after = ["embedding", "embedded", "attention_norm/gain", "attention/query", "layers[0]/attention/query.out"]
    after += ["layers[0]/attention/scores", "layers[0]/attention/out.out", "layers[0]/mlp/up.out"]
    after += ["layers[0]/residual", "layers[1]/attention/query.out", "layers[1]/residual", "final_norm/gain", "logits"]
    places = [next(i for i, name in enumerate(names) if name.endswith(tensor)) for tensor in after]
    assert places == sorted(places), names


def test_slope_and_interval_against_the_regression_of_statistics_books():
    """ln rms = slope ln n + q / n + a level per seed + noise: the same interval by plain least squares on dummies."""
    rng = np.random.default_rng(0)
    sizes, seeds = np.array([32, 64, 128, 512]), 3
    level, noise = rng.normal(size=seeds), 0.05 * rng.normal(size=(4, seeds))
    rms = np.exp(0.5 * np.log(sizes)[:, None] + 40 / sizes[:, None] + level + noise)
    found = checking.fit_row("x", (0.5, 0.5), sizes, rms)
    columns = [np.repeat(np.log(sizes), seeds), np.repeat(1 / sizes, seeds), *np.tile(np.eye(seeds), (4, 1)).T]
    x, y = np.stack(columns, 1), np.log(rms).reshape(-1)
    best, residual, *_ = np.linalg.lstsq(x, y)
    error = np.sqrt(residual[0] / (len(y) - 5) * np.linalg.inv(x.T @ x)[0, 0])
    half = stats.t.ppf(0.975, len(y) - 5) * error
    np.testing.assert_allclose([found.slope, found.low, found.high], [best[0], best[0] - half, best[0] + half])
    assert found.low < 0.5 < found.high


def test_a_random_part_at_small_widths_does_not_hide_a_coherent_one():
    """RMS^2 = 1 + r^2 / n has exponent 0, which a line over 32 to 512 takes for -0.17."""
    sizes = np.array([32, 64, 128, 256, 512])
    rms = np.sqrt(1 + 40 / sizes)[:, None] * np.array([1.0, 2.0])
    assert np.polyfit(np.log(sizes), np.log(rms[:, 0]), 1)[0] < -0.1
    assert abs(checking.fit_row("x", (0.0, 0.0), sizes, rms).slope) < 0.04


@pytest.mark.parametrize(
    "slope, half, expected, verdict",
    [
        (0.1, 0.3, (0, 0), "pass"),
        (0.1, 0.45, (0, 0), "undecided"),
        (0.3, 0.2, (0, 0), "fail"),
        (0.3, 0.4, (0, 0), "undecided"),
        (-0.8, 0.1, (-1, -1), "pass"),
        (-0.3, 0.1, (-0.5, 0), "pass"),
        (-0.9, 0.1, (-0.5, 0), "fail"),
        (np.nan, np.nan, (0, 0), "fail"),
    ],
)
def test_verdicts(slope, half, expected, verdict):
    row = checking.Row("x", *expected, slope, slope - half, slope + half, np.ones((3, 2)))
    assert row.verdict == verdict


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_quantity_that_has_no_slope_does_not_pass(bad):
    row = checking.fit_row("x", (0.0, 0.0), [1, 4, 16], np.array([[1.0, 1.0], [1.0, bad], [1.0, 1.0]]))
    assert np.isnan(row.slope) and row.verdict == "fail"
    assert checking.AxisCheck("width", (1, 4, 16), (row,)).offender is row


@pytest.mark.parametrize(
    "options, words",
    [
        ({"widths": (32, 64, 128)}, "--widths: found 32, 64, 128; expected at least 3 sizes, the largest at least 16"),
        ({"axes": ("depth",), "depths": (2, 32)}, "--depths: found 2, 32"),
        ({"axes": ("widht",)}, "--axes is 'widht'.*did you mean 'width'"),
        ({"seeds": 1}, "--seeds: found 1, expected at least 2"),
        ({"updates": 0}, "--updates: found 0"),
        ({"widths": (33, 64, 1024)}, "model.heads=2 does not divide model.width=33"),
        ({"axes": ("heads",), "widths": (24, 64, 1024)}, "1.5 heads at width 24"),
    ],
)
def test_what_cannot_be_checked_is_one_line(options, words):
    with pytest.raises(ConfigError, match=words):
        check("mup", **options)
