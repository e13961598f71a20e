"""The command line: one thin function per verb.

Results go to standard output (with `--json`, one document and nothing else), progress and warnings to standard error.
Exit codes: 0 done, 1 some runs failed, 2 something that the user can mend, 130 stopped and resumable.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lab.errors import ConfigError, ResultsError, UserError
from lab.report.display import Display
from lab.report.text import duration, quantity

COMMITTED = Path(__file__).resolve().parents[1] / "experiments" / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    try:
        options, overrides = parse(sys.argv[1:] if argv is None else list(argv))
        return options.verb(options, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; everything saved so far stays: run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `lab --help`")


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Options of the verb, and dotted config overrides."""
    parser = _Parser(prog="lab", description="From an experiment ID to a verdict.", allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)

    def verb(name: str, function: Any, text: str, experiment: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(verb=function)
        sub.add_argument("--json", action="store_true", help="one JSON document on standard output")
        if experiment:
            sub.add_argument("id", help="an experiment ID, or FILE.py:ID (FILE.py where it has one)")
            sub.add_argument("--scale", default=None, help="smoke, tiny (default), small or paper")
            sub.add_argument("--root", default=default_root(), help="all state of sweeps (default: %(default)s)")
            sub.epilog = "Config overrides: --section.key=value, as `lab plan ID --config` lists them."
        return sub

    verb("list", list_experiments, "experiments, their papers and scales", experiment=False)
    plan = verb("plan", plan_sweep, "runs, packs, tokens, FLOPs, memory and a time guess; trains nothing")
    plan.add_argument("--config", action="store_true", help="print the resolved base config instead")
    for name, function, text in (
        ("run", run_sweep, "train what the sweep still lacks"),
        ("reproduce", reproduce, "train, fit, draw, and judge each claim"),
    ):
        sub = verb(name, function, text)
        sub.add_argument("--retry", action="store_true", help="train failed runs again")
        sub.add_argument("--quiet", action="store_true", help="no progress on standard error")
        if name == "reproduce":
            sub.add_argument("--published", metavar="FILE", help="analyse the authors' own table instead of training")
    verb("show", show, "verdicts, tables and figure of what was reproduced or committed")
    export = verb("export", export_run, "take the weights of one run out as an npz", experiment=False)
    export.add_argument("run", help="a run's identity, or its beginning")
    export.add_argument("out", help="the npz file to write")
    export.add_argument("--root", default=default_root())
    options, rest = parser.parse_known_args(argv)
    return options, parse_overrides(rest)


def parse_overrides(words: list[str]) -> dict[str, str]:
    """`--a.b=v` and `--a.b v` -> {"a.b": "v"}.

    Raises:
      ConfigError: for anything else.
    """
    overrides: dict[str, str] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        key, given, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in key:
            raise ConfigError(f"found {word!r}, expected an option of this verb or --section.key=value")
        if not given:
            if not words:
                raise ConfigError(f"{word}: found no value, expected {word}=value")
            value = words.pop(0)
        overrides[key] = value
    return overrides


def default_root() -> str:
    """`$WINDTUNNEL_ROOT`, or `windtunnel` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return os.environ.get("WINDTUNNEL_ROOT") or str(Path(cache) / "windtunnel")


def find(name: str) -> Any:
    """The experiment of an ID, or of a Python file of the user's own.

    Raises:
      ConfigError: unknown, with the nearest known one.
    """
    from lab.config import nearest
    from lab.sweep.experiment import find_experiments, load_file

    path, _, wanted = name.partition(":")
    known = load_file(Path(path)) if path.endswith(".py") else find_experiments()
    wanted = wanted if path.endswith(".py") else name
    if path.endswith(".py") and not wanted and len(known) == 1:
        return next(iter(known.values()))
    if wanted not in known:
        raise ConfigError(f"unknown experiment {name!r}{nearest(wanted, known)}; see `lab list`")
    return known[wanted]


def study_of(options: argparse.Namespace, overrides: Mapping[str, str]) -> Any:
    from lab.sweep.reproduce import open_study
    from lab.train.store import RunStore

    return open_study(find(options.id), options.scale or "tiny", overrides, RunStore(Path(options.root).expanduser().absolute()))


def show_json(document: Any) -> None:
    print(json.dumps(document, indent=1, allow_nan=False))


def list_experiments(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab list`."""
    from lab.sweep.experiment import find_experiments

    no_overrides(overrides)
    known = list(find_experiments().values())
    if options.json:
        show_json([{"id": e.id, "paper": e.paper, "scales": list(e.scales), "summary": e.summary} for e in known])
    for e in [] if options.json else known:
        print(f"{e.id:34} {', '.join(e.scales)}\n    {e.summary}\n    {e.paper}")
    return 0


def no_overrides(overrides: Mapping[str, str]) -> None:
    if overrides:
        raise ConfigError(f"--{next(iter(overrides))}: this verb takes no config overrides")


def plan_sweep(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab plan ID`."""
    from lab.config import flatten
    from lab.sweep.forecast import forecast

    study = study_of(options, overrides)
    if options.config:
        flat = flatten(study.sweep.base)
        show_json(flat) if options.json else print("\n".join(f"--{k}={v}" for k, v in flat.items()))
        return 0
    document = forecast(study, Display())
    if options.json:
        show_json(document)
        return 0
    print(f"{document['id']} at {document['scale']}: {study.sweep.note}")
    print(f"{document['runs']} runs ({document['finished']} finished) in {document['packs']} packs")
    for pack in document["pack_list"]:
        rates = f"{pack['learning_rates'][0]:g} to {pack['learning_rates'][-1]:g}"
        batches = ", ".join(map(str, pack["batch_tokens"]))
        print(
            f"  {pack['runs']:4} runs  width {pack['width']}, depth {pack['depth']}, "
            f"N {quantity(pack['parameters']['non_embedding'])} non-embedding; micro-batch {pack['microbatch_tokens']}, "
            f"batches {batches} tokens; learning rates {rates}; {quantity(pack['tokens'])} tokens"
        )
    print(
        f"tokens {quantity(document['tokens'])}; {quantity(document['flops'])} FLOPs training (forward and backward, "
        f"attention counted) and {quantity(document['evaluation_flops'])} evaluating"
    )
    print(f"largest pack: {quantity(document['state_bytes'])}B of state at rest (static: activations come on top)")
    if document["epochs"]:
        print(f"the longest run passes over the corpus {document['epochs']:.2f} times")
    print(f"time: {duration(document['seconds'])} ({document['seconds_from']})")
    for line in document["notes"]:
        print(f"note: {line}")
    return 0


def trained(options: argparse.Namespace, overrides: Mapping[str, str], display: Display) -> tuple[Any, Any, list[Any]]:
    """The study, its corpus and its runs, trained."""
    from lab.sweep.plan import whole_tokens
    from lab.sweep.reproduce import open_corpus, train_study
    from lab.sweep.run import missing
    from lab.train import backend

    study = study_of(options, overrides)
    corpus = open_corpus(study.sweep.base.data, study.store, display)
    runs = study.runs(corpus)
    lacking = missing(study.store, runs)
    display.add(sum(whole_tokens(run.cfg) for run in lacking))
    float64 = any(run.cfg.model.compute_dtype == "float64" for run in runs)
    backend.configure(len(runs), study.store.cache / "xla", float64)
    try:
        return study, corpus, train_study(study, corpus, display, options.retry)
    except Exception as error:
        if type(error).__name__ == "Interrupted":
            raise KeyboardInterrupt from None
        raise
    finally:
        display.close()


def run_sweep(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab run ID`."""
    from lab.sweep.run import table

    study, _, runs = trained(options, overrides, Display(quiet=options.quiet))
    counts = table(study.store, runs)["status"].value_counts().to_dict()
    path = str(study.directory / "table.parquet")
    document = {"id": study.experiment.id, "scale": study.scale, "runs": len(runs), "status": counts, "table": path}
    if options.json:
        show_json(document)
    else:
        print(f"{len(runs)} runs: " + ", ".join(f"{n} {status}" for status, n in counts.items()) + f"\ntable: {path}")
    return failures(counts)


def failures(counts: Mapping[str, int]) -> int:
    if counts.get("failed"):
        print(f"{counts['failed']} runs failed; `--retry` trains them again", file=sys.stderr)
        return 1
    return 0


def reproduce(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab reproduce ID`."""
    from lab.sweep.reproduce import report, results

    if options.published:
        study = study_of(argparse.Namespace(**{**vars(options), "scale": options.scale or "paper"}), overrides)
        if study.experiment.published is None:
            raise ResultsError(f"{study.experiment.id} has no published table to analyse")
        analysis = study.experiment.published(Path(options.published))
        study = published_study(study)
        return present(report(study, analysis, [], None, {"published": Path(options.published).name}), study.directory, options)
    display = Display(quiet=options.quiet)
    study, corpus, runs = trained(options, overrides, display)
    from lab.train.provenance import code, hardware

    analysis = study.experiment.analyse(results(study, runs))
    provenance = {"code": code(), "hardware": hardware(), "cost": study.cost(runs)}
    document = report(study, analysis, runs, corpus, provenance)
    present(document, study.directory, options)
    return failures(document["status"])


def published_study(study: Any) -> Any:
    """The same study, with a report of its own for the authors' data."""
    import dataclasses

    return dataclasses.replace(study, scale="published", overrides={})


def show(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab show ID`: what was reproduced under the root, or else what is committed."""
    from lab.sweep.reproduce import read_report
    from lab.train.store import RunStore

    experiment = find(options.id)
    scale = options.scale or "tiny"
    directories = [COMMITTED / experiment.id / scale]
    if overrides:
        directories = [study_of(options, overrides).directory]
    elif scale in (*experiment.scales, "published"):
        directories.insert(0, RunStore(Path(options.root).expanduser().absolute()).sweep_directory(experiment.id, scale))
    else:
        study_of(options, overrides)
    document, directory = read_report(directories)
    return present(document, directory, options)


def present(document: dict[str, Any], directory: Path, options: argparse.Namespace) -> int:
    """Prints a report: verdicts, tables, notes, and where the figure and the table lie."""
    document = {**document, "figure": str(directory / document["figure"])}
    document["table"] = str(directory / document["table"]) if document["table"] else None
    if options.json:
        show_json(document)
        return 0
    import pandas

    print(f"{document['id']} at {document['scale']} ({document['paper']})")
    for name, file in document["tables"].items():
        frame = pandas.read_csv(directory / file)
        if len(frame) <= 24:
            print(f"\n{name}\n{frame.to_string(index=False, float_format=lambda x: f'{x:.4g}')}")
    print()
    for verdict in document["verdicts"]:
        interval = "no interval" if verdict["interval"] is None else "[" + ", ".join(number(x) for x in verdict["interval"]) + "]"
        print(f"{verdict['verdict'].upper():13} {verdict['claim']}")
        print(f"{'':13} ours {number(verdict['ours'])} {interval}, published {number(verdict['published'])}. {verdict['reason']}")
    for line in document["notes"]:
        print(f"note: {line}")
    print(f"figure: {document['figure']}\ntable: {document['table']}")
    if document.get("cost"):
        print(f"cost: {duration(document['cost']['seconds'])} of training, {quantity(document['cost']['tokens'])} tokens")
    return 0


def number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def export_run(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab export RUN OUT`."""
    from lab.sweep.run import export
    from lab.train.store import RunStore

    no_overrides(overrides)
    document = export(RunStore(Path(options.root).expanduser().absolute()), options.run, Path(options.out))
    show_json(document) if options.json else print(f"{document['run']} at step {document['step']}: {document['out']}")
    return 0


