"""The S3 server that benches store in: SeaweedFS on loopback, as the tests start it. This is no bench by itself.

It takes time from the same cores as what is measured, which a store in real life does not. So it is started with a
niceness of 10 above the bench's, and `cpu_s` tells how much of the processor it took.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import side_by_side as bench

if str(bench.REPO) not in sys.path:
    sys.path.insert(0, str(bench.REPO))

from tests.servers.seaweed import ADMIN, SeaweedServer, aws_environment

NICENESS = 10


@contextmanager
def store_server(folder: Path) -> Iterator[SeaweedServer]:
    """A server with nothing in it, all of it in `folder`; its credentials are in the environment until it ends."""
    shutil.rmtree(folder, ignore_errors=True)
    before = signal.signal(signal.SIGTERM, _leave)  # it would outlive a bench that is ended
    server = SeaweedServer(folder)
    try:
        with aws_environment(ADMIN):
            start(server)
            yield server
    finally:
        server.stop()
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)


def start(server: SeaweedServer) -> None:
    """Start `server`, for the first time or again, behind everything else."""
    # Niceness is a thread's own on Linux, and a process has that of the thread that starts it.
    with ThreadPoolExecutor(1, initializer=lambda: os.nice(NICENESS)) as pool:
        pool.submit(server.start).result()


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has taken so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _leave(*_: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)
