"""A table of runs as a law sees it: where it came from, which rows were kept, and what its columns are taken for.

source = read("runs.csv", [law("hoffmann")], {"N": "params", "D": "tokens"}, where="loss < 4")
found = fit(law("hoffmann"), source.rows(law("hoffmann")))
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.laws import datasets, histories, tables
from lab.laws.datasets import DataSet
from lab.laws.errors import TableError
from lab.laws.law import Law
from lab.laws.objective import Objective
from lab.laws.solve import Rows


@dataclasses.dataclass(frozen=True)
class Source:
    """See the module's text.

    Attributes:
      name: of the file or the data set, as it was given.
      known: the published data set, where it is one.
      sha256: of the file.
      raw: the rows that were kept, columns as in the file.
      frame: the same with the law's columns beside, in the file's units.
      mapping, units: how the law's columns follow.
      histories: columns that follow from a run's learning rates, [n] or [n, K], where a law reads some.
    """

    name: str
    known: DataSet | None
    sha256: str
    rows_in_file: int
    raw: Any
    frame: Any
    mapping: Mapping[str, str]
    units: Mapping[str, str]
    where: str | None
    counting: str
    weights: str | None = None
    censored: str | None = None
    histories: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def rows(self, law: Law, objective: Objective | None = None, fixed: Collection[str] = ()) -> Rows:
        """Raises TableError for what a law cannot read. `fixed`: constants that will not be fitted."""
        mapping = {name: source for name, source in self.mapping.items() if name in _names([law])}
        given = {name: values for name, values in self.histories.items() if name in _names([law])}
        return tables.rows(law, self.raw, mapping, objective, self.units, self.weights, self.censored, given, fixed)

    def labels(self, column: str) -> np.ndarray:
        """The group of each row, [n]."""
        tables.present(self.frame, column, "--by")
        return self.frame[column].astype(str).to_numpy()

    def recounted(self, ways: Mapping[str, str]) -> dict[str, dict[str, np.ndarray]]:
        """Another count of a column for each `N = expression`, as `sensitivity` takes it."""
        found = {}
        for name, how in ways.items():
            values = tables.numbers(tables.mapped(self.raw, {name: how}), name)
            if not (np.isfinite(values) & (values > 0)).all():
                raise TableError(f"--recount {name}={how}: found {values.min():g}, expected values above 0")
            found[f"{name} = {how}"] = {name: values * tables.scale_of(self.units.get(name), name)}
        return found

    def notes(self, law: Law, rows: Rows) -> list[str]:
        """What is not wrong, but must be known."""
        said = tables.doubts(law, rows)
        if any(column.name in self.histories for column in law.columns):
            said.append("learning rates between logged rows are interpolated, and rise from 0 before the first one")
        if not self.counting and any(column.unit in ("parameters", "tokens") for column in law.columns):
            said.append("the convention by which N and D are counted is not stated; --counting TEXT records it")
        return said

    def described(self, law: Law) -> dict[str, Any]:
        """What was read, for a document."""
        known, names = self.known, _names([law])
        return {
            "file": self.name,
            "sha256": self.sha256,
            "rows_in_file": self.rows_in_file,
            "rows_kept": len(self.raw),
            "where": self.where,
            "map": {name: source for name, source in self.mapping.items() if name in names},
            "units": {name: unit for name, unit in self.units.items() if name in names},
            "weights": self.weights,
            "censored": self.censored,
            "counting": self.counting,
            "paper": known.paper if known else None,
            "origin": datasets.origin(known) if known else None,
            "licence": known.licence if known else None,
        }


def read(
    name: str,
    laws: Sequence[Law],
    mapping: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    where: str | None = None,
    counting: str | None = None,
    weights: str | None = None,
    censored: str | None = None,
    root: str | Path | None = None,
    run: str | None = None,
) -> Source:
    """A file by its path, or a published data set by its name, which brings a mapping and a convention of its own.

    Raises:
      TableError, DataSetError: no such file or data set, or what `tables` refuses.
    """
    path, known, units = Path(name).expanduser(), None, dict(units or {})
    if not path.exists() and name not in datasets.DATASETS:
        near = tables.meant(name.split(".")[0], datasets.DATASETS)
        raise TableError(f"found no file {name} and no data set of that name{near}; `lab laws --data` lists data sets")
    if path.exists():
        frame, sha256 = tables.read_table(path), hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        known = datasets.dataset(name)
        frame, sha256 = datasets.load(name, root), known.sha256
    names = _names(laws)
    for wrong in units.keys() - names:
        raise TableError(f"--unit {wrong}={units[wrong]}: expected one of {', '.join(sorted(names))}")
    mapping = mapping or {}
    for wrong in mapping.keys() - names:
        readers = ", ".join(law.name for law in laws)
        raise TableError(f"--map {wrong}={mapping[wrong]}: {readers} read {', '.join(sorted(names))}, not {wrong}")
    mapping = {**(known.reads if known else {}), **mapping}
    whole = tables.mapped(frame, mapping)
    kept = tables.filtered(whole, where)
    return Source(
        name=name,
        known=known,
        sha256=sha256,
        rows_in_file=len(frame),
        raw=frame.loc[kept.index],
        frame=kept,
        mapping=mapping,
        units=units,
        where=where,
        counting=counting or (known.counting if known else ""),
        weights=weights,
        censored=censored,
        histories={column: values[kept.index] for column, values in histories_of(whole, laws, run).items()},
    )


def histories_of(frame: Any, laws: Sequence[Law], run: str | None) -> dict[str, np.ndarray]:
    """Columns of learning-rate histories, where a law needs them, of all rows: what a filter leaves out did happen."""
    reading = [law.name for law in laws if histories.needed(law, frame)]
    if not reading:
        return {}
    for name in histories.READS:
        if name not in frame:
            raise TableError(
                f"law {reading[0]} reads step and lr of each row of a loss curve; found "
                f"{tables.listed(frame.columns)}; say which with --map {name}=COLUMN"
            )
    run = histories.run_column(frame, run)
    if run is not None:
        tables.present(frame, run, "--run")
    labels = np.zeros(len(frame)) if run is None else frame[run].astype(str).to_numpy()
    return histories.logged(tables.numbers(frame, "step"), tables.numbers(frame, "lr"), labels)


def _names(laws: Sequence[Law]) -> set[str]:
    """What `--map` may name."""
    names = {column.name for law in laws for column in (*law.columns, law.target)}
    return names | set(histories.READS) if names & set(histories.GIVES) else names
