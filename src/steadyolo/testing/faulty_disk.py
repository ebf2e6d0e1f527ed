"""System calls that watch a `LocalDisk`, fail it or kill its process at a chosen call."""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Operation = Literal["open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir"]
Fault = Literal["ENOSPC", "EIO", "short", "lying"]


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: the `nth` of its operation on a file of this name, counted from 1."""

    operation: Operation
    file: str
    nth: int

    def __str__(self) -> str:
        return f"{self.operation} {self.file} {self.nth}"


class WatchedCalls:
    """`os`, with the calls since `arm` listed in `calls`. Subclasses do harm in `meet` and `transfer`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._is_armed = False
        self._counts: Counter[tuple[Operation, str]] = Counter()
        self._paths: dict[int, Path] = {}

    def arm(self) -> None:
        """From now on calls are listed, counted and met."""
        self._is_armed = True

    def disarm(self) -> None:
        """From now on calls are neither listed nor met."""
        self._is_armed = False

    def meet(self, call: Call) -> None:
        """Called before each armed call."""

    def transfer(self, call: Call, fd: int, data: memoryview) -> int:
        """Do an armed write. Returns what the kernel would return."""
        return os.write(fd, data)

    def open(self, path: Path, flags: int, mode: int = 0o777, /) -> int:
        self._pass("open", path)
        fd = os.open(path, flags, mode)
        self._paths[fd] = path
        return fd

    def write(self, fd: int, data: memoryview, /) -> int:
        call = self._pass("write", self._paths[fd])
        return os.write(fd, data) if call is None else self.transfer(call, fd, data)

    def fsync(self, fd: int, /) -> None:
        self._pass("fsync", self._paths[fd])
        os.fsync(fd)

    def rename(self, src: Path, dst: Path, /) -> None:
        self._pass("rename", dst)
        os.rename(src, dst)

    def mkdir(self, path: Path, /) -> None:
        self._pass("mkdir", path)
        os.mkdir(path)

    def unlink(self, path: Path, /) -> None:
        self._pass("unlink", path)
        os.unlink(path)

    def rmdir(self, path: Path, /) -> None:
        self._pass("rmdir", path)
        os.rmdir(path)

    def _pass(self, operation: Operation, path: Path) -> Call | None:
        if not self._is_armed:
            return None
        self._counts[operation, path.name] += 1
        call = Call(operation, path.name, self._counts[operation, path.name])
        self.calls.append(call)
        self.meet(call)
        return call


class FailingCalls(WatchedCalls):
    """Fails the `nth` armed call of the given operations, counted from 0, or from it on all of them if `keeps_failing`.

    `short` takes half of the bytes, and fails the next call as a full disk does; `lying` takes half and claims all.
    """

    def __init__(
        self, operations: Container[Operation], nth: int, fault: Fault, *, keeps_failing: bool = False
    ) -> None:
        super().__init__()
        self.num_faults = 0
        self._operations = operations
        self._left = nth
        self._fault = fault
        self._keeps_failing = keeps_failing
        self._is_full = False

    def meet(self, call: Call) -> None:
        if self._is_full and call.operation == "write":
            self._is_full = self._keeps_failing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), call.file)
        if self._fault in {"ENOSPC", "EIO"} and self._is_hit(call):
            code = getattr(errno, self._fault)
            raise OSError(code, os.strerror(code), call.file)

    def transfer(self, call: Call, fd: int, data: memoryview) -> int:
        if self._fault in {"ENOSPC", "EIO"} or not self._is_hit(call):
            return os.write(fd, data)
        written = os.write(fd, data[: len(data) // 2])
        if self._fault == "lying":
            return len(data)
        self._is_full = True
        return written

    def _is_hit(self, call: Call) -> bool:
        if call.operation not in self._operations:
            return False
        self._left -= 1
        is_hit = self._left == -1 or (self._keeps_failing and self._left < 0)
        self.num_faults += is_hit
        return is_hit


class KillingCalls(WatchedCalls):
    """Kills this process with SIGKILL at `point`: `before <call>`, or `midway <call>` with half of a write done."""

    def __init__(self, point: str) -> None:
        super().__init__()
        self._point = point

    def meet(self, call: Call) -> None:
        if self._point == f"before {call}":
            os.kill(os.getpid(), signal.SIGKILL)

    def transfer(self, call: Call, fd: int, data: memoryview) -> int:
        if self._point == f"midway {call}":
            os.write(fd, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return os.write(fd, data)
