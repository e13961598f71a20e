"""The verb that checks a parametrization: `lab check parametrization`. It makes a few updates on random tokens."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab.errors import ConfigError
from lab.report.text import table

EXAMPLES = """examples:
  lab check parametrization mup
  lab check parametrization completep --axes depth --depths 2,8,32
  lab check parametrization ./mine.py:mine --model.gated=true --model.tied=true
"""
SECTIONS = ("model.", "parametrization.", "optimizer.")
FAMILY = {  # few tokens and small numbers of heads: what is coherent shows at small widths
    "model.width": 32,
    "model.depth": 2,
    "model.heads": 2,
    "model.kv_heads": 2,
    "model.sequence_length": 8,
    "model.vocab_size": 32,
    "optimizer.clip_norm": 0.0,
}


def add_verbs(verb: Any) -> None:
    """Adds the verb; `verb(name, function, text)` makes a parser with the options that all verbs share."""
    sub = verb("check", check, "does training move every tensor equally far at every width and depth? exit code 1: no")
    sub.epilog = EXAMPLES
    sub.add_argument("what", choices=("parametrization",), metavar="parametrization", help="what is checked")
    sub.add_argument("parametrization", metavar="NAME", help="a parametrization, or FILE.py:NAME of your own")
    sub.add_argument("--axes", help="some of width, heads, depth (default: those that apply)")
    sub.add_argument("--widths", help="of width and heads, at least 16x (default: 32,64,128,256,512)")
    sub.add_argument("--depths", help="of depth, at least 16x (default: 2,4,8,16,32)")
    sub.add_argument("--seeds", type=int, default=10, help="draws of weights and tokens (default: %(default)s)")
    sub.add_argument("--updates", type=int, default=4, help="of the optimizer (default: %(default)s)")
    sub.add_argument("--optimizer", default="adamw", help="adamw, sgd, lamb or lion (default: %(default)s)")
    sub.add_argument("--quiet", action="store_true", help="no progress on standard error")


def check(options: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`lab check parametrization NAME`."""
    from lab.config import CHOICES, default_config, override
    from lab.models.architecture import one_of
    from lab.parametrization.scales import find
    from lab.train import backend

    for key in overrides:
        if not key.startswith(SECTIONS) or key.endswith(".name"):
            raise ConfigError(
                f"--{key}: found no use for it here, expected --model.*, --parametrization.* or --optimizer.* but for "
                "names: those are NAME and --optimizer"
            )
    one_of("--optimizer", options.optimizer, CHOICES["optimizer.name"])
    name = load(options.parametrization)
    find(name)
    chosen = {"parametrization.name": name, "optimizer.name": options.optimizer}
    cfg = override(default_config(), {**FAMILY, **chosen, **overrides})
    backend.configure(
        1, Path(options.root).expanduser().absolute() / "cache" / "xla", cfg.model.compute_dtype == "float64"
    )
    from lab.parametrization import check as checking

    def say(line: str) -> None:
        if not options.quiet:
            print(f"{name}: {line}", file=sys.stderr, flush=True)

    found = checking.check(
        cfg.model,
        cfg.parametrization,
        optimizer_of(cfg, "optimizer.learning_rate" in overrides),
        axes=options.axes.split(",") if options.axes else (),
        widths=numbers("--widths", options.widths, checking.WIDTHS),
        depths=numbers("--depths", options.depths, checking.DEPTHS),
        seeds=options.seeds,
        updates=options.updates,
        given=frozenset(key.rpartition(".")[2] for key in overrides if key.startswith("parametrization.base_")),
        say=say,
    )
    document = {
        "parametrization": name,
        "optimizer": options.optimizer,
        "model": cfg.model.to_dict(),
        "updates": options.updates,
        "seeds": options.seeds,
        **described(found),
    }
    print(json.dumps(document, indent=1, allow_nan=False) if options.json else "\n".join(lines(document)))
    return 0 if found.passed else 1


def optimizer_of(cfg: Any, given: bool) -> Any:
    """The optimizer of a config, at the check's own learning rate unless one is `given`."""
    from lab.optim import optimizers
    from lab.parametrization.probe import Optimizer

    name, family = cfg.optimizer.name, optimizers.FAMILY[cfg.optimizer.name]
    rate = cfg.optimizer.learning_rate if given else None
    hyper = tuple(optimizers.hyperparameters(cfg).items())
    return Optimizer(name, family, optimizers.init, optimizers.update, rate, hyper)


def numbers(option: str, words: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    """`"32,64"` -> (32, 64)."""
    if words is None:
        return default
    try:
        found = tuple(int(word) for word in words.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise ConfigError(f"{option}: found {words!r}, expected whole numbers of at least 1, a comma between them")
    return found


def load(name: str) -> str:
    """The name of a parametrization; of `FILE.py:NAME` once the file has run, which registers it.

    Raises:
      ConfigError: no such file, Python that fails, or no name.
    """
    file, _, wanted = name.rpartition(":")
    if not name.partition(":")[0].endswith(".py"):
        return name
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"found no file in {name!r}, expected FILE.py:NAME, NAME as the file registers it")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code: any
        raise ConfigError(f"{path}: {type(error).__name__}: {error}; expected Python that runs") from error
    return wanted


def described(found: Any) -> dict[str, Any]:
    """A check as a document: None stands for what is not finite."""

    def finite(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    axes = [
        {
            "axis": axis.axis,
            "sizes": list(axis.sizes),
            "first_offender": axis.offender and axis.offender.name,
            "rows": [
                {
                    "name": row.name,
                    "expected": [row.least, row.most],
                    "slope": finite(row.slope),
                    "low": finite(row.low),
                    "high": finite(row.high),
                    "verdict": row.verdict,
                    "rms": [[finite(value) for value in values] for values in row.rms],
                }
                for row in axis.rows
            ],
        }
        for axis in found.axes
    ]
    first = found.offender and {"axis": found.offender[0].axis, "name": found.offender[1].name}
    return {"passed": found.passed, "first_offender": first, "axes": axes, "left_out": found.left_out}


def lines(document: Mapping[str, Any]) -> Iterable[str]:
    """The document as people read it: a table for each axis, and what follows."""
    nan = math.nan
    for axis in document["axes"]:
        rows = axis["rows"]
        columns = {
            axis["axis"]: [row["name"] for row in rows],
            "slope": [nan if row["slope"] is None else round(row["slope"], 3) for row in rows],
            "slope_low": [nan if row["low"] is None else round(row["low"], 2) for row in rows],
            "slope_high": [nan if row["high"] is None else round(row["high"], 2) for row in rows],
            "expected": [" to ".join(f"{value + 0.0:.2g}" for value in sorted(set(row["expected"]))) for row in rows],
            "verdict": [row["verdict"] for row in rows],
        }
        yield table(columns)
        yield ""
    for axis, reason in document["left_out"].items():
        yield f"{axis} is not checked: {reason}"
    for axis in document["axes"]:
        sizes = ", ".join(map(str, axis["sizes"]))
        offender = next((row for row in axis["rows"] if row["name"] == axis["first_offender"]), None)
        if offender is None:
            yield f"{axis['axis']} {sizes}: pass"
        else:
            more = "; more --seeds or sizes may decide" if offender["verdict"] == "undecided" else ""
            yield f"{axis['axis']} {sizes}: {offender['verdict']}, first at {offender['name']}{more}"
    verdict = "passes" if document["passed"] else "does not pass"
    yield f"{document['parametrization']} {verdict} with {document['optimizer']}"
