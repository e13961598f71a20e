"""From an experiment to its report: plan, train, extend, analyse, draw, write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from lab.config import digest, get, nearest, override
from lab.errors import ConfigError, ResultsError
from lab.files import write_beside
from lab.sweep.experiment import Analysis, Experiment, Results, Sweep
from lab.sweep.history import provenance
from lab.sweep.plan import Run, make_runs, whole_tokens
from lab.sweep.run import Display, table, train_missing
from lab.train.store import RunStore, read_json, write_json, write_table


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment at a scale, with the user's overrides, on a root; at scale "published" it has no sweep."""

    experiment: Experiment
    scale: str
    sweep: Sweep | None
    overrides: Mapping[str, Any]
    store: RunStore

    @property
    def directory(self) -> Path:
        """Where the report lies: the scale's, or one of its own where there are overrides."""
        meaning = [key for key in self.overrides if not key.startswith("execution.")]
        meant = {key: get(self.sweep.base, key) for key in meaning}
        name = f"{self.scale}-{digest(meant, 8)}" if meant else self.scale
        return self.store.sweep_directory(self.experiment.id, name)

    def runs(self, corpus: Any, points: Sequence[Mapping[str, Any]] | None = None) -> list[Run]:
        """The runs of `points`; an override of a swept key takes the place of its axis."""
        points = self.sweep.points if points is None else points
        points = [{k: v for k, v in point.items() if k not in self.overrides} for point in points]
        return make_runs(self.sweep.base, points, corpus.vocab_size, corpus.digest)


def open_study(experiment: Experiment, scale: str, overrides: Mapping[str, Any], store: RunStore) -> Study:
    """The study that a command line names.

    Raises:
      ConfigError: unknown scale, key or value.
    """
    if not experiment.scales:
        raise ConfigError(f"{experiment.id} trains nothing: `lab reproduce {experiment.id}` reads published data")
    if scale not in experiment.scales:
        raise ConfigError(f"{experiment.id} has no scale {scale!r}{nearest(scale, experiment.scales)}")
    sweep = experiment.scales[scale]()
    base = override(sweep.base, overrides)
    study = Study(experiment, scale, dataclasses.replace(sweep, base=base), overrides, store)
    unread = SimpleNamespace(vocab_size=base.model.vocab_size or 1, digest="")
    study.runs(unread)  # every point can be meant, or nothing begins
    return study


def open_corpus(data: ConfigDict, store: RunStore, display: Display) -> Any:
    """The corpus of a sweep, its token cache built where there is none."""
    from lab import data as corpora

    return corpora.prepare(data, store.cache, display.say)


def train_study(study: Study, corpus: Any, display: Display, retry_failed: bool = False) -> list[Run]:
    """Trains all runs, and those that the sweep adds to itself; returns the runs."""
    runs = study.runs(corpus)
    train_missing(study.store, runs, corpus, display, retry_failed)
    for _ in range(study.sweep.extensions if study.experiment.extend else 0):
        try:
            further = study.experiment.extend(results(study, runs))
        except ResultsError as error:
            display.warn(f"the sweep does not extend itself: {error}")
            break
        known = {run.id for run in runs}
        added = [run for run in study.runs(corpus, further) if run.id not in known]
        if not added:
            break
        display.say(f"the sweep extends itself: {len(added)} runs more")
        runs += added
        display.add(sum(whole_tokens(run.cfg) for run in added))
        train_missing(study.store, runs, corpus, display)
    write_table(study.directory / "table.parquet", table(study.store, runs))
    return runs


def results(study: Study, runs: Sequence[Run]) -> Results:
    """What an analysis reads.

    Raises:
      ResultsError: where no run has ended.
    """
    rows = table(study.store, runs)
    if not rows["status"].isin(["finished", "diverged"]).any():
        errors = rows["error"].dropna().unique() if "error" in rows else []
        first = f"; the first error: {errors[0]}" if len(errors) else ""
        raise ResultsError(f"{study.experiment.id}: no run has finished{first}")
    evaluations = lambda run: study.store.curves(run).read("evaluations")  # noqa: E731
    return Results(rows, evaluations, study.sweep.settings, partial(read_statistics, study.store))


def read_statistics(store: RunStore, run: str) -> Any:
    """What `Results.statistics` says."""
    from lab.train import statistics

    curves = store.curves(run)
    if "statistics" not in curves.fields:
        raise ResultsError(f"run {run} has no statistics of tensors: set evaluation.statistics=true and train it")
    return statistics.frame(curves.read("statistics"))


def report(study: Study, analysis: Analysis, runs: Sequence[Run], corpus: Any | None) -> dict[str, Any]:
    """Writes the figure, the tables and `report.json`; returns the report."""
    directory = study.directory
    directory.mkdir(parents=True, exist_ok=True)
    figure = analysis.draw(directory / "figure")
    for name, frame in analysis.tables.items():
        write_beside(directory / f"{name}.csv", frame.to_csv(index=False).encode())
    rows = table(study.store, runs) if runs else None
    trained = {}
    if runs:
        trained = provenance(study.store, runs)
        trained["cost"] = {"tokens": sum(whole_tokens(run.cfg) for run in runs), "seconds": trained.pop("seconds")}
    document = {
        "id": study.experiment.id,
        "scale": study.scale,
        "paper": study.experiment.paper,
        "runs": len(runs),
        "status": rows["status"].value_counts().to_dict() if rows is not None else {},
        "verdicts": [finding.as_json() for finding in analysis.findings],
        "notes": list(dict.fromkeys([*analysis.notes, *(note for f in analysis.findings for note in f.notes)])),
        "tables": {name: f"{name}.csv" for name in analysis.tables},
        "figure": figure.name,
        "table": "table.parquet" if runs else next((f"{name}.csv" for name in analysis.tables), None),
        "corpus": corpus and corpus.description,
        "overrides": dict(study.overrides),
        **trained,
    }
    write_json(directory / "report.json", document)
    return document


def read_report(directories: Sequence[Path]) -> tuple[dict[str, Any], Path]:
    """The first report found, and where.

    Raises:
      ResultsError: where there is none.
    """
    for directory in directories:
        if (directory / "report.json").exists():
            return read_json(directory / "report.json"), directory
    raise ResultsError(f"no report in {' or '.join(str(d) for d in directories)}: run `lab reproduce` first")
