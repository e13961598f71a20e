"""What made a result: the code, the libraries, the hardware. Recorded beside results, never part of an identity."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorstore")


@cache
def code() -> dict[str, Any]:
    """Digest of the library's source, the git commit where there is one, and the versions of what it runs on."""
    root = Path(__file__).resolve().parents[1]
    text = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        text.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"source": text.hexdigest()[:16], "commit": commit, "python": platform.python_version(), **versions}


def processor() -> str:
    """The CPU's model name, or its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def hardware() -> dict[str, Any]:
    """Platform, kind and number of devices, and the host's usable cores, on which a CPU's rounding depends."""
    import jax

    devices = jax.devices()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cores": cores,
        "processor": processor(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
