"""How this process's allocator treats what a batch leaves behind."""

from __future__ import annotations

import ctypes
import platform
import resource
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's mallopt(3)
_MAPPED_FROM_BYTES = 32 << 20  # the most that glibc allows; kept in the heap, the largest ones leave gaps
_RETURNED_FROM_BYTES = 64 << 10
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


def arrange_freed_memory() -> None:
    """Keep what a batch frees for the next one, which needs as much; return it where the process's size is limited.

    By default most large tensors are mapped from and returned to the system, which clears every page of them anew: up
    to a tenth of a training step on a CPU. Kept, the process stays nearly as large as it was at its peak, in pieces
    between small things that last; where those count against a limit, larger tensors would soon find no room.
    """
    if _is_limited():
        _set_thresholds(_RETURNED_FROM_BYTES, trim=_RETURNED_FROM_BYTES)
    else:
        _set_thresholds(_MAPPED_FROM_BYTES, trim=-1)


def _is_limited() -> bool:
    """Whether the system counts what a process has mapped, not what it uses: by `ulimit`, or for all processes."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    try:
        is_strict = _OVERCOMMIT.read_text().strip() == "2"
    except OSError:
        is_strict = False
    return is_strict or any(limit != resource.RLIM_INFINITY for limit in limits)


def return_freed_memory() -> None:
    """Return what is free, and from now on what becomes free, to the system, where the allocator is glibc's."""
    _set_thresholds(_RETURNED_FROM_BYTES, trim=_RETURNED_FROM_BYTES)
    trim_freed_memory()


def trim_freed_memory() -> None:
    """Return what is free now, where the allocator is glibc's: others keep less. What becomes free later is kept."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _set_thresholds(mapped_from_bytes: int, *, trim: int) -> None:
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, mapped_from_bytes)
        mallopt(_M_TRIM_THRESHOLD, trim)
