"""Starts the processes of a run on this machine, passes signals on to them, and ends as they do."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not declared

from steadyolo.train.signals import STOP_SIGNALS

_LEAVING_S = 30.0  # what ranks may take to notice that one of them failed, and to finish what they write
_LOOK_EVERY_S = 0.05
_PARENT = "STEADYOLO_LAUNCHER"
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def launch(command: Sequence[str], *, num_ranks: int, request: bytes) -> int:
    """Run `command` in `num_ranks` processes of this machine, each of which reads `request` from its standard input.

    They meet through torchrun's environment variables, over the loopback interface. Stop signals are passed on. Returns
    the exit code of the run: rank 0's where it has one of its own, 1 where a process was killed.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is this process's
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME") or _loopback(),
        _PARENT: str(os.getpid()),
    }
    processes: list[subprocess.Popen[bytes]] = []
    with _passing_signals_to(processes):
        try:
            for rank in range(num_ranks):
                processes.append(_start(command, {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, request))
            return _wait(processes)
        finally:
            for process in processes:
                process.kill()  # those that have ended do not mind
                process.wait()


def end_with_launcher() -> None:
    """In a rank: be told to stop when the launcher dies, so that no rank outlives it. Elsewhere: nothing."""
    parent = os.environ.get(_PARENT)
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before it could be watched
        os.kill(os.getpid(), signal.SIGTERM)


def _start(command: Sequence[str], environment: Mapping[str, str], request: bytes) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
    with suppress(BrokenPipeError):  # it has ended already, which is seen later
        process.stdin.write(request)  # type: ignore[union-attr]
        process.stdin.close()  # type: ignore[union-attr]
    return process


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended; once one has failed, for a moment only."""
    ends_at = math.inf
    while None in (codes := [process.poll() for process in processes]) and time.monotonic() < ends_at:
        if any(codes):  # one has ended, and not with 0
            ends_at = min(ends_at, time.monotonic() + _LEAVING_S)
        time.sleep(_LOOK_EVERY_S)
    leader, *_ = codes
    if leader is not None and leader > 0:
        return leader
    return 0 if not any(codes) else 1


@contextmanager
def _passing_signals_to(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """While entered, this process's stop signals go to `processes` and end nothing here."""

    def pass_on(number: int, _: Any) -> None:
        for process in processes:
            process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS if _is_answered(number)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_answered(number: signal.Signals) -> bool:
    return number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN  # as in `StopRequest`


def _loopback() -> str:
    """Name of the interface that has 127.0.0.1."""
    interfaces = psutil.net_if_addrs().items()
    return next(
        (
            name
            for name, addresses in interfaces
            if any(address.family == socket.AF_INET and address.address == "127.0.0.1" for address in addresses)
        ),
        "lo",
    )
