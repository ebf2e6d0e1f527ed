"""How this process's allocator treats what a batch leaves behind."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's mallopt(3)
_MAPPED_FROM_BYTES = 32 << 20  # the most that glibc allows; kept in the heap, the largest ones leave gaps


def keep_freed_memory() -> None:
    """Keep what a batch frees for the next one, which needs as much, where the allocator is glibc's.

    By default most large tensors are mapped from and returned to the system, which clears every page of them anew: up
    to a tenth of a training step on a CPU. Afterwards the process stays nearly as large as it was at its peak.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
    mallopt(_M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Return what has been freed so far to the system, where the allocator is glibc's."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
