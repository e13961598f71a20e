"""The verbs that fit laws to files: `lab fit`, `lab laws`, `lab design`. They train nothing."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.errors import ConfigError
from lab.laws.errors import LawsError

FIT_EXAMPLES = """examples:
  lab fit hoffmann runs.csv --map N=params --map D=tokens --map loss=final_loss --counting "N without embeddings"
  lab fit hoffmann,hoffmann-shared,kaplan runs.csv --map N=params --map D=tokens --hold-out largest:D
  lab fit hoffmann chinchilla_svg --where 'loss < 3.4451' --bootstrap 4000
  lab fit mine runs.csv --law-file mine.py --map y=loss
"""
NOT_ASKED = ("name", "verb", "json", "markdown", "root", "out", "data_root")  # options that change no answer
DESIGN_EXAMPLES = """examples:
  lab design hoffmann runs.csv --map N=params --map D=tokens --budget 1e21 --for a
"""


def add_verbs(verb: Any) -> None:
    """Adds the verbs; `verb(name, function, text)` makes a parser with the options that all verbs share."""
    sub = verb("fit", fit, "fit laws to a table of runs: constants with intervals, certificate, sensitivity, figure")
    _add_table(sub, FIT_EXAMPLES, "a law of `lab laws`, or several: a comma between them")
    sub.add_argument("--bootstrap", type=int, default=0, metavar="R", help="intervals from R resamples, not profiles")
    sub.add_argument("--by", metavar="COLUMN", help="resample groups of rows of one value (runs, cells), not rows")
    sub.add_argument("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")
    sub.add_argument("--level", type=float, default=0.9, help="of the intervals (default: %(default)s)")
    sub.add_argument(
        "--hold-out", metavar="RULE", help="rows to predict from the others: a condition, or largest:COLUMN"
    )
    sub.add_argument("--sensitivity", action=argparse.BooleanOptionalAction, default=True, help="other choices")
    sub.add_argument(
        "--recount", action="append", default=[], metavar="N=COLUMN", help="another count of a column, for sensitivity"
    )
    sub.add_argument(
        "--fix", action="append", default=[], metavar="NAME=VALUE", help="hold a constant, in laws that have it"
    )
    sub.add_argument("--out", metavar="DIR", help="where record and figure go (default: fits/ under the root)")
    sub.add_argument("--markdown", action="store_true", help="Markdown on standard output")

    sub = verb("laws", laws, "laws by family with their formulas; one law with its columns, constants and source")
    sub.add_argument("law", nargs="?", metavar="NAME", help="one law")
    sub.add_argument("--law-file", action="append", default=[], metavar="FILE", help="Python that registers laws")
    sub.add_argument("--data", action="store_true", help="list the published data sets instead")

    sub = verb("design", design, "which runs to make next: what shrinks an interval most per FLOP")
    _add_table(sub, DESIGN_EXAMPLES, "a law of `lab laws`")
    sub.add_argument("--budget", type=float, required=True, metavar="FLOPS", help="for all new runs together")
    sub.add_argument("--for", dest="quantity", metavar="NAME", help="a constant or derived quantity; all, if left out")
    at = {"action": "append", "default": [], "metavar": "N=VALUE,D=VALUE"}
    sub.add_argument(
        "--at", help="instead of --for: a point where the law is to predict well; several are averaged", **at
    )
    sub.add_argument("--runs", type=int, default=8, help="at most (default: %(default)s)")
    sub.add_argument("--reach", type=float, default=4.0, help="candidates go up to this times the largest value")
    sub.add_argument("--cost", metavar="EXPR", help="FLOPs of a run as an expression of columns (default: 6 * N * D)")


def _add_table(sub: argparse.ArgumentParser, examples: str, law: str) -> None:
    """What every verb takes that reads a table."""
    sub.epilog = examples
    sub.add_argument("law", metavar="LAW", help=law)
    sub.add_argument("table", metavar="FILE", help="csv, csv.gz, parquet or jsonl; or a data set of `lab laws --data`")
    many = {"action": "append", "default": []}
    sub.add_argument("--map", metavar="N=COLUMN", help="a law's column, or an expression of them", **many)
    sub.add_argument("--unit", metavar="N=UNIT", help="millions, billions, bits, or a number", **many)
    sub.add_argument("--where", metavar="EXPR", help="rows to keep, for example 'loss < 4 and N > 1e8'")
    sub.add_argument("--objective", choices=("huber", "lad", "least-squares"), help="instead of the law's own")
    sub.add_argument("--delta", type=float, help="of huber, in the residual's unit")
    sub.add_argument("--space", choices=("log", "linear"), help="residuals of logarithms, or plain")
    sub.add_argument("--run", metavar="COLUMN", help="tells loss curves apart, for laws of learning-rate schedules")
    sub.add_argument("--weights", metavar="COLUMN", help="how often a row counts")
    sub.add_argument("--censored", metavar="COLUMN", help="true where the target is a lower bound")
    sub.add_argument("--counting", metavar="TEXT", help="the convention by which N and D were counted, for the record")
    sub.add_argument("--law-file", metavar="FILE", help="a Python file that registers laws", **many)
    sub.add_argument("--data-root", metavar="DIR", help="where published data sets lie ($WINDTUNNEL_DATA)")


def fit(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab fit LAW[,LAW] FILE`."""
    chosen = prepare(options, overrides)
    from lab.laws import answer as answering
    from lab.laws.describe import plain
    from lab.laws.holdout import chosen as held
    from lab.report.present_laws import comparison_blocks, fit_blocks

    source = source_of(options, chosen)
    by = source.labels(options.by) if options.by else None
    recounts = source.known.recounts if source.known else {}
    ask = answering.Ask(
        options.objective, options.delta, options.space, options.level, options.bootstrap, by, options.seed,
        options.sensitivity, source.recounted({**recounts, **pairs(options.recount, "--recount")}),
        fixed_of(options.fix, chosen),
    )  # fmt: skip
    rows = [source.rows(law, ask.objective(law), ask.fixed_of(law)) for law in chosen]
    rule = answering.rule_of(options.hold_out, chosen, source.frame)
    mask = held(source.frame, rule) if rule else None
    answers = [answering.answer(law, data, ask) for law, data in zip(chosen, rows)]
    for each in answers:
        law = each.fit.law
        each.document.update(data=source.described(law), notes=source.notes(law, each.fit.rows), held_out=None)
    judged = answering.held_out(answers, mask, rule) if rule else []
    directory = Path(options.out).expanduser() if options.out else default_out(options, source.sha256)
    for each in answers:
        write(each, directory, options)
    if len(answers) == 1:
        document, blocks = answers[0].document, fit_blocks(answers[0].document)
    else:
        comparison = {"hold_out": rule, "held_out": judged, **answering.on_fitted_rows(answers)}
        document = plain({"fits": [each.document for each in answers], "comparison": comparison})
        blocks = comparison_blocks(document)
    return show(options, document, blocks)


def laws(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab laws [NAME]`."""
    prepare(options, overrides, [])
    from lab.laws import law as lawbook
    from lab.laws.describe import describe, plain
    from lab.report.present_laws import datasets_blocks, law_blocks, laws_blocks

    if options.data:
        import dataclasses

        from lab.laws.datasets import DATASETS

        document = plain([dataclasses.asdict(known) for known in DATASETS.values()])
        return show(options, document, datasets_blocks(document))
    if options.law:
        document = describe(lawbook.law(options.law))
        return show(options, document, law_blocks(document))
    document = [describe(each) for each in lawbook.laws().values()]
    return show(options, document, laws_blocks(document))


def design(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab design LAW FILE --budget FLOPS`."""
    chosen = prepare(options, overrides)
    from lab.laws import answer as answering
    from lab.laws import design as designing
    from lab.laws.describe import plain
    from lab.laws.tables import evaluated, numbers
    from lab.report.present_laws import design_blocks

    if len(chosen) > 1:
        raise ConfigError(f"found {len(chosen)} laws, expected one: runs are chosen for a law's own constants")
    rows_of = source_of(options, chosen).rows
    ask = answering.Ask(options.objective, options.delta, options.space, sensitivity=False)
    found = answering.fit(chosen[0], rows_of(chosen[0], ask.objective(chosen[0])), ask.objective(chosen[0]))

    def cost(columns: Mapping[str, Any]) -> Any:
        import pandas

        frame = pandas.DataFrame(dict(columns))
        return numbers(frame.assign(cost=evaluated(frame, options.cost, f"--cost {options.cost!r}")), "cost")

    candidates = designing.around(found, options.reach)
    given = cost if options.cost else None
    at = points(options.at, found.law)
    plan = designing.plan(found, candidates, options.budget, options.quantity, at, given, options.runs)
    document = {
        "law": found.law.name,
        "for": options.quantity or (f"predictions at {' and '.join(options.at)}" if at else None),
        "budget": options.budget,
        "cost": options.cost or "6 * N * D",
        "candidates": len(next(iter(candidates.values()))),
        "standard_error": float(plan["standard_error"][0] / (1 - plan["shrinks"][0])),
        "warnings": list(found.certificate.warnings),
        "runs": plan.to_dict("records"),
    }
    return show(options, plain(document), design_blocks(plain(document)))


def source_of(options: argparse.Namespace, chosen: Sequence[Any]) -> Any:
    """The table that the options name, as the laws see it."""
    from lab.laws import source

    mapping, units = pairs(options.map, "--map"), pairs(options.unit, "--unit")
    return source.read(
        options.table, chosen, mapping, units, options.where, options.counting, options.weights, options.censored,
        options.data_root, options.run,
    )  # fmt: skip


def prepare(options: argparse.Namespace, overrides: Mapping[str, str], names: Sequence[str] | None = None) -> list[Any]:
    """The laws that are asked for, with those of `--law-file`; jax on the CPU, with its compilation cache."""
    if overrides:
        raise ConfigError(f"--{next(iter(overrides))}: this verb takes no config overrides")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_compilation_cache_dir", str(Path(options.root).expanduser() / "cache" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    from lab.laws import law as lawbook

    lawbook.laws()
    for file in options.law_file:
        load_law_file(Path(file).expanduser())
    if names is None:
        names = law_names(options.law)
        if not names:
            raise ConfigError(f"found {options.law!r}, expected the name of a law; see `lab laws`")
    if len(set(names)) < len(names):
        raise ConfigError(f"found {options.law!r}, expected each law once")
    return [lawbook.law(name) for name in names]


def law_names(words: str) -> list[str]:
    """`hoffmann, kaplan` -> ["hoffmann", "kaplan"]."""
    return [name.strip() for name in words.split(",") if name.strip()]


def load_law_file(path: Path) -> None:
    """Runs a user's Python file that registers laws, and each of those once, on shapes alone.

    Raises:
      ConfigError: no such file, or Python that fails.
    """
    import importlib.util

    from lab.laws import law as lawbook

    if not path.is_file():
        raise ConfigError(f"--law-file: found no file {path}, expected a Python file that calls lab.laws.law.register")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--law-file {path}: found another kind of file, expected Python (.py)")
    known = set(lawbook.laws())
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except LawsError:
        raise
    except Exception as error:  # the user's own code: any
        raise ConfigError(f"--law-file {path}: {type(error).__name__}: {error}; expected Python that runs") from error
    for name, law in lawbook.laws().items():
        if name not in known:
            try_out(law, path)


def try_out(law: Any, path: Path) -> None:
    """Raises ConfigError where a law cannot be evaluated, as when it reads a column or a constant that it lacks."""
    import jax

    from lab.laws.histories import GIVES

    constants = {name: jax.ShapeDtypeStruct((), float) for name in law.names}
    shapes = {column.name: (2, 2) if column.name in GIVES[2:] else (2,) for column in law.columns}
    columns = {name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}
    try:
        jax.eval_shape(law.predict, constants, columns)
        for quantity in law.derived:
            jax.eval_shape(quantity.value, constants)
    except Exception as error:  # the user's own code: any
        said = str(error).splitlines()[0] if str(error) else "no message"
        raise ConfigError(
            f"--law-file {path}: law {law.name}: {type(error).__name__}: {said}; expected jax.numpy of the constants "
            f"{', '.join(constants)} and the columns {', '.join(columns)}"
        ) from error


def pairs(words: Iterable[str], option: str) -> dict[str, str]:
    """`["N=params"]` -> `{"N": "params"}`."""
    found = {}
    for word in words:
        name, given, value = word.partition("=")
        if not (name.strip() and given and value.strip()):
            raise ConfigError(f"{option} {word}: expected NAME=VALUE, for example {option} N=millions")
        found[name.strip()] = value.strip()
    return found


def points(words: Sequence[str], law: Any) -> dict[str, list[float]] | None:
    """`["N=1e9,D=2e10"]` -> `{"N": [1e9], "D": [2e10]}`, every column of the law once a point."""
    found: dict[str, list[float]] = {column.name: [] for column in law.columns}
    for word in words:
        point = pairs(word.split(","), "--at")
        try:
            values = {name: float(value) for name, value in point.items()}
        except ValueError:
            values = {}
        if set(values) != set(found) or not all(math.isfinite(value) for value in values.values()):
            raise ConfigError(f"--at {word}: expected a number for each of {', '.join(found)}")
        for name, value in values.items():
            found[name].append(value)
    return found if words else None


def fixed_of(words: Iterable[str], chosen: Sequence[Any]) -> dict[str, float]:
    """`["alpha=0.35"]` -> `{"alpha": 0.35}`.

    Raises:
      ConfigError: a constant of none of the laws, or a value that is no number.
    """
    known = dict.fromkeys(name for law in chosen for name in law.names)
    found = {}
    for name, value in pairs(words, "--fix").items():
        if name not in known:
            raise ConfigError(f"--fix {name}={value}: found no such constant, expected one of {', '.join(known)}")
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"--fix {name}={value}: expected a number") from None
    return found


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """What a command asks by name, defaults too: all options but those that say where things lie or how they look."""
    return {name: value for name, value in sorted(vars(options).items()) if name not in NOT_ASKED}


def default_out(options: argparse.Namespace, sha256: str) -> Path:
    """A directory under the root of its own for what was asked of which bytes: the table's and those of law files."""
    files = [hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest() for file in options.law_file]
    digest = hashlib.sha256(json.dumps([asked(options), sha256, files]).encode()).hexdigest()[:8]
    stem, laws = Path(options.table).name.split(".")[0], "-".join(law_names(options.law))
    return Path(options.root).expanduser() / "fits" / f"{laws}-{stem}-{digest}"


def write(answer: Any, directory: Path, options: argparse.Namespace) -> None:
    """The record and the figure of one fit, and their paths into its document."""
    from lab.files import write_beside
    from lab.laws.record import encoded, full
    from lab.report.law_figure import law_figure
    from lab.report.present_laws import constants_words, data_words

    document, stem = answer.document, directory / answer.fit.law.name
    coordinates = answer.resamples.theta if answer.resamples else None
    figure, _ = law_figure(
        answer.fit,
        stem,
        data_words(document),
        constants_words(document),
        answer.fit.certificate.warnings,
        coordinates,
        options.level,
    )
    record = stem.with_name(stem.name + ".json")
    document.update(record=str(record), figure=str(figure))
    write_beside(record, encoded(full(answer.fit, document, asked(options))))


def show(options: argparse.Namespace, document: Any, blocks: Iterable[Any]) -> int:
    """The document with `--json`, or else its blocks as text or Markdown."""
    from lab.report.present_laws import as_markdown, as_text

    if options.json:
        print(json.dumps(document, indent=1, allow_nan=False))
        return 0
    with contextlib.suppress(StopIteration):
        for line in (as_markdown if getattr(options, "markdown", False) else as_text)(blocks):
            print(line)
    return 0
