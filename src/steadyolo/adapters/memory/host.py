"""Memory of this machine: what this process may come to hold, and what sets that bound.

Everything is read from files below `root`, so that a test can show it another machine.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from steadyolo.plan.room import DeviceMemory

_NO_LIMIT_BYTES = 2**60  # version 1 of control groups says "none" with a number near 2^63


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What this process holds: in memory, of its address space, and of what RLIMIT_DATA counts."""

    resident_bytes: int
    address_bytes: int
    data_bytes: int


def host_memory(root: Path = Path("/"), *, limits: Mapping[str, int] | None = None) -> DeviceMemory:
    """What this process may come to hold, with what it holds already.

    The bound is the tightest of what is available, its control groups and those above them, and its own resource
    limits (`limits`; the process's where None).
    """
    held = held_by_this_process(root)
    info = _table(root / "proc/meminfo")
    total_bytes = info.get("MemTotal", 0)
    left = {"MemAvailable": info.get("MemAvailable", total_bytes)}
    for group in group_folders(root):
        for limit_bytes, used_bytes in _group_limits(group):
            total_bytes = min(total_bytes or limit_bytes, limit_bytes)
            left[f"the limit of control group {group.name}"] = limit_bytes - used_bytes
    bounds = own_limits() if limits is None else limits
    if "RLIMIT_AS" in bounds:
        left["RLIMIT_AS"] = bounds["RLIMIT_AS"] - held.address_bytes
    if "RLIMIT_DATA" in bounds:
        left["RLIMIT_DATA"] = bounds["RLIMIT_DATA"] - held.data_bytes
    limit, left_bytes = min(left.items(), key=lambda one: one[1])
    return DeviceMemory(
        name="this machine",
        total_bytes=total_bytes,
        free_bytes=max(0, left_bytes) + held.resident_bytes,
        limit=f"by {limit}",
    )


def held_by_this_process(root: Path = Path("/")) -> Held:
    """What /proc says of this process."""
    status = _table(root / "proc/self/status")
    return Held(
        resident_bytes=status.get("VmRSS", 0),
        address_bytes=status.get("VmSize", 0),
        data_bytes=status.get("VmData", 0),
    )


def peak_resident_bytes(root: Path = Path("/")) -> int:
    """The most that this process ever held in memory."""
    return _table(root / "proc/self/status").get("VmHWM", 0)


def proportional_bytes(process: Path = Path("/proc/self")) -> int:
    """What a process holds in memory, with its share of what it shares with others; 0 for one that is gone."""
    rollup = _table(process / "smaps_rollup")
    return rollup.get("Pss", 0) or _table(process / "status").get("VmRSS", 0)


def own_limits() -> dict[str, int]:
    """The resource limits of this process that bound its memory."""
    names = ("RLIMIT_AS", "RLIMIT_DATA")
    soft = {name: resource.getrlimit(getattr(resource, name))[0] for name in names}
    return {name: limit for name, limit in soft.items() if limit != resource.RLIM_INFINITY}


def group_folders(root: Path) -> list[Path]:
    """The folders of this process's control groups and of the groups above them, as seen from here."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        hierarchy = root / "sys/fs/cgroup" / controllers
        group = Path(name.lstrip("/"))
        folders += [hierarchy / group, *(hierarchy / above for above in group.parents)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _group_limits(group: Path) -> Iterator[tuple[int, int]]:
    """The limits of one group, of version 2 or 1, each with what is used of it; idle file cache is not."""
    idle = _table(group / "memory.stat")
    for limit_name, used_name, idle_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.high", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit_bytes, used_bytes = _number(group / limit_name), _number(group / used_name)
        if limit_bytes is not None and limit_bytes < _NO_LIMIT_BYTES:
            yield limit_bytes, max(0, (used_bytes or 0) - idle.get(idle_name, 0))


def _table(path: Path) -> dict[str, int]:
    """The numbers of a file whose lines are `name: 12 kB` or `name 12`, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for name, *rest in (line.split() for line in lines if line.strip()):
        if rest and rest[0].isdecimal():
            found[name.rstrip(":")] = int(rest[0]) * (1024 if rest[1:] == ["kB"] else 1)
    return found


def _number(path: Path) -> int | None:
    try:
        word = path.read_text().strip()
    except OSError:
        return None
    return int(word) if word.isdecimal() else None
