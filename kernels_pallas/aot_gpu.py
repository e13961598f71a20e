"""Compiles programs for an H200 that is not there: shared memory that does not fit, and code that does not lower, show.

The CUDA plugin compiles with no GPU at hand (`pip install --no-deps jax-cuda13-pjrt`, the version of jax, 0.11.2 or
newer); what it needs to know of the chip is a text that it carries itself. It gives no cycles and no spills.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType, SingleDeviceSharding

from kernels_pallas.aot import Unavailable

NAME = b"NVIDIA H200 141GB HBM3e"
CORES, SHARED_BYTES = 132, 232_448


@functools.lru_cache(maxsize=1)
def device() -> Any:
    """An H200.

    Raises:
      Unavailable: no CUDA plugin, or one that carries no description of the chip.
    """
    plugin = importlib.util.find_spec("jax_plugins.xla_cuda13") if importlib.util.find_spec("jax_plugins") else None
    if plugin is None:
        raise Unavailable("no CUDA compiler: `pip install --no-deps jax-cuda13-pjrt` in the version of jax")
    library = (Path(plugin.submodule_search_locations[0]) / "xla_cuda_plugin.so").read_bytes()
    found = library.find(b'device_description_str: "' + NAME)
    if found < 0:
        raise Unavailable("the CUDA plugin carries no description of an H200")
    text = library[library.rfind(b"\0", 0, found) + 1 : library.index(b"\0", found)].decode()
    described = {"topology_name": "", "topology": "1x1x1", "target_config": text}
    return topologies.get_topology_desc(platform="cuda", **described).devices[0]


def compile_for_h200(function: Callable, *arguments: Any) -> Any:
    """The compiled program, of pytrees of arrays or `jax.ShapeDtypeStruct`.

    Raises:
      Unavailable: no CUDA compiler here.
      jax.errors.JaxRuntimeError, ValueError: as the compiler or the lowering says.
    """
    place = SingleDeviceSharding(device())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    with _on_an_h200():
        return jax.jit(function).lower(*shapes).compile()


def lower_for_cuda(function: Callable, *arguments: Any) -> str:
    """The program as it goes to the CUDA compiler, which need not be here: it names the kernels that were chosen."""
    with _on_an_h200():
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def _on_an_h200() -> Any:
    from jax._src.mesh import AbstractDevice  # as in `kernels_pallas.aot`

    seen = AbstractDevice(device_kind="NVIDIA H200", num_cores=CORES, platform="gpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=seen))
