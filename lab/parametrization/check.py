"""Coordinate check: does training move every tensor equally far at every width and depth?

The check of Tensor Programs V (Yang et al. 2022, arXiv:2203.03466, section D.1), with numbers for its pictures. Models
of several sizes make a few updates on the same random tokens. The root mean square (RMS) of each quantity is fitted by
size^slope, beside a correction at finite size, and the slope compared with what transfer of hyperparameters needs:

    initial X   what the model taps, before training                       0
    change X    the same, after less before                                0
    update W    change of a weight x its forward factor x the share of     -(growth of fan_in x layers)
                its branch in the residual stream

An update is coherent: the product sums it over the fan-in, and the stream over the layers, so that it has to shrink by
as much as they grow. That follows from the weight's record, whatever the rules of the parametrization say. Scores of
attention may shrink at initialization, as products of independent queries and keys over the head width do. What a
parametrization declares in `exponents` holds for the axes of width; an initial quantity that it declares to shrink may
also stay (logits of a tied readout do, because a token's own embedding is in the stream). README.md: how to read it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from scipy.stats import t as student

from lab.errors import ConfigError
from lab.models import registry
from lab.models.architecture import one_of
from lab.models.weight import by_path, is_record
from lab.parametrization import probe
from lab.parametrization.scales import Scales, find, scales

AXES = ("width", "heads", "depth")
WIDTHS = (32, 64, 128, 256, 512)
DEPTHS = (2, 4, 8, 16, 32)
WRONG = 0.5  # the smallest error of an exponent that a wrong rule gives: a factor of sqrt(width) or sqrt(depth)
LEVEL = 0.95
SCORES_AT_INIT = -0.5
SPAN = 16  # of sizes, largest over smallest
BATCH = 1  # sequences: the fewer tokens, the sooner sums over features outweigh chance
CHANGE = 0.25  # of a hidden product by one update at the smallest size: enough for training to matter
SGD_RATE = 2.0**-5  # its updates are of the gradient's size, which rules do not tell


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity: RMS [sizes, seeds] ~ size^slope, an interval of the slope, what is expected: `least` to `most`."""

    name: str
    least: float
    most: float
    slope: float
    low: float
    high: float
    rms: np.ndarray

    @property
    def verdict(self) -> str:
        """The expected exponent against one that is wrong by WRONG: "pass" where the slope is nearer to the expected
        one and the interval excludes the wrong ones; "fail" where it is nearer to a wrong one and the interval excludes
        the expected one, or where the quantity is zero or not finite somewhere; else "undecided"."""
        near = self.least - WRONG / 2 <= self.slope <= self.most + WRONG / 2
        if near and self.least - WRONG < self.low and self.high < self.most + WRONG:
            return "pass"
        if math.isnan(self.slope) or (not near and (self.high < self.least or self.low > self.most)):
            return "fail"
        return "undecided"


@dataclasses.dataclass(frozen=True)
class AxisCheck:
    """The rows of one axis in order of computation."""

    axis: str
    sizes: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def offender(self) -> Row | None:
        """The first row that does not pass."""
        return next((row for row in self.rows if row.verdict != "pass"), None)


@dataclasses.dataclass(frozen=True)
class Check:
    """Axes that were checked, and for those that were not, why."""

    axes: tuple[AxisCheck, ...]
    left_out: dict[str, str]

    @property
    def offender(self) -> tuple[AxisCheck, Row] | None:
        """The first axis that does not pass, and its first offending row."""
        return next(((axis, axis.offender) for axis in self.axes if axis.offender), None)

    @property
    def passed(self) -> bool:
        return self.offender is None


def fit_row(name: str, expected: tuple[float, float], sizes: Sequence[int], rms: np.ndarray) -> Row:
    """Least squares of ln rms [sizes, seeds] on ln size and 1/size; Student-t interval of ln size's slope at LEVEL.

    1/size is the correction at finite width: a coherent part c beside a random one r gives RMS^2 = c^2 + r^2 / size.
    Each seed has a level of its own, because its tokens are the same at every size. A quantity that is zero or not
    finite somewhere has no slope: NaN, which never passes.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(rms)
    if not np.isfinite(y).all():
        return Row(name, *expected, math.nan, math.nan, math.nan, rms)
    x = np.stack([np.log(sizes), sizes[0] / np.array(sizes)], axis=1)
    x = np.repeat((x - x.mean(0))[:, None], rms.shape[1], axis=1).reshape(-1, 2)
    y = (y - y.mean(0)).reshape(-1)
    found, *_ = np.linalg.lstsq(x, y)
    left = y - x @ found
    freedom = len(y) - rms.shape[1] - 2
    half = student.ppf((1 + LEVEL) / 2, freedom) * math.sqrt(left @ left / freedom * np.linalg.inv(x.T @ x)[0, 0])
    slope = float(found[0])
    return Row(name, *expected, slope, float(slope - half), float(slope + half), rms)


def sized(model_config, axis: str, size: int) -> Any:
    """The `model` node at one size of an axis: heads stay and widen ("width"), or keep their width and multiply
    ("heads"), or layers are added ("depth")."""
    config = model_config.copy_and_resolve_references()
    if axis == "depth":
        config.depth = size
        return config
    if axis == "width":
        config.head_width = 0
    elif not config.head_width:
        config.head_width = config.width // config.heads
    return registry.at_width(config, size)


def _based(parametrization_config, given: frozenset[str], axis: str, sizes: Sequence[int], model_config) -> Any:
    """The `parametrization` node, its base model the smallest of the axis but where a key is given."""
    config = parametrization_config.copy_and_resolve_references()
    if "base_width" not in given:
        config.base_width = model_config.width if axis == "depth" else sizes[0]
    if "base_depth" not in given:
        config.base_depth = sizes[0] if axis == "depth" else model_config.depth
    return config


def rules_of_depth(model_config, parametrization_config, family: str) -> bool:
    """Whether learning rates or the factors of branches depend on the depth: whether a parametrization claims it."""
    found = []
    for depth in (1, 2):
        node = parametrization_config.copy_and_resolve_references()
        node.base_depth, node.base_width = 1, model_config.width
        numbers = scales(sized(model_config, "depth", depth), node, family)
        branch = float(np.ravel(numbers.multipliers["residual"]["branch"])[0])
        found.append((branch, *jax.tree.leaves(numbers.learning_rate)))
    return not np.allclose(found[0], found[1])


def _why_not(axis: str, model_config, parametrization_config, family: str) -> str | None:
    """Why an axis that nobody asked for is left out; None where it is checked."""
    records = jax.tree.leaves(registry.build(model_config).records(), is_leaf=is_record)
    if axis == "heads" and not any("head_width" in record.axes for record in records):
        return "no weight of this kind of model has heads"
    if axis == "depth" and not any(record.depth is not None for record in records):
        return "no weight of this kind of model is stacked in layers"
    if axis == "depth" and not rules_of_depth(model_config, parametrization_config, family):
        return "no learning rate or branch depends on depth, so that transfer in depth is not claimed"
    return None


def _expected(name: str, axis: str, first: Any, last: Any, ratio: float, declared: dict) -> tuple[float, float]:
    """The least and the most exponent of a row. `first`, `last`: records by path at either end."""
    kind, _, tensor = name.partition(" ")
    exponent, initially = 0.0, kind == "initial"
    if axis != "depth":
        exponent = declared.get(f"{kind} {probe.unnumbered(tensor)}", exponent)
        if initially and tensor.endswith(probe.SCORES):
            exponent = SCORES_AT_INIT
    if kind == "update" and not exponent:
        exponent = math.log(_summed(first[tensor]) / _summed(last[tensor])) / math.log(ratio)
    return exponent, max(exponent, 0.0) if initially else exponent


def _summed(record) -> int:
    """Over how many terms an update of a weight is summed on its way to the logits."""
    return record.size(record.fan_in) * (1 if record.depth is None else record.shape[record.depth])


def learning_rate(records: dict, found: Scales, family: str) -> float:
    """The rate at which an update of a typical hidden weight, summed over its fan-in, is CHANGE."""
    if family == "sgd":
        return SGD_RATE
    rates, std, factors = (by_path(x) for x in (found.learning_rate, found.init_std, found.multipliers["weights"]))
    moves = [
        rates[path] * factors[f"{path}/forward"] * record.size(record.fan_in) * (std[path] if family == "lamb" else 1.0)
        for path, record in records.items()
        if record.role in ("hidden", "residual", "readout")
    ]
    return CHANGE / float(np.median(moves)) if moves else CHANGE


def check_axis(
    axis: str,
    sizes: Sequence[int],
    model_config,
    parametrization_config,
    optimizer: probe.Optimizer,
    *,
    seeds: int,
    updates: int,
    given: frozenset[str] = frozenset(),
    say: Callable[[str], None] = lambda line: None,
) -> AxisCheck:
    """One axis; see `check`."""
    sizes = tuple(sorted(set(sizes)))
    if len(sizes) < 3 or sizes[-1] < SPAN * sizes[0]:
        raise ConfigError(
            f"--{'depths' if axis == 'depth' else 'widths'}: found {', '.join(map(str, sizes))}; expected at least 3 "
            f"sizes, the largest at least {SPAN} times the smallest"
        )
    node = _based(parametrization_config, given, axis, sizes, model_config)
    measured, records, rate = [], [], None
    for size in sizes:
        config = sized(model_config, axis, size)
        say(f"{axis} {size}")
        model = registry.build(config, 1)  # a scan over layers compiles in one layer's time
        found = scales(config, node, optimizer.family)
        records.append(by_path(model.records()))
        rate = rate or optimizer.learning_rate or learning_rate(records[0], found, optimizer.family)
        shape = (BATCH, config.sequence_length + 1)
        measured.append([probe.measure(model, optimizer, rate, found, shape, updates, seed) for seed in range(seeds)])
    per_layer, rows = axis != "depth", []
    names = probe.names(registry.build(sized(model_config, axis, sizes[0]), 1), per_layer)
    declared = find(node.name).exponents
    for name in names:
        rms = np.array([[probe.value(run, name) for run in runs] for runs in measured])
        rows.append(
            fit_row(name, _expected(name, axis, records[0], records[-1], sizes[-1] / sizes[0], declared), sizes, rms)
        )
    return AxisCheck(axis, sizes, tuple(rows))


def check(
    model_config,
    parametrization_config,
    optimizer: probe.Optimizer,
    *,
    axes: Sequence[str] = (),
    widths: Sequence[int] = WIDTHS,
    depths: Sequence[int] = DEPTHS,
    seeds: int = 10,
    updates: int = 4,
    given: frozenset[str] = frozenset(),
    say: Callable[[str], None] = lambda line: None,
) -> Check:
    """Checks a parametrization on a family of models.

    Args:
      model_config: `model` node, `vocab_size` resolved; the axes change its width, heads and depth.
      parametrization_config: `parametrization` node; the base model is the smallest of each axis, but for the keys
        (`base_width`, `base_depth`) in `given`.
      axes: some of AXES; none means those that apply: heads where the model has them, depth where the parametrization
        has a rule for it.
      seeds: draws of initial weights and tokens (uniform, BATCH sequences, the same at every size).
      say: is told of progress.

    Raises ConfigError for sizes that the family does not have, or that span less than SPAN.
    """
    for axis in axes:
        one_of("--axes", axis, AXES)
    for key, least, found in (("--seeds", 2, seeds), ("--updates", 1, updates)):
        if found < least:
            raise ConfigError(f"{key}: found {found}, expected at least {least}")
    left_out = {}
    if not axes:
        reasons = {axis: _why_not(axis, model_config, parametrization_config, optimizer.family) for axis in AXES}
        left_out = {axis: reason for axis, reason in reasons.items() if reason}
    options = {"seeds": seeds, "updates": updates, "given": given, "say": say}
    chosen = [axis for axis in axes or AXES if axis not in left_out]
    sizes = {"depth": depths}
    found = (
        check_axis(axis, sizes.get(axis, widths), model_config, parametrization_config, optimizer, **options)
        for axis in chosen
    )
    return Check(tuple(found), left_out)
