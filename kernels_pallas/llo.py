"""How often each bundle of a compiled TPU kernel runs: its branches followed, with no TPU.

libtpu writes the scheduled code of a kernel, where regions (bodies of `pl.when`, loops) are labelled and scalars are in
static single assignment. What decides a branch is arithmetic on grid indices and constants. These few instructions are
evaluated here, so that the walk knows which bodies each grid step runs and when each loop ends.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

WORD = 1 << 32
# Bundles after a branch that run whether it is taken or not, as each compiler leaves them.
SHADOW = {"v4": 1, "v5e": 4, "v5p": 4, "v6e": 4, "tpu7x": 6}


class Unreadable(ValueError):
    """Code that cannot be followed; the message says why."""


OPERATIONS: dict[str, Callable] = {
    "smov": lambda x: x,
    "sadd": operator.add,
    "ssub": operator.sub,
    "smul": operator.mul,
    "sand": operator.and_,
    "sor": operator.or_,
    "sxor": operator.xor,
    "smin": min,
    "smax": max,
    "sshll": lambda x, by: x << by if by < 32 else 0,
    "sshrl": lambda x, by: x >> by,
    "sshra": lambda x, by: x >> by,
    "scalar_select": lambda where, x, y: x if where else y,
    "pneg": lambda x: 1 - x,
    "por": operator.or_,
    "pand": operator.and_,
    "pnand": lambda x, y: 1 - (x & y),
    **{f"scmp.{name}": getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
}
DECIDED = {"por": (1, 1), "pand": (0, 0), "pnand": (0, 1)}  # one argument that settles the result whatever the other is

NOTHING = (0, None)

_BUNDLE = re.compile(r"\s*(?:0x)?[0-9a-f]+\s+(?:[A-Z]{2})?: ")
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_BRANCH = re.compile(r"sbr\.\S+(?: \((!?)%(p\d+_p\d+)\))? target = \$region(\d+)")
_CORE = re.compile(r"\[smem:\[#allocation\d+\]\] /\*[^*]*core id \*/")
_GUARD = re.compile(r" ?\((!?)%(p\d+_p\d+)(?:, %([sp]\d+_[sp]\d+))?\),?")
_ASSIGNED = re.compile(r"%([sp]\d+_[sp]\d+) = (\S+)(.*)", re.S)
_STORED = re.compile(r"= sst (\[smem:\[#allocation\d+_spill\]\])(.*)", re.S)


@dataclasses.dataclass(frozen=True)
class _Step:
    """`target = operation(arguments)` where the guard holds, else what `otherwise` names, if anything."""

    target: str
    operation: str
    arguments: tuple[int | str, ...]
    guard: str | None
    negated: bool
    otherwise: str | None

    @property
    def reads(self) -> Iterator[str]:
        yield from (name for name in (*self.arguments, self.guard, self.otherwise) if isinstance(name, str))


@dataclasses.dataclass(frozen=True)
class _Branch:
    to: int
    where: str
    negated: bool


def _step(text: str) -> _Step | None:
    """The step that an instruction is, if it sets a scalar register, a predicate or a spilled scalar."""
    stored, assigned = _STORED.search(text), _ASSIGNED.search(text)
    if not (stored or assigned):
        return None
    target, operation, rest = (stored[1], "smov", stored[2]) if stored else assigned.groups()
    guard = _GUARD.search(rest)
    negated, where, otherwise = guard.groups() if guard else ("", None, None)
    words = [word.strip() for word in _GUARD.sub("", rest, count=1).split(",")]
    arguments = tuple(int(word) if re.fullmatch(r"-?\d+", word) else word.lstrip("%") for word in words if word)
    return _Step(target, "smov" if operation == "sld" else operation, arguments, where, bool(negated), otherwise)


class Code:
    """A kernel's `final_bundles` text on a chip; `size` bundles."""

    def __init__(self, text: str, chip: str):
        self.shadow = SHADOW[chip]
        bundles: list[str] = []
        for line in text.splitlines():
            if _BUNDLE.match(line):
                bundles.append(line)
            elif bundles:
                bundles[-1] += "\n" + line
        self.size = len(bundles)
        labels: dict[str, int] = {}
        for address, bundle in enumerate(bundles):
            for region in _REGION.findall(bundle):
                labels.setdefault(region, address)
        ended = {label for label in re.findall(r"target = \$region(\d+)", text) if label not in labels}
        if len(ended) == 1 and "exit bundle" in bundles[-1]:  # whose label is not written
            labels[ended.pop()] = self.size - 1
        self.branches: dict[int, _Branch] = {}
        steps: list[list[_Step]] = []
        for address, bundle in enumerate(bundles):
            bare = re.sub(r"/\*.*?\*/", "", _CORE.sub("core", bundle), flags=re.S)
            if "sbr." in bare:
                branch = _BRANCH.search(bare)
                if branch is None or branch[2] is None or branch[3] not in labels:
                    raise Unreadable(f"a branch of unknown form at bundle {address:#x}")
                self.branches[address] = _Branch(labels[branch[3]], branch[2], bool(branch[1]))
            found = [step for step in map(_step, bare.rstrip("} \n").split(";;")) if step]
            # Within a bundle loads come before stores, and the values that a loop hands on before their uses.
            steps.append(sorted(found, key=lambda step: (step.operation != "sphi", step.target.startswith("["))))
        self.steps = self._needed(steps)

    def _needed(self, steps: list[list[_Step]]) -> list[list[_Step]]:
        """The steps on which a branch depends."""
        makers: dict[str, list[_Step]] = {}
        for step in (step for bundle in steps for step in bundle):
            makers.setdefault(step.target, []).append(step)
        needed: set[str] = set()
        left = [branch.where for branch in self.branches.values()]
        while left:
            name = left.pop()
            if name not in needed:
                needed.add(name)
                left += [read for step in makers.get(name, ()) for read in step.reads]
        return [[step for step in bundle if step.target in needed] for bundle in steps]

    def _end_of_shadow(self, at: int) -> int:
        """Where the walk goes on after a branch, if not at its target; no later than at the next branch."""
        after = range(at + 1, min(at + self.shadow + 1, self.size))
        return next((address for address in after if address in self.branches), after.stop)

    def runs(self, core: int = 0) -> tuple[np.ndarray, bool]:
        """([size] times that each bundle runs on a core, whether that is exact).

        A branch that depends on data (segment ids, what comes back from a vector) is taken to run its body: an upper
        bound, as of code that has no `else`.

        Raises:
          Unreadable: a loop's end depends on data.
        """
        values: dict[str, tuple[int, int | None]] = {"core": (0, core)}  # name -> (when written, value)
        change = np.zeros(self.size + 1, np.int64)
        at, clock, exact = 0, 0, True
        ends = sorted(self.branches)
        while at < self.size:
            here = next((end for end in ends if end >= at), None)
            until = self.size if here is None else self._end_of_shadow(here)
            change[at] += 1
            change[until] -= 1
            for step in itertools.chain.from_iterable(self.steps[at:until]):
                clock += 1
                _evaluate(step, values, clock)
            if here is None:
                break
            branch = self.branches[here]
            taken, back = values.get(branch.where, NOTHING)[1], branch.to <= here
            if taken is None and back:
                raise Unreadable(f"the end of the loop at bundle {branch.to:#x} depends on data")
            exact &= taken is not None
            if taken is None or bool(taken) == branch.negated:
                at = until
            else:
                at = branch.to if back else max(until, branch.to)
        return np.cumsum(change[:-1]), exact


def _evaluate(step: _Step, values: dict[str, tuple[int, Any]], clock: int) -> None:
    if step.guard is not None:
        holds = values.get(step.guard, NOTHING)[1]
        if holds is None:
            values[step.target] = (clock, None)
            return
        if bool(holds) == step.negated:
            if step.otherwise is not None:
                values[step.target] = (clock, values.get(step.otherwise, NOTHING)[1])
            return
    found = [(0, x) if isinstance(x, int) else values.get(x, NOTHING) for x in step.arguments]
    name, signed = re.sub(r"\.[su]\d+.*", "", step.operation), ".s32" in step.operation
    arguments = [x for _, x in found]
    made = None
    if name == "sphi":  # its arguments share a register: what was written last is in it
        made = max(found, key=lambda written: written[0])[1]
    elif name in OPERATIONS and None not in arguments:
        words = [(x + WORD // 2) % WORD - WORD // 2 if signed else x % WORD for x in arguments]
        made = int(OPERATIONS[name](*words)) % WORD
    elif name in DECIDED and DECIDED[name][0] in arguments:
        made = DECIDED[name][1]
    values[step.target] = (clock, made)
