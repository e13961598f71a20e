"""What an experiment is: a paper's sweep by scale, its analysis, its figure, its claims.

An experiment may also have no sweep and read the measurements that the paper's authors (or others) published.

A module under `experiments/`, or a file of your own, lists its `EXPERIMENTS`. Everything that is heavy is imported
inside the functions, so that `lab list` stays quick.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lab.errors import ConfigError
from lab.sweep.axes import Point


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs of an experiment at one scale.

    Attributes:
      base: config that the points change.
      points: see `lab.sweep.axes`.
      note: what this scale is for, in a sentence: hardware and time.
      settings: numbers of the analysis that belong to the scale (targets, reference batch, ...).
      extensions: how often the sweep may extend itself (a best value lies on the edge of its axis, a stage follows).
    """

    base: ConfigDict
    points: Sequence[Point]
    note: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extensions: int = 0


@dataclasses.dataclass(frozen=True)
class Results:
    """What an analysis reads: the table, one row per run, each run's evaluations, and its statistics.

    `table` has columns `run`, `status`, every config key by its dotted name, and what the record says (`steps`,
    `tokens`, `epochs`, `loss`, `parameters`, ...). `evaluations(run)` is a frame of `step`, `tokens`,
    `loss` (of the averaged weights where the run keeps an average) and the cumulative noise sums. `statistics(run)` is
    a frame of `step`, `tensor`, `kind`, `layer` and the numbers of `lab.train.statistics`, from before the first update
    on; ResultsError for a run whose config does not ask for them.
    """

    table: Any
    evaluations: Callable[[str], Any]
    settings: Mapping[str, Any]
    statistics: Callable[[str], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What an experiment concludes.

    Attributes:
      findings: a `lab.report.findings.Finding` per claim.
      tables: named data frames, shown and committed with the results.
      notes: sentences that a reader must know (repetition, edges of grids, what was censored).
      draw: writes the figure, PNG and SVG, given a path without suffix; returns the PNG.
    """

    findings: Sequence[Any]
    tables: Mapping[str, Any]
    notes: Sequence[str]
    draw: Callable[[Path], Path]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One figure of a paper, under an ID.

    Attributes:
      id: `paper/panel`.
      paper: authors, year, title, arXiv number.
      summary: one sentence.
      scales: name -> function that makes the sweep.
        None where the experiment only reads published measurements.
      analyse: results -> analysis; pure.
      extend: (results, base) -> further points where a tuned axis has its best value on the edge.
      published: path of the authors' table -> analysis, where there is one.
      measurements: (name of a data set -> data frame) -> analysis, where the experiment trains nothing; see
        `lab.laws.datasets`.
    """

    id: str
    paper: str
    summary: str
    scales: Mapping[str, Callable[[], Sweep]] = dataclasses.field(default_factory=dict)
    analyse: Callable[[Results], Analysis] | None = None
    extend: Callable[[Results], Sequence[Point]] | None = None
    published: Callable[[Path], Analysis] | None = None
    measurements: Callable[[Callable[[str], Any]], Analysis] | None = None

    def __post_init__(self):
        if bool(self.scales) == bool(self.measurements):
            raise ConfigError(
                f"experiment {self.id}: expected scales to train at, or measurements to read, one of them"
            )


def edge_points(
    best: Mapping[Any, float], tried: Mapping[Any, Sequence[float]], limits: tuple[float, float]
) -> dict[Any, float]:
    """The next value for each group whose best value is the lowest or highest tried.

    Args:
      best: group -> best value of the tuned axis.
      tried: group -> all values tried, evenly spaced in logs.
      limits: values beyond which the sweep does not go.

    Returns:
      group -> one more value, the grid's own ratio beyond the edge; groups at a limit are left out.
    """
    further = {}
    for group, value in best.items():
        values = sorted(set(tried[group]))
        if len(values) < 2:
            continue
        ratio = (values[-1] / values[0]) ** (1 / (len(values) - 1))
        if value == values[0] and value / ratio >= limits[0] * 0.999:
            further[group] = value / ratio
        elif value == values[-1] and value * ratio <= limits[1] * 1.001:
            further[group] = value * ratio
    return {group: float(f"{value:.4g}") for group, value in further.items()}


def load_file(path: Path) -> dict[str, Experiment]:
    """The `EXPERIMENTS` of a Python file of the user's own.

    Raises:
      ConfigError: where the file is missing or lists none.
    """
    if not path.is_file():
        raise ConfigError(f"found no file {path}, expected a Python file with EXPERIMENTS")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    found = getattr(module, "EXPERIMENTS", None)
    if not found:
        raise ConfigError(f"{path} lists no EXPERIMENTS, expected a sequence of lab.sweep.experiment.Experiment")
    return {experiment.id: experiment for experiment in found}


@functools.cache
def find_experiments() -> dict[str, Experiment]:
    """Every experiment of the `windtunnel.experiments` entry points, ours among them."""
    from importlib import metadata

    found: dict[str, Experiment] = {}
    for point in metadata.entry_points(group="windtunnel.experiments"):
        for experiment in point.load():
            found[experiment.id] = experiment
    return found
