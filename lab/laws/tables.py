"""From a file of runs to the rows that a law reads, with one clear line for whatever is wrong with them.

A law reads columns by its own names (N, D, loss). A file's column of the same name is taken as it is; `mapping` names
another column, or an expression of columns (`D = flops / (6 * params)`); `units` says what a value counts (`N =
millions`, `loss = bits`, `D = 2048` for sequences). Values that cannot be in the law's unit are refused rather than
fitted; a unit that is given is taken at its word.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.laws.errors import TableError
from lab.laws.law import Column, Law
from lab.laws.objective import Objective
from lab.laws.solve import Rows

UNITS = {
    "ones": 1.0,
    "thousands": 1e3,
    "millions": 1e6,
    "billions": 1e9,
    "trillions": 1e12,
    "nats": 1.0,
    "bits": float(np.log(2.0)),
    "percent": 0.01,
}
USUAL = {  # what files call a law's column
    "N": ("params", "parameters", "n_params", "num_params", "model_size", "size", "non_embedding_params"),
    "D": ("tokens", "train_tokens", "n_tokens", "num_tokens", "training_tokens", "data"),
    "C": ("flops", "compute", "budget", "train_flops"),
    "S": ("steps", "step", "updates", "iterations"),
    "B": ("batch", "batch_size", "bs", "global_batch_size"),
    "U": ("unique_tokens", "unique"),
    "lr": ("learning_rate", "peak_lr", "eta"),
    "loss": ("final_loss", "val_loss", "eval_loss", "validation_loss", "test_loss", "train_loss"),
}
LEAST = {
    "parameters": [(1e5, "millions")],
    "tokens": [(1e4, "billions"), (1e6, "millions")],
    "FLOPs": [(1e9, "1e18")],
}
"""The largest value of a column in this unit lies above these in any sweep; below one, it probably counts these.

A million tokens are a few hundred sequences, and no published set here stays under them, while 20,000 million tokens
are a usual run.
"""
GAP = 1e3  # ratio of neighbouring values in one column that no sweep leaves: two units in one column
HIGHEST_LOSS = 20.0  # nats per token; a uniform guess over 2^28 tokens is 19.4
READERS = ".csv, .csv.gz, .tsv, .parquet or .jsonl"


def read_table(path: str | Path) -> Any:
    """A file of runs as a pandas frame.

    Raises:
      TableError: missing, of another kind, empty or damaged.
    """
    import pandas

    path = Path(path).expanduser()
    kind = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()
    readers = {
        ".csv": lambda: pandas.read_csv(path),
        ".tsv": lambda: pandas.read_csv(path, sep="\t"),
        ".parquet": lambda: pandas.read_parquet(path),
        ".jsonl": lambda: pandas.read_json(path, lines=True, precise_float=True),
    }
    read = readers.get(kind.removesuffix(".gz"))
    if not path.is_file():
        raise TableError(f"found no file {path}, expected a table of runs ({READERS})")
    if read is None:
        raise TableError(f"{path}: found kind {kind or 'unknown'!r}, expected {READERS}")
    try:
        frame = read()
    except Exception as error:  # each reader has errors of its own for an empty, cut or binary file
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TableError(f"{path}: cannot be read ({said}), expected {READERS} with a header") from None
    if not len(frame):
        raise TableError(f"{path}: found a header and no rows, expected a row per run")
    frame.columns = [str(name).strip() for name in frame.columns]
    return frame.reset_index(drop=True)


def mapped(frame: Any, mapping: Mapping[str, str]) -> Any:
    """The frame with the columns that `mapping` adds, each another column or an expression of columns.

    Raises:
      TableError: an expression that cannot be evaluated.
    """
    added = {}
    for name, meaning in mapping.items():
        added[name] = frame[meaning] if meaning in frame else evaluated(frame, meaning, f"--map {name}={meaning}")
    return frame.assign(**added)


def filtered(frame: Any, expression: str | None) -> Any:
    """The rows for which an expression of columns holds (pandas' `query`).

    Raises:
      TableError: an expression that cannot be evaluated, is no condition, or holds nowhere.
    """
    if not expression:
        return frame
    holds = evaluated(frame, expression, f"--where {expression!r}")
    if np.ndim(holds) != 1 or holds.dtype not in ("bool", "boolean"):
        raise TableError(f"--where {expression!r}: found values, expected a condition such as 'loss < 4'")
    if not holds.any():
        raise TableError(f"--where {expression!r}: found no row of {len(frame)} for which it holds")
    return frame[holds]


def evaluated(frame: Any, expression: str, what: str) -> Any:
    """An expression of columns or a constant, as a series of the frame's rows; `what` names it in the error.

    Raises:
      TableError: a column that is not there, no expression, or another number of values than rows.
    """
    import pandas

    try:
        return pandas.Series(frame.eval(expression, engine="python"), frame.index)
    except Exception as error:  # pandas passes on errors of every kind from the expression
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        missing = getattr(error, "args", None) and said.split("'")[1:2]
        hint = meant(missing[0], frame.columns) if missing else ""
        raise TableError(f"{what}: {said}{hint}; found columns {listed(frame.columns)}") from None


def rows(
    law: Law,
    frame: Any,
    mapping: Mapping[str, str] | None = None,
    objective: Objective | None = None,
    units: Mapping[str, str] | None = None,
    weights_column: str | None = None,
    censored_column: str | None = None,
    given: Mapping[str, np.ndarray] | None = None,
    fixed: Collection[str] = (),
) -> Rows:
    """What the fitter takes, of a frame that was filtered before.

    Args:
      mapping: a column or an expression of the frame by the law's column name.
      objective: decides whether values need logarithms; the law's own where none is given.
      units: of `UNITS`, or a number, by the law's column name.
      weights_column: how often each row counts, zero or more.
      censored_column: true where the target is a lower bound.
      given: columns that are no part of the frame, [n] or [n, K].
      fixed: names of constants that will not be fitted, so that fewer rows are enough.

    Raises:
      TableError: see the module's text.
    """
    objective, units = objective or law.objective, units or {}
    frame = mapped(frame, mapping or {})
    given = given or {}
    wanted = {column.name: column for column in (*law.columns, law.target) if column.name not in given}
    for name in wanted:
        require(law, wanted[name], frame, (mapping or {}).get(name))
    values = {name: numbers(frame, name) * scale_of(units.get(name), name) for name in wanted}
    for name, column in wanted.items():
        positive = column.positive if column is not law.target else objective.space == "log"
        check_values(frame, column, values[name], positive)
        if name not in units:
            check_unit(column, values[name], str((mapping or {}).get(name, name)))
    values |= given
    check_design(law, values, len(frame), [name for name in law.names if name not in fixed])
    target = values.pop(law.target.name)
    weights = np.ones(len(frame)) if weights_column is None else weights_of(frame, weights_column)
    censored = np.zeros(len(frame), bool) if censored_column is None else flags(frame, censored_column)
    return Rows(values, target, weights, censored)


def doubts(law: Law, data: Rows) -> list[str]:
    """What is not wrong with the rows, but must be known: rows that repeat others."""
    table = np.column_stack([*(data.columns[c.name].reshape(len(data), -1) for c in law.columns), data.target])
    repeats = len(table) - len(np.unique(table, axis=0))
    if repeats:
        return [f"{repeats} of {len(table)} rows repeat another row exactly; each counts as a measurement of its own"]
    return []


def require(law: Law, column: Column, frame: Any, source: str | None) -> None:
    """Raises TableError where the frame lacks a column of the law."""
    if column.name in frame:
        return
    found = list(map(str, frame.columns))
    lower = {name.lower(): name for name in found}
    near = [lower[name] for name in (column.name.lower(), *USUAL.get(column.name, ())) if name in lower]
    near = near or difflib.get_close_matches(column.name, found, 1)
    example = near[0] if near else "COLUMN"
    what = ", ".join(filter(None, (column.unit, column.meaning)))
    asked = f"did you mean --map {column.name}={example}?" if near else f"say which with --map {column.name}={example}"
    raise TableError(f"law {law.name} reads column {column.name} ({what}); found {listed(found)}; {asked}")


def numbers(frame: Any, name: str) -> np.ndarray:
    """A column as float64 [n].

    Raises:
      TableError: a value that is no number, with the line of the file.
    """
    import pandas

    given = frame[name]
    values = pandas.to_numeric(given, errors="coerce")
    bad = values.isna() & given.notna()
    if bad.any():
        first = given[bad].iloc[0]
        raise TableError(f"column {name}: found {first!r} {place(frame, bad)}, expected numbers")
    return values.to_numpy(float)


def check_values(frame: Any, column: Column, values: np.ndarray, positive: bool) -> None:
    """Raises TableError for NaN and infinity, and where logarithms are taken for zero and less."""
    name = column.name
    bad = ~np.isfinite(values)
    if bad.any():
        found, mend = "infinity", "mend the file"
        if np.isnan(values[bad]).any():
            found, mend = "NaN or nothing", f"leave such rows out with --where '{name} == {name}'"
        raise TableError(f"column {name}: found {found} {place(frame, bad)}, expected numbers; {mend}")
    bad = values <= 0
    if positive and bad.any():
        raise TableError(
            f"column {name}: found {values[bad][0]:g} {place(frame, bad)}, expected values above 0, as logarithms are "
            f"taken; leave such rows out with --where '{name} > 0'"
        )


def check_unit(column: Column, values: np.ndarray, source: str) -> None:
    """Raises TableError where the values cannot be in the law's unit, as far as that shows."""
    name = column.name
    low, high = values.min(), values.max()
    for least, guess in LEAST.get(column.unit, ()):
        if high < least:
            raise TableError(
                f"column {name}: found {low:g} to {high:g}, expected {column.unit}; if these are {guess}, say "
                f"--unit {name}={guess}, and --unit {name}=ones if they are what they seem"
            )
    if column.unit in LEAST and low > 0:
        ordered = np.unique(values)
        gap = np.argmax(ordered[1:] / ordered[:-1]) if len(ordered) > 1 else 0
        if len(ordered) > 1 and ordered[gap + 1] / ordered[gap] > GAP:
            raise TableError(
                f"column {name}: found values up to {ordered[gap]:g} and from {ordered[gap + 1]:g} on, as if in two "
                f"units; mend the file, or say --unit {name}=ones if they are what they seem"
            )
    if column.unit.startswith("nats"):
        bits = any(word in source.lower().replace("_", " ").split() for word in ("bits", "bpb", "bpc", "bpt", "bit"))
        if bits:
            raise TableError(f"column {name}: {source} looks like bits, expected {column.unit}; say --unit {name}=bits")
        if high > HIGHEST_LOSS:
            raise TableError(
                f"column {name}: found {low:g} to {high:g}, expected {column.unit}; of a perplexity take the "
                f"logarithm, --map '{name}=log({source})'; say --unit {name}=nats if they are what they seem"
            )


def check_design(law: Law, values: Mapping[str, np.ndarray], count: int, free: Sequence[str]) -> None:
    """Raises TableError for fewer rows than free constants, copies of one row, an axis of one value, two units."""
    if count < len(free):
        names = ", ".join(free)
        raise TableError(
            f"law {law.name}: found {count} rows, expected at least {len(free)}, one per constant ({names})"
        )
    axes = np.column_stack([values[column.name].reshape(count, -1) for column in law.columns])
    setting_of = np.unique(axes, axis=0, return_inverse=True)[1].ravel()
    target = values[law.target.name]
    if len(np.unique(np.column_stack([axes, target]), axis=0)) == 1:
        raise TableError(f"law {law.name}: found {count} copies of one row, expected rows that differ")
    for column in law.columns:
        only = values[column.name].flat[0]
        if (values[column.name] == only).all():
            raise TableError(
                f"column {column.name}: found one value ({only:g}) in all {count} rows; law {law.name} needs rows that "
                f"differ in {column.name}, or take a law without it (`lab laws`)"
            )
    if law.target.unit.startswith("nats"):
        order = np.lexsort((target, setting_of))
        setting, ordered = setting_of[order], target[order]
        same = np.diff(setting) == 0
        apart = same & (np.abs(ordered[1:] / ordered[:-1] * np.log(2.0) - 1) < 5e-3)
        if 2 * len(np.unique(setting[1:][apart])) > len(np.unique(setting[1:][same])):  # of the repeated settings, most
            low = ordered[:-1][apart][0]
            names = ", ".join(column.name for column in law.columns)
            raise TableError(
                f"column {law.target.name}: found {low:g} and {low / np.log(2):g} at one setting of {names}, and so at "
                "most that repeat: nats and bits in one column; mend the file"
            )


def scale_of(unit: str | None, name: str) -> float:
    """The factor of a unit.

    Raises:
      TableError: neither known nor a number above 0.
    """
    if unit is None:
        return 1.0
    if unit in UNITS:
        return UNITS[unit]
    try:
        factor = float(unit)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise TableError(f"--unit {name}={unit}: expected {', '.join(UNITS)} or a number above 0{meant(unit, UNITS)}")
    return factor


def weights_of(frame: Any, name: str) -> np.ndarray:
    """How often each row counts."""
    present(frame, name, "--weights")
    values = numbers(frame, name)
    if not (np.isfinite(values) & (values >= 0)).all() or not values.any():
        raise TableError(f"--weights {name}: found {values.min():g} to {values.max():g}, expected 0 or more, not all 0")
    return values


def flags(frame: Any, name: str) -> np.ndarray:
    """A column of true and false, or 1 and 0."""
    present(frame, name, "--censored")
    words = frame[name].astype(str).str.lower().str.strip()
    known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    bad = ~words.isin(known)
    if bad.any():
        raise TableError(f"--censored {name}: found {frame[name][bad].iloc[0]!r}, expected true and false, or 1 and 0")
    return words.map(known).to_numpy(bool)


def present(frame: Any, name: str, what: str) -> None:
    """Raises TableError where the frame has no such column."""
    if name not in frame:
        raise TableError(f"{what} {name}: found columns {listed(frame.columns)}{meant(name, frame.columns)}")


def place(frame: Any, bad: Any) -> str:
    """`in 3 rows (first: line 8 of the file)`; a frame's index is the row's number in the file."""
    where = np.flatnonzero(np.asarray(bad))
    first = frame.index[where[0]]
    line = f"line {first + 2} of the file" if isinstance(first, (int, np.integer)) else f"row {first}"
    return f"in {len(where)} row{'s' if len(where) > 1 else ''} (first: {line})"


def listed(names: Any) -> str:
    """The first names of many."""
    names = [str(name) for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def meant(word: str, known: Any) -> str:
    """`, did you mean 'loss'?`"""
    near = difflib.get_close_matches(word, [str(name) for name in known], 1)
    return f", did you mean {near[0]!r}?" if near else ""
