"""The command line: one thin function per verb.

Results go to standard output (with `--json`, one document and nothing else), progress and warnings to standard error.
Exit codes: 0 done, 1 some runs failed or a check did not pass, 2 something that the user can mend, 130 stopped and
resumable, 141 the reader of the output went away.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lab import cli_check, cli_laws
from lab.errors import ConfigError, ResultsError, UserError
from lab.laws.errors import LawsError
from lab.report.display import Display

COMMITTED = Path(__file__).resolve().parents[1] / "experiments" / "results"
EXAMPLES = """examples:
  lab list
  lab plan critical-batch-size/fixed-model
  lab reproduce critical-batch-size/fixed-model
  lab reproduce critical-batch-size/fixed-model --scale smoke --model.width=16
  lab show critical-batch-size/fixed-model
  lab fit hoffmann runs.csv --map N=params --map D=tokens --map loss=final_loss
"""
OVERRIDES = "Any config key can be overridden: --section.key=value, as `lab plan ID --config` lists them."
NO_PLACE = ("ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "EEXIST")  # of a path the user gave


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices of fits are small: its threads would only spin
    try:
        options, overrides = parse(argv)
        code = options.verb(options, overrides)
        sys.stdout.flush()
        return code
    except (UserError, LawsError) as error:
        return mistake(str(error))
    except KeyboardInterrupt:
        again = shlex.join(["lab", *argv])
        print(f"stopped; what is saved stays, and this goes on from there: {again}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains
        return 141
    except OSError as error:
        if errno.errorcode.get(error.errno) not in NO_PLACE:
            raise
        return mistake(f"{error.filename or 'output'}: {error.strerror}; expected a place to write, see --root")


def mistake(message: str) -> int:
    """One line on standard error; returns the exit code."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib import metadata

        print(f"windtunnel {metadata.version('windtunnel')}")
        parser.exit()


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Options of the verb, and dotted config overrides."""
    looks = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(prog="lab", description="From an experiment ID to a verdict.", epilog=EXAMPLES, **looks)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(metavar="VERB", dest="name", required=True, parser_class=_Parser)

    def verb(name: str, function: Any, text: str, experiment: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, epilog=OVERRIDES if experiment else None, **looks)
        sub.set_defaults(verb=function)
        sub.add_argument("--json", action="store_true", help="one JSON document on standard output")
        if experiment:
            sub.add_argument("id", metavar="ID", help="an experiment of `lab list`, or FILE.py, or FILE.py:ID")
            sub.add_argument("--scale", help="smoke, tiny (the default), small or paper")
        if name != "list":
            sub.add_argument("--root", default=default_root(), help="all state of sweeps (default: %(default)s)")
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
            sub.add_argument("--data-root", metavar="DIR", help="where published data sets lie ($WINDTUNNEL_DATA)")
    verb("show", show, "verdicts, tables and figure of what was reproduced, or else of what is committed")
    export = verb("export", export_run, "take the weights of one run out as an npz", experiment=False)
    export.add_argument("run", metavar="RUN", help="a run's identity, or its beginning")
    export.add_argument("out", metavar="OUT", help="the npz file to write")
    cli_check.add_verbs(functools.partial(verb, experiment=False))
    cli_laws.add_verbs(functools.partial(verb, experiment=False))
    options, rest = parser.parse_known_args(argv)
    return options, parse_overrides(rest)


def parse_overrides(words: list[str]) -> dict[str, str]:
    """`--a.b=v` and `--a.b v` -> {"a.b": "v"}.

    Raises:
      ConfigError: for anything else, with the config key that may be meant.
    """
    overrides: dict[str, str] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        key, given, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in key:
            raise ConfigError(f"found {word!r}, expected an option of this verb or --section.key=value{meant(key)}")
        if not given:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"{word}: found no value, expected {word}=value")
            value = words.pop(0)
        overrides[key] = value
    return overrides


def meant(word: str) -> str:
    """`; did you mean --model.width=value?` for `width`."""
    from lab.config import default_config, flatten

    keys = [key for key in flatten(default_config()) if key.rpartition(".")[2] == word]
    return f"; did you mean --{keys[0]}=value?" if keys else ""


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


def store_of(options: argparse.Namespace) -> Any:
    """The run store under `--root`."""
    from lab.train.store import RunStore

    return RunStore(Path(options.root).expanduser().absolute())


def study_of(options: argparse.Namespace, overrides: Mapping[str, str]) -> Any:
    """The experiment at its scale with the overrides, on the root."""
    from lab.sweep.reproduce import open_study

    return open_study(find(options.id), options.scale or "tiny", overrides, store_of(options))


def show_document(options: argparse.Namespace, document: Any, lines: Iterable[str]) -> None:
    """The document itself with `--json`, or else its lines for people."""
    if options.json:
        print(json.dumps(document, indent=1, allow_nan=False))
        return
    for line in lines:
        print(line)


def no_overrides(overrides: Mapping[str, str]) -> None:
    if overrides:
        raise ConfigError(f"--{next(iter(overrides))}: this verb takes no config overrides")


def list_experiments(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab list`."""
    from lab.sweep.experiment import find_experiments

    no_overrides(overrides)
    known = list(find_experiments().values())
    document = [
        {"id": e.id, "paper": e.paper, "scales": list(e.scales) or ["published"], "summary": e.summary} for e in known
    ]
    lines = (f"{e.id:34} {', '.join(e.scales) or 'published data'}\n    {e.summary}\n    {e.paper}" for e in known)
    show_document(options, document, lines)
    return 0


def plan_sweep(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab plan ID`."""
    from lab.config import flatten
    from lab.report.present import plan_lines
    from lab.sweep.forecast import forecast

    study = study_of(options, overrides)
    if options.config:
        flat = flatten(study.sweep.base)
        show_document(options, flat, (f"--{key}={value}" for key, value in flat.items()))
        return 0
    document = forecast(study, Display())
    show_document(options, document, plan_lines(document))
    return 0


def trained(options: argparse.Namespace, overrides: Mapping[str, str]) -> tuple[Any, Any, list[Any]]:
    """The study, its corpus and its runs, trained."""
    from lab.sweep.plan import whole_tokens
    from lab.sweep.reproduce import open_corpus, train_study
    from lab.sweep.run import missing
    from lab.train import backend

    display = Display(quiet=options.quiet)
    study = study_of(options, overrides)
    corpus = open_corpus(study.sweep.base.data, study.store, display)
    runs = study.runs(corpus)
    display.add(sum(whole_tokens(run.cfg) for run in missing(study.store, runs)))
    float64 = any(run.cfg.model.compute_dtype == "float64" for run in runs)
    backend.configure(len(runs), study.store.cache / "xla", float64)
    from lab.train.loop import Interrupted  # brings jax, which must find the backend configured

    try:
        return study, corpus, train_study(study, corpus, display, options.retry)
    except Interrupted:
        raise KeyboardInterrupt from None
    finally:
        display.close()


def run_sweep(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab run ID`."""
    from lab.sweep.run import table

    study, _, runs = trained(options, overrides)
    counts = table(study.store, runs)["status"].value_counts().to_dict()
    path = str(study.directory / "table.parquet")
    document = {"id": study.experiment.id, "scale": study.scale, "runs": len(runs), "status": counts, "table": path}
    ended = ", ".join(f"{n} {status}" for status, n in counts.items())
    show_document(options, document, [f"{len(runs)} runs: {ended}", f"table: {path}"])
    return failures(counts)


def failures(counts: Mapping[str, int]) -> int:
    """The exit code of a sweep that came to its end."""
    if counts.get("failed"):
        print(f"{counts['failed']} runs failed; `--retry` trains them again", file=sys.stderr)
        return 1
    return 0


def reproduce(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab reproduce ID`."""
    from lab.sweep.reproduce import report, results

    if options.published or not find(options.id).scales:
        return published(options, overrides)
    study, corpus, runs = trained(options, overrides)
    analysis = study.experiment.analyse(results(study, runs))
    document = report(study, analysis, runs, corpus)
    present(document, study.directory, options)
    return failures(document["status"])


def published(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Published measurements instead of training: the authors' table (`--published FILE`), or an experiment's own."""
    from lab.laws import datasets
    from lab.sweep.reproduce import Study, report

    no_overrides(overrides)
    experiment = find(options.id)
    if experiment.measurements:
        if options.scale or options.published:
            raise ConfigError(f"{experiment.id} trains nothing and reads its own data sets: no --scale, no --published")
        with told(options):
            analysis = experiment.measurements(lambda name: datasets.load(name, options.data_root))
    elif experiment.published is None:
        raise ResultsError(f"{experiment.id} has no published table to analyse: leave --published out")
    else:
        analysis = experiment.published(Path(options.published))
    study = Study(experiment, "published", None, {}, store_of(options))
    document = report(study, analysis, [], None)
    return present(document, study.directory, options)


@contextlib.contextmanager
def told(options: argparse.Namespace) -> Iterator[None]:
    """Progress that an analysis logs (`logging.getLogger("experiments")`) goes to standard error, unless --quiet."""
    logger, handler = logging.getLogger("experiments"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if options.quiet else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def show(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab show ID`: what was reproduced under the root, or else what is committed."""
    from lab.sweep.reproduce import read_report

    experiment = find(options.id)
    scale = options.scale or ("tiny" if experiment.scales else "published")
    if scale == "published":
        no_overrides(overrides)
        directories = [store_of(options).sweep_directory(experiment.id, scale)]
    else:
        directories = [study_of(options, overrides).directory]
    if not overrides:
        directories.append(COMMITTED / experiment.id / scale)
    document, directory = read_report(directories)
    return present(document, directory, options)


def present(document: Mapping[str, Any], directory: Path, options: argparse.Namespace) -> int:
    """Shows a report that lies in `directory`, with the full paths of its figure and its table."""
    from lab.report.present import report_lines

    paths = {key: document[key] and str(directory / document[key]) for key in ("figure", "table")}
    document = {**document, **paths}
    show_document(options, document, report_lines(document, directory))
    return 0


def export_run(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab export RUN OUT`."""
    from lab.sweep.run import export

    no_overrides(overrides)
    document = export(store_of(options), options.run, Path(options.out))
    show_document(options, document, [f"{document['run']} at tick {document['tick']}: {document['out']}"])
    return 0
