"""What `lab fit`, `lab laws` and `lab design` print of their documents, as text or as Markdown.

A document becomes blocks: a heading, a paragraph or a table (columns by name; `x_low` and `x_high` belong to `x`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.report.text import bounded, interval, number, paragraph, table

Block = tuple[str, Any]
HEADING, TEXT, WARNING, TABLE = "heading", "text", "warning", "table"
LEGEND = (
    "Errors are of residuals as they were fitted (of ln loss, unless the objective is linear); behind: mean size of "
    "error less the best's, row by row; covered: share of rows inside their prediction interval. The nearest run and "
    "the mean of the rest are predictions that need no law."
)


def as_text(blocks: Iterable[Block]) -> Iterator[str]:
    for kind, content in blocks:
        if kind == HEADING:
            yield f"\n{content}"
        elif kind == TABLE:
            yield table(content)
        else:
            yield paragraph(content, 9, "WARNING: ") if kind == WARNING else paragraph(content, 0)


def as_markdown(blocks: Iterable[Block]) -> Iterator[str]:
    for kind, content in blocks:
        if kind == HEADING:
            yield f"\n## {content}\n"
        elif kind == TABLE:
            yield "\n" + markdown_table(content) + "\n"
        else:
            yield f"**Warning:** {content}\n" if kind == WARNING else f"{content}\n"


def markdown_table(columns: Mapping[str, Sequence[Any]]) -> str:
    """Pipes; `x_low` and `x_high` are shown with `x`."""
    shown = {}
    for name, values in columns.items():
        if name.endswith(("_low", "_high")):
            continue
        cells = [value if isinstance(value, str) else number(value) for value in values]
        stem = bounded(name, columns)
        if stem:
            pairs = zip(columns[f"{stem}_low"], columns[f"{stem}_high"])
            cells = [c if any(map(math.isnan, pair)) else f"{c} {interval(pair)}" for c, pair in zip(cells, pairs)]
        shown[name.replace("_", " ")] = [cell.replace("|", "\\|") for cell in cells]
    lines = [list(shown), ["---"] * len(shown), *map(list, zip(*shown.values()))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fit_blocks(document: Mapping[str, Any], alone: bool = True) -> Iterator[Block]:
    """Of one fit: what must be known first, then constants, derived quantities, certificate, sensitivity.

    `alone`: whether its held-out error is shown, which of several laws is shown before them.
    """
    yield HEADING, f"{document['law']}: {document['formula']}"
    for warning in [*document["certificate"]["warnings"], *document["notes"]]:
        yield WARNING, warning
    yield TEXT, f"{data_words(document)}. {document['objective']['in_words']}: {document['objective']['value']:.8g}"
    level = f"{document['intervals']['level']:.0%} interval ({document['intervals']['method']})"
    yield TABLE, quantities("constant", document["parameters"])
    if document["derived"]:
        yield TABLE, quantities("derived", document["derived"])
    yield TEXT, f"In brackets: {level}."
    if document["fixed"]:
        yield TEXT, f"Held fixed: {', '.join(document['fixed'])}."
    for name, entry in document["derived"].items():
        if "reason" in entry:
            yield TEXT, f"{name} has no interval: {entry['reason']}."
    if document["published"]:
        yield HEADING, "Published beside ours"
        yield TABLE, published_table(document)
        for line in published_sources(document):
            yield TEXT, line
    yield HEADING, "Certificate"
    yield TEXT, certificate_words(document["certificate"])
    if document.get("sensitivity"):
        yield HEADING, "Sensitivity: the same fit under other choices"
        yield TABLE, sensitivity_table(document)
        for line in document["moves_most"].values():
            yield TEXT, line
    if document["held_out"] and alone:
        yield HEADING, f"Held-out error: {document['held_out']['rule']}"
        yield TABLE, listed_table(document["held_out"]["errors"])
    for what in ("record", "figure"):
        if document.get(what):
            yield TEXT, f"{what + ':':8}{document[what]}"


def comparison_blocks(document: Mapping[str, Any]) -> Iterator[Block]:
    """Of several fits: held-out errors first, then how each law fits, then each fit."""
    comparison = document["comparison"]
    if comparison["held_out"]:
        yield HEADING, f"Held-out error: {comparison['hold_out']}"
        yield TABLE, listed_table(comparison["held_out"])
        yield TEXT, ranking(comparison["held_out"])
        yield TEXT, LEGEND
    yield HEADING, "On the rows that were fitted"
    yield TABLE, listed_table(comparison["fitted"])
    yield TEXT, comparison["information"]
    for fit in document["fits"]:
        yield from fit_blocks(fit, alone=False)


def ranking(held_out: Sequence[Mapping[str, Any]]) -> str:
    """Who predicts the held-out rows best, and which cannot be told from it: behind by under two standard errors."""
    best, *rest = held_out
    near = [row["law"] for row in rest if not _number(row["behind"]) >= 2 * _number(row["behind_error"])]
    told = f"not told from it by these rows: {', '.join(near)}" if near else "every other is clearly behind"
    return f"{best['law']} predicts these rows best (mean error {number(best['mean_error'])}); {told}."


def quantities(head: str, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Constants or derived quantities with their intervals, as a table's columns."""
    ends = [entry["interval"] for entry in entries.values()]
    return {
        head: list(entries),
        "value": [_number(entry["value"]) for entry in entries.values()],
        "value_low": [math.nan if e is None else -math.inf if e[0] is None else e[0] for e in ends],
        "value_high": [math.nan if e is None else math.inf if e[1] is None else e[1] for e in ends],
        "standard error": [_number(entry["standard_error"]) for entry in entries.values()],
        "unit": [entry["unit"] for entry in entries.values()],
        "meaning": [entry["meaning"] for entry in entries.values()],
    }


def published_table(document: Mapping[str, Any]) -> dict[str, list[str]]:
    """A row for each constant, a column for each source; after a value how far ours lies off, in standard errors."""
    names = dict.fromkeys(v["quantity"] for source in document["published"] for v in source["values"])
    found = {**document["parameters"], **document["derived"]}
    columns = {"constant": [*names, "objective"], "ours": [number(found[name]["value"]) for name in names]}
    columns["ours"].append(f"{document['objective']['value']:.5g}")
    for i, source in enumerate(document["published"], 1):
        values = {value["quantity"]: value for value in source["values"]}
        cells = []
        for name in names:
            said = "" if name not in values else number(values[name]["published"])
            off = values.get(name, {}).get("difference_in_errors")
            cells.append(said if off is None else f"{said} ({off:+.1f})")
        objective = source.get("objective")
        columns[f"[{i}]"] = [*cells, "" if objective is None else f"{objective:.5g}"]
    return columns


def published_sources(document: Mapping[str, Any]) -> Iterator[str]:
    """The sources that the columns are numbered by."""
    yield (
        "In brackets: ours less the published value, in our standard errors. The objective is that of the published "
        "constants on these rows, where they are all printed; a source on other data need not agree."
    )
    for i, source in enumerate(document["published"], 1):
        note = "; ".join(filter(None, ["recalled" if source["recalled"] else "", source["note"]]))
        yield f"[{i}] {source['source']}" + (f" ({note})" if note else "")


def sensitivity_table(document: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A row for each choice; what was left out in turn (sizes, groups) is gathered into the range of each constant."""
    names, gathered, alone = list(document["parameters"]), {}, []
    for row in document["sensitivity"]:
        if row["choice"].endswith(" out"):
            gathered.setdefault((row["choice"], row["setting"].split(" without ")[0]), []).append(row)
        else:
            alone.append(row)
    rows = [{key: row[key] for key in ("choice", "setting", "rows", *names)} for row in alone]
    for (choice, what), several in gathered.items():
        row = {"choice": choice, "setting": f"each of {len(several)} of {what} in turn", "rows": None}
        for name in names:
            values = [each[name] for each in several if each[name] is not None]
            middle = sorted(values)[len(values) // 2] if values else None
            row |= {name: middle, f"{name}_low": min(values, default=None), f"{name}_high": max(values, default=None)}
        rows.append(row)
    return listed_table(rows)


def listed_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows by name -> columns by name; what a row lacks is NaN, or empty among words."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        words = any(isinstance(value, str) for value in values)
        columns[name] = ["" if v is None else v if isinstance(v, str) else number(v) for v in values] if words else [
            _number(v) for v in values
        ]  # fmt: skip
    return columns


def data_words(document: Mapping[str, Any]) -> str:
    """`240 of 245 rows of chinchilla_svg where loss < 3.4451 (N = params); N as in the figure`."""
    data = document["data"]
    said = f"{document['rows']} of {data['rows_in_file']} rows of {Path(data['file']).name}"
    said += f" where {data['where']}" if data["where"] else ""
    reads = [f"{name} = {source}" for name, source in data["map"].items()]
    reads += [f"{name} in {unit}" for name, unit in data["units"].items()]
    return said + (f" ({', '.join(reads)})" if reads else "") + f"; counting: {data['counting'] or 'not stated'}"


def constants_words(document: Mapping[str, Any]) -> str:
    """`E 1.817 [1.77, 1.87], alpha 0.3473 [0.32, 0.37]`: constants, then the first derived quantity."""
    entries = [*document["parameters"].items(), *list(document["derived"].items())[:1]]
    said = (f"{name} {number(entry['value'])} {interval(entry['interval'])}" for name, entry in entries)
    return ", ".join(said)


def certificate_words(certificate: Mapping[str, Any]) -> str:
    """How the optimum was reached, in a sentence."""
    converged = "converged" if certificate["converged"] else "NOT CONVERGED"
    identified = "identified" if certificate["identified"] else "NOT IDENTIFIED"
    second = certificate["second_basin"]
    basin = "no other basin was met" if second is None else f"the next basin lies {second:.2g} of the objective above"
    return (
        f"{converged} (gradient {certificate['gradient']:.1e}), {identified} (condition number "
        f"{_number(certificate['condition']):.1e}); {certificate['reached']:.0%} of {certificate['starts']} searches "
        f"reached the optimum; {basin}; at a bound: {', '.join(certificate['at_bound']) or 'none'}."
    )


def laws_blocks(document: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """All laws by family, a line each."""
    families = dict.fromkeys(law["family"] for law in document)
    for family in families:
        yield HEADING, family or "others"
        mine = [law for law in document if law["family"] == family]
        reads = [", ".join(law["reads"]) for law in mine]
        yield TABLE, {"law": [law["law"] for law in mine], "reads": reads, "formula": [law["formula"] for law in mine]}


def law_blocks(law: Mapping[str, Any]) -> Iterator[Block]:
    """One law."""
    yield HEADING, f"{law['law']}: {law['formula']}"
    yield TEXT, f"{law['source']}. The paper minimises {law['objective']}."
    columns = {**law["reads"], **law["gives"]}
    yield TABLE, {"column": list(columns), **_facts(columns, ("unit", "meaning"))}
    parameters = {**law["parameters"], **law["derived"]}
    yield TABLE, {"constant": list(parameters), **_facts(parameters, ("unit", "meaning"))}
    for published in law["published"]:
        values = ", ".join(f"{name} {value:.8g}" for name, value in published["values"].items())
        note = "; ".join(filter(None, ["recalled" if published["recalled"] else "", published["note"]]))
        yield TEXT, f"{published['source']}: {values}" + (f" ({note})" if note else "")


def design_blocks(document: Mapping[str, Any]) -> Iterator[Block]:
    """The runs to make next."""
    for warning in document["warnings"]:
        yield WARNING, warning
    aim = document["for"] or "all constants together"
    costs = f"{document['candidates']} candidates, each costing {document['cost']}"
    within = f"within {document['budget']:.4g} FLOPs, of {costs}"
    today = f"standard error now {number(document['standard_error'])}, and after each:"
    yield TEXT, f"Runs for {aim} of {document['law']} {within}; {today}"
    yield TABLE, listed_table(document["runs"])


def datasets_blocks(document: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """Published data sets, a line each."""
    for known in document:
        yield TEXT, f"{known['name']} ({known['rows']} rows): {known['paper']}; licence {known['licence']}"
        yield TEXT, f"    {', '.join(known['columns'])}"


def _facts(entries: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[str]]:
    return {name: [entry[name] for entry in entries.values()] for name in names}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
