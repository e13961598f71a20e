"""What the report, the ledger and the tuner compile: one case an operation, direction and shape."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kernels_pallas.chips import Chip

OPERATIONS = ("flash_attention", "gated_linear_attention", "delta_rule", "diagonal_recurrence", "selective_scan")


@dataclasses.dataclass(frozen=True)
class Case:
    """A program of one direction of one operation.

    Attributes:
      direction: "forward", or "backward" (from saved residuals and a cotangent to gradients, the forward left out).
      label: shape, dtype and options, as the ledger names them.
      function, arguments: what is compiled; arguments are `jax.ShapeDtypeStruct`s.
      flops: of matrix products that the result needs (causal: of the triangle), 2 a multiplication and addition.
      floor_bytes: every input, output and declared residual once.
      steps: how often each kernel's main body runs with v5e's blocks, by the kernel's name in HLO (without its number).
        Tests hold it against the compiled code, from which the report counts.
      note: why a bound is exceeded, by its name in `report.BOUNDS`.
    """

    operation: str
    direction: str
    label: str
    function: Callable
    arguments: tuple[Any, ...]
    flops: float
    floor_bytes: float
    steps: Mapping[str, int]
    note: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A row of the table of block sizes for each chip, as `kernels_pallas.tune` makes it.

    Attributes:
      direction, dtype, width: as `blocks.pick` asks for them.
      candidates: of a chip, the sizes to try; first those that the code takes where the table has none.
      cases: of sizes, the programs whose times are summed.
      kernel: how the names of the kernels start whose bundles count.
    """

    operation: str
    direction: str
    dtype: str
    width: int
    candidates: Callable[[Chip], Iterable[Mapping[str, int]]]
    cases: Callable[[Mapping[str, int]], Iterable[Case]]
    kernel: str


def size_of(*arrays: Any) -> int:
    """Bytes of arrays or shapes."""
    return sum(x.size * x.dtype.itemsize for x in arrays)


def cases(operation: str) -> tuple[Case, ...]:
    """`CASES` of `kernels_pallas.OPERATION.cases`."""
    return tuple(importlib.import_module(f"kernels_pallas.{operation}.cases").CASES)


def tuned(operation: str) -> tuple[Tuned, ...]:
    """`TUNED` of `kernels_pallas.OPERATION.cases`."""
    return tuple(importlib.import_module(f"kernels_pallas.{operation}.cases").TUNED)
