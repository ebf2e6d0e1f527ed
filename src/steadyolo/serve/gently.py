"""Work beside requests that gives way to them, where the system allows to take the priority back afterwards."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LAST = 19
_CAN_RAISE = 1 << 23  # CAP_SYS_NICE
_NUM_TRIES, _TRY_AGAIN_S = 5, 0.12
_AUTOGROUP = Path("/proc/self/autogroup")


def step_back(niceness: int) -> None:
    """Let this process come after others by so much for good, and its session where it is the first one of it.

    Where Linux groups processes by session, niceness counts within one only, and all sessions begin with equal shares:
    the session's own has to be lowered too (sched(7), "The autogroup feature"). What may not be lowered stays.
    """
    if niceness <= 0:
        return
    with suppress(OSError):  # a filter of system calls; a model is not refused for that
        os.nice(niceness)  # added to what the server was started with
    is_first = os.getsid(0) == os.getpid()
    for _ in range(_NUM_TRIES if is_first and _AUTOGROUP.exists() else 0):
        try:
            _AUTOGROUP.write_text(str(niceness), encoding="ascii")
        except BlockingIOError:  # one such change in a tenth of a second is what a user may make
            time.sleep(_TRY_AGAIN_S)
        except OSError:
            return  # without it the process is as near to others as its niceness makes it
        else:
            return


@contextmanager
def gently() -> Iterator[None]:
    """The calling thread, and all that it starts meanwhile, come after the others; afterwards they are as those are.

    On Linux niceness is a thread's own and is inherited: a runtime's threads that are made while a graph is compiled
    would stay behind for good. Where a process may not raise a priority again, nothing is lowered.
    """
    mine, usual = threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0)
    if usual >= _LAST or not _may_return_to(usual):
        yield
        return
    before = _threads()
    os.setpriority(os.PRIO_PROCESS, mine, _LAST)
    try:
        yield
    finally:
        for thread in (mine, *(_threads() - before)):
            with suppress(OSError):  # it ended
                os.setpriority(os.PRIO_PROCESS, thread, usual)


def _may_return_to(niceness: int) -> bool:
    least = resource.getrlimit(resource.RLIMIT_NICE)[0] if hasattr(resource, "RLIMIT_NICE") else 0
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        held = int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16)
        return bool(held & _CAN_RAISE) or 20 - niceness <= least
    return False


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}
