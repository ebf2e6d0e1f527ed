"""How much memory this process has in use, and what of it can be given back."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Of physical memory, files that are mapped included."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES


def give_back() -> None:
    """Let the system have what was freed. A worker keeps it for its next picture otherwise (`spawning`)."""
    with suppress(AttributeError):  # another C library than glibc keeps less
        ctypes.CDLL(None).malloc_trim(0)
