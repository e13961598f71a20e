"""What `lab` prints of its documents: plans, reports. Each document is the one that `--json` prints."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lab.report.text import duration, interval, number, paragraph, quantity, table

MOST_ROWS = 16  # of a table that is printed; a longer one is named with its file
VERDICT = 14  # columns of a verdict and the space after it


def plan_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """What `lab plan` says, of the document of `lab.sweep.forecast.forecast`."""
    yield f"{document['id']} at {document['scale']}: {document['note']}"
    yield f"{document['runs']} runs ({document['finished']} finished) in {document['packs']} packs\n"
    packs = document["pack_list"]
    columns = {
        "pack": [str(index + 1) for index in range(len(packs))],
        "runs": [pack["runs"] for pack in packs],
        "width": [pack["width"] for pack in packs],
        "depth": [pack["depth"] for pack in packs],
        "N non-embedding": [quantity(pack["parameters"]["non_embedding"]) for pack in packs],
        "micro-batch tokens": [pack["microbatch_tokens"] for pack in packs],
        "batches tokens": [span(pack["batch_tokens"]) for pack in packs],
        "learning rates": [span(pack["learning_rates"]) for pack in packs],
        "tokens in all": [quantity(pack["tokens"]) for pack in packs],
    }
    yield table(columns)
    yield (
        f"\ntokens: {quantity(document['tokens'])}\n"
        f"FLOPs: {quantity(document['flops'])} training (forward and backward, attention counted), "
        f"{quantity(document['evaluation_flops'])} evaluating\n"
        f"memory: {quantity(document['state_bytes'])}B of state at rest in the largest pack; activations come on top"
    )
    if document["epochs"]:
        yield f"data: the longest run passes over the corpus {document['epochs']:.2f} times"
    yield paragraph(f"{duration(document['seconds'])}; {document['seconds_from']}", 6, "time:")
    for line in document["notes"]:
        yield paragraph(line, 6, "note:")


def span(values: list[float]) -> str:
    """`512`, or `512 to 16384 (6)`."""
    ends = f"{number(values[0])} to {number(values[-1])} ({len(values)})"
    return ends if len(values) > 1 else number(values[0])


def report_lines(document: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """What `lab reproduce` and `lab show` say of a report in `directory`: tables, verdicts, notes, files, cost."""
    yield f"{document['id']} at {document['scale']}"
    yield paragraph(document["paper"], 0) + "\n"
    for name, file in document["tables"].items():
        columns = read_csv(directory / file)
        rows = len(next(iter(columns.values()), []))
        if rows <= MOST_ROWS:
            yield f"{name.replace('_', ' ')}\n{table(columns)}\n"
        else:
            yield f"{name.replace('_', ' ')}: {rows} rows in {directory / file}\n"
    for verdict in document["verdicts"]:
        yield paragraph(verdict["claim"], VERDICT, verdict["verdict"].upper())
        ours = f"ours {number(verdict['ours'])} {interval(verdict['interval'])}"
        yield paragraph(f"{ours}, published {number(verdict['published'])}. {verdict['reason']}", VERDICT) + "\n"
    for line in document["notes"]:
        yield paragraph(line, 8, "note:")
    yield f"figure: {document['figure']}\ntable:  {document['table']}"
    if document.get("cost"):
        cost, on, code = document["cost"], document["hardware"], document["code"]
        yield (
            f"cost:   {duration(cost['seconds'])} of training, {quantity(cost['tokens'])} tokens, on {on['platform']} "
            f"({on['cores']} cores), jax {code['jax']}"
        )


def read_csv(path: Path) -> dict[str, list[Any]]:
    """Columns of a report's table; cells that are numbers as floats, empty cells as NaN in columns of numbers."""
    with open(path, newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    return {name: typed([row[i] for row in rows]) for i, name in enumerate(names)}


def typed(cells: list[str]) -> list[Any]:
    """Floats where every cell that is not empty is a number."""
    try:
        return [float(cell or "nan") for cell in cells]
    except ValueError:
        return cells
