"""Files that are whole or absent, and documents that carry the digest of themselves."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lab.errors import UserError


def write_beside(path: Path, content: bytes) -> None:
    """Write `content` to a file beside `path`, then rename it there. UserError when the disk is full."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with full_disk_in_one_line(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def seal(content: Any) -> bytes:
    """JSON document of `content` with its sha256; every byte of it is determined by the content."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps({"sha256": digest, "content": content}, indent=1) + "\n").encode()


def unseal(document: bytes) -> Any:
    """Content of a sealed document; ValueError when any bit of it differs from what `seal` wrote."""
    parsed = json.loads(document)
    if not isinstance(parsed, dict) or "content" not in parsed or seal(parsed["content"]) != document:
        raise ValueError("digest does not match")
    return parsed["content"]


@contextlib.contextmanager
def full_disk_in_one_line(path: Path) -> Iterator[None]:
    """Turn an error that says that the disk is full, also one from inside TensorStore, into a UserError."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            advice = "nothing of it was written; free some space and run again"
            raise UserError(f"no space left on the disk of {path}: {advice}") from error
        raise


def one_line(error: BaseException) -> str:
    """The first line of a library's message, for use inside one of ours."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as an npz that `numpy.load` reads; names may hold slashes, bfloat16 becomes float32."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                portable = array if array.dtype.kind in "biufcU" else array.astype(np.float32)
                np.lib.format.write_array(member, np.asarray(portable))
    write_beside(path, packed.getvalue())
