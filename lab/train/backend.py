"""What must be set before jax is imported, and the compilation cache.

A CPU is used as several devices of one thread each where a sweep has several runs: each trains runs of its own, which
is faster than all cores on one small matrix product. The flags say nothing to an accelerator.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path


def configure(runs: int, cache: Path | None = None, float64: bool = False) -> None:
    """Prepares this process for `runs` runs.

    Args:
      cache: where compiled programs are kept between processes.
      float64: whether the models compute in float64.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # jax may be imported by now; XLA reads its flags when the first device is asked for.
    if "xla_force_host_platform_device_count" not in flags and min(runs, cores) > 1:
        flags += f" --xla_force_host_platform_device_count={min(runs, cores)} --xla_cpu_multi_thread_eigen=false"
        os.environ["XLA_FLAGS"] = flags.strip()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    if float64:
        jax.config.update("jax_enable_x64", True)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")  # it does without
