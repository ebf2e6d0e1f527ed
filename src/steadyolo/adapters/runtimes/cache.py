"""Compiled graphs kept on disk. A cache: what cannot be read is compiled again, what cannot be written is not kept."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steadyolo.serve.served_model import ServedModel

LIMIT_BYTES = 4 << 30  # of a cache: models and shapes come and go
_SEAL = struct.Struct("<QI")  # number of bytes and their checksum, at the end: a torn file has none that fits


class CompiledGraphs:
    """What a runtime compiled of one version of one model, by everything that the result depends on."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder = folder / version

    def path(self, *depends_on: object) -> Path:
        """Where the graph that was compiled from these is, or would be."""
        digest = hashlib.sha256("\n".join(map(str, depends_on)).encode()).hexdigest()
        return self.folder / f"{digest[:20]}.blob"

    def read(self, path: Path) -> NDArray[np.uint8] | None:
        """The bytes that were written, mapped; None where there are none, or not all of them."""
        try:
            data = np.memmap(path, np.uint8, mode="c")
        except (OSError, ValueError):
            return None
        with suppress(OSError):
            os.utime(path)  # what is used stays longest
        content, seal = data[: -_SEAL.size], data[-_SEAL.size :].tobytes()
        if len(seal) != _SEAL.size or _SEAL.unpack(seal) != (len(content), zlib.crc32(content.data)):
            return None
        return np.asarray(content)

    def write(self, path: Path, content: bytes | memoryview) -> None:
        """Keep it; readers see all of it or nothing. Where the disk is full or read-only, nothing happens."""
        import tempfile  # loading takes as long as reading what is kept, which is the usual case

        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(prefix=".partial-", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.write(_SEAL.pack(len(content), zlib.crc32(content)))
                Path(partial).replace(path)
            except OSError:
                Path(partial).unlink(missing_ok=True)
            make_room(self.folder.parent, limit_bytes=LIMIT_BYTES)


def make_room(cache: Path, *, limit_bytes: int) -> None:
    """Remove what was not used for longest, of all versions in `cache`, until so much is left.

    What a process has mapped stays there for it. Raises: OSError.
    """
    files = [(path.stat(), path) for path in cache.rglob("*") if path.is_file() and not path.is_symlink()]
    over_bytes = sum(stat.st_size for stat, _ in files) - limit_bytes
    for stat, path in sorted(files, key=lambda one: one[0].st_mtime_ns):
        if over_bytes <= 0:
            return
        path.unlink(missing_ok=True)
        over_bytes -= stat.st_size


def cache_folder(model: ServedModel) -> Path:
    """Beside the model's files where that can be written, so that it is found by all; else the user's own cache."""
    beside = model.folder / "compiled"
    with suppress(OSError):
        beside.mkdir(exist_ok=True)
        if os.access(beside, os.W_OK):
            return beside
    from steadyolo.data.cache import cache_root  # late: beside the model is the usual case

    return cache_root(os.environ) / "compiled"


def library_cache(folder: Path) -> Path | None:
    """`folder`, made, for a library that keeps its own files; None where nothing can be written there."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return None
