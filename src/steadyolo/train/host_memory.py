"""How this process's allocator treats what a batch leaves behind."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names and numbers of glibc's mallopt(3)


def keep_freed_memory() -> None:
    """Keep what a batch frees for the next one, which needs as much, where the allocator is glibc's.

    By default each large tensor is mapped from and returned to the system, which clears every page of it anew: a tenth
    to a fifth of a training step on a CPU. Afterwards the process stays as large as it was at its peak.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
