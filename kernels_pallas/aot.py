"""Compiles programs for TPUs that are not there, and reads what the compiler says of each kernel.

`libtpu` compiles with no TPU at hand (`pip install libtpu`, the version that belongs to the jax release). Everything
read here is static: bytes, bundles (instruction words, one a cycle where nothing stalls) and the compiler's own
estimates. None of it is a measurement.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractMesh, AxisType, SingleDeviceSharding

from kernels_pallas import llo
from kernels_pallas.chips import CHIPS, Chip

DUMP = "--xla_jf_dump_to={0} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"


class Unavailable(Exception):
    """No TPU compiler here; the message says what to install."""


class Run(NamedTuple):
    """What the busiest core runs in one call; `exact` unless a branch depends on data, then at most so much."""

    bundles: int
    spill_stores: int
    exact: bool


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One custom call.

    Attributes:
      bundles, spill_stores: in its code, each counted once.
      busy: bundles in which each unit has work, by the compiler's names (VALU, VSTORE, ...).
      code, spills: the code as libtpu writes it, and the spill stores of each bundle.
    """

    name: str
    chip: Chip
    vmem_bytes: int
    bundles: int
    busy: dict[str, int]
    code: str = dataclasses.field(repr=False)
    spills: np.ndarray = dataclasses.field(repr=False)

    @property
    def spill_stores(self) -> int:
        return int(self.spills.sum())

    @functools.cached_property
    def run(self) -> Run:
        """Counted by following the branches.

        Raises:
          llo.Unreadable: the end of a loop depends on data.
        """
        code = llo.Code(self.code, self.chip.name)
        cores = [code.runs(core) for core in range(self.chip.cores)]
        return max(Run(int(times.sum()), int(times @ self.spills), exact) for times, exact in cores)


@dataclasses.dataclass(frozen=True)
class Executable:
    """A program compiled for a chip; bytes are of HBM on one device."""

    chip: Chip
    hlo: str
    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    accessed_bytes: float
    kernels: tuple[Kernel, ...]

    def moves(self, least_bytes: int = 1 << 16) -> list[tuple[str, int]]:
        """(opcode, bytes written) of each copy, transpose or reshape that moves at least so much within HBM.

        Not of copies into VMEM (memory space 1), by which the compiler fetches an operand ahead of time.
        """
        pattern = r"= \(?(\w+)\[([\d,]*)\]\{([^}]*)\}[^=\n]*? (copy|copy-start|transpose|reshape)\("
        found = []
        for dtype, shape, layout, opcode in re.findall(pattern, self.hlo):
            width = int(re.search(r"\d+$", dtype)[0]) / 8 if re.search(r"\d+$", dtype) else 1
            size = int(math.prod(map(int, shape.split(","))) * width) if shape else 0
            if size >= least_bytes and "S(1)" not in layout:
                found.append((opcode, size))
        return found


@functools.lru_cache(maxsize=1)
def _dump_directory() -> Path:
    """Where libtpu writes the final code of each kernel; its flags are read once, when it is loaded."""
    directory = tempfile.TemporaryDirectory(prefix="windtunnel-llo-")
    _dump_directory.keep = directory  # removed when the process ends
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {DUMP.format(directory.name)}".strip()
    return Path(directory.name)


@functools.cache
def devices(chip: Chip, topology: str | None = None) -> tuple[Any, ...]:
    """The devices of a topology ("v5e:4x4"), by default of one chip.

    Raises:
      Unavailable: no libtpu.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise Unavailable("no TPU compiler: `pip install libtpu` in the version that constraints.txt names")
    _dump_directory()
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    name = topology or chip.topology
    alone = {"chips_per_host_bounds": (1, 1, 1)} if re.search(r":1x1(x1)?$", name) else {}
    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **alone).devices)


@contextlib.contextmanager
def traced_for(chip: Chip) -> Iterator[None]:
    """Tracing inside sees this chip as `chips.current()` and as `pltpu.get_tpu_info()`."""
    device = devices(chip)[0]
    # The only constructor of an abstract device that three jax releases share is not exported.
    from jax._src.mesh import AbstractDevice

    seen = AbstractDevice(device_kind=device.device_kind, num_cores=device.num_cores, platform="tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=seen)):
        yield


def compile_for(chip: Chip | str, function: Callable, *arguments: Any, free_layouts: bool = False) -> Executable:
    """Compiles `function` for one device.

    Args:
      arguments: pytrees of arrays or `jax.ShapeDtypeStruct`.
      free_layouts: the compiler chooses the order in which arguments and results lie in memory, as it does for
        arrays that a surrounding program makes and takes; else both lie row-major.

    Raises:
      Unavailable: no TPU compiler here, or one that does not write out its code.
      jax.errors.JaxRuntimeError, ValueError: as the compiler or the lowering says.
    """
    chip = CHIPS[chip] if isinstance(chip, str) else chip
    place = SingleDeviceSharding(devices(chip)[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    free = {"in_shardings": Format(Layout.AUTO, place), "out_shardings": Format(Layout.AUTO, place)}
    if free_layouts:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    for left in _dump_directory().iterdir():
        left.unlink()
    with traced_for(chip):
        # A function of its own each time: what jax knows already is not compiled again, and leaves no code behind.
        compiled = (
            jax.jit(lambda *operands: function(*operands), **(free if free_layouts else {})).lower(*shapes).compile()
        )
    return read(chip, compiled)


def read(chip: Chip, compiled: Any) -> Executable:
    """What the compiler says of a program that was just compiled."""
    hlo, memory, cost = compiled.as_text(), compiled.memory_analysis(), compiled.cost_analysis()
    return Executable(
        chip=chip,
        hlo=hlo,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        accessed_bytes=float((cost or {}).get("bytes accessed", np.nan)),
        kernels=tuple(_kernels(chip, hlo)),
    )


def _kernels(chip: Chip, hlo: str) -> Iterator[Kernel]:
    files = sorted(_dump_directory().iterdir())
    for line in hlo.replace(",\n", ",").splitlines():
        named = re.match(r"\s*(?:ROOT )?%(\S+) = .*custom_call_target=\"tpu_custom_call\"", line)
        if not named:
            continue
        name = named[1]
        scoped = re.findall(r'"memory_space":"1",[^}]*?"size":"(\d+)"', line.split("used_scoped_memory_configs")[-1])
        mine = [path for path in files if f"-{name}-" in path.name]
        code = [path for path in mine if re.search(r"-\d+-final_bundles\.txt$", path.name)]
        usage = [path for path in mine if "per-bundle-utilization" in path.name]
        if len(code) != 1 or len(usage) != 1:
            raise Unavailable(f"libtpu left no code of {name}: install the version that constraints.txt names")
        busy, spills = _usage(usage[0].read_text())
        yield Kernel(name, chip, sum(map(int, scoped)), len(spills), busy, code[0].read_text(), spills)


def _usage(text: str) -> tuple[dict[str, int], np.ndarray]:
    """Bundles in which each unit has work, and spill stores by bundle; libtpu's releases name the units differently."""
    head, rows = text.split("== UTILIZATION:")
    names = [name.strip() for name in head.splitlines()[1].split(",")]
    table = np.array([row.split() for row in rows.splitlines() if row.strip()], int).reshape(-1, len(names))
    return dict(zip(names, (table > 0).sum(0).tolist())), table[:, names.index("VSTORE:SPILL")]
