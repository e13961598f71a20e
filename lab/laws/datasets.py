"""Measurements that others published, by name.

None of them lies in this repository. `load(name)` looks for `name.csv` or `name.csv.gz` in the directory it is given
(`--data-root`), else in `$WINDTUNNEL_DATA`, else in `shared/data` beside the checkout, and checks the digest of what it
found. A file that is missing says where its numbers were published.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import os
from pathlib import Path
from typing import Any

from lab.laws.dataset_records import DATASETS, DataSet
from lab.laws.errors import DataSetError

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"


def dataset(name: str) -> DataSet:
    """The record of a data set.

    Raises:
      DataSetError: unknown, with the nearest known one.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 1)
        meant = f", did you mean {near[0]!r}?" if near else ""
        raise DataSetError(f"unknown data set {name!r}{meant}; `lab laws --data` lists them")
    return DATASETS[name]


def load(name: str, root: str | Path | None = None) -> Any:
    """The data set as a pandas frame, columns and order of rows as in the file.

    Raises:
      DataSetError: unknown, missing, or another file than the one that is described.
    """
    import pandas

    known = dataset(name)
    path = find(known, root)
    packed = path.read_bytes()
    try:
        content = gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (OSError, EOFError) as error:
        raise DataSetError(f"{path}: damaged ({error}), expected a gzipped CSV") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != known.sha256:
        raise DataSetError(
            f"{path}: found sha256 {digest[:12]}..., expected {known.sha256[:12]}... of the unpacked CSV: another "
            f"version of {name}; give it as a file instead of by name, or get {origin(known)}"
        )
    return pandas.read_csv(io.BytesIO(content))


def find(known: DataSet, root: str | Path | None = None) -> Path:
    """The file of a data set.

    Raises:
      DataSetError: it is in none of the places.
    """
    places = [root] if root else [os.environ.get("WINDTUNNEL_DATA"), BESIDE]
    directories = [Path(place).expanduser() for place in places if place]
    for directory in directories:
        for suffix in (".csv", ".csv.gz"):
            if (directory / (known.name + suffix)).is_file():
                return directory / (known.name + suffix)
    looked = ", ".join(map(str, directories))
    raise DataSetError(
        f"data set {known.name}: found no {known.name}.csv or .csv.gz in {looked}; get {origin(known)}, and say where "
        "it lies with --data-root DIR or $WINDTUNNEL_DATA"
    )


def origin(known: DataSet) -> str:
    """Where the numbers were published, in words."""
    form = f" ({known.note})" if known.note.startswith("converted") else ""
    return f"{known.path} of github.com/{known.source} at commit {known.commit}{form}"
