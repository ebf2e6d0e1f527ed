"""`RunLock`: one process at a time works on a run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from steadyolo.errors import UserError


class RunLock:
    """The right to write in a run's `folder`, held from `acquire` until `release` or the end of the process.

    The kernel keeps it, on the file `lock`: whatever ends the process frees it. Processes forked from the holder do not
    hold it, so that loader workers which outlive a killed run do not keep it from being resumed.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._fd: int | None = None

    def acquire(self) -> Self:
        """Take the lock. Raises: UserError naming the holder, or the reason why the file cannot be locked."""
        if self._fd is not None:
            raise self._refusal()
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise _unusable(error) from error
        try:
            _lock(fd)
        except OSError as error:
            os.close(fd)
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise self._refusal() from error
            raise _unusable(error) from error
        self._fd = fd
        os.register_at_fork(after_in_child=self._forget)
        self._record(fd)
        return self

    def release(self) -> None:
        """Give the lock back. Not holding it is not an error. The file stays: removing it would race with others."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self if self._fd is not None else self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _forget(self) -> None:
        """In a forked child: let go of the inherited descriptor, which leaves the parent's lock in place."""
        with suppress(OSError):
            self.release()

    def _record(self, fd: int) -> None:
        """Say who holds it. A full disk must not keep a run from going on, so that this may fail."""
        holder = {"pid": os.getpid(), "host": socket.gethostname()}
        with suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)

    def _refusal(self) -> UserError:
        try:
            holder = json.loads(self._path.read_bytes())
            who = f"process {holder['pid']} on {holder['host']}"
            stop = f"stop it with `kill {holder['pid']}` there, or wait for its end"
        except (OSError, ValueError, KeyError, TypeError):
            who, stop = "another process", "stop that process or wait for its end"
        return UserError(f"{self._path.parent} is in use by {who}", remedy=f"{stop}; then try again")


def _lock(fd: int) -> None:
    """Lock at once, or after the moment that `steadyolo runs ls` takes to look. Raises: OSError while it is held."""
    for wait_s in (0.02, 0.1, None):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if wait_s is None:
                raise
            time.sleep(wait_s)
        else:
            return


def _unusable(error: OSError) -> UserError:
    return UserError(f"the run cannot be locked: {error}", remedy="use a run folder that this user may write to")
