"""Starts worker processes. Light to import: a front starts its worker before it imports anything else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What a picture frees is kept for the next one, which needs as much: given back, every page is cleared anew, a quarter
# of a picture's time. Variables of glibc's allocator, in bytes: the largest that it keeps, and how much in the end.
# Whoever sets them otherwise has a reason.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
WORKER = (sys.executable, "-m", "steadyolo.cli.serve_worker")


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker process, and this side of the socket to it. It ends itself when the socket is closed."""

    process: subprocess.Popen[bytes]
    connection: socket.socket


def spawn(
    *,
    device: str = "cpu",
    command: Sequence[str] = WORKER,
    environment: Mapping[str, str] | None = None,
    niceness: int = 0,
    ahead: Mapping[str, object] | None = None,
) -> Spawned:
    """Start a worker for a device: `cpu`, `cuda:N`, or the name of a MIG instance.

    `ahead` are the arguments of `Ahead.begin`: what it will be asked to load first, as far as that is known now.
    """
    ours, theirs = socket.socketpair()
    package = str(Path(__file__).parents[2])  # where this package was imported from
    process = subprocess.Popen(
        [*command, str(theirs.fileno()), str(niceness), *([json.dumps(ahead)] if ahead else [])],
        stdin=subprocess.DEVNULL,
        stdout=2,  # a library that prints does not speak for the front
        pass_fds=[theirs.fileno()],
        env={
            **_KEPT_MEMORY,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
            "CUDA_VISIBLE_DEVICES": visible(device),
            "OPENBLAS_NUM_THREADS": "1",  # NumPy multiplies little here, and its threads cost a start 50 ms
            **(environment or {}),
        },
        start_new_session=True,  # a signal to the front is the front's to answer
    )
    theirs.close()
    return Spawned(process, ours)


def visible(device: str) -> str:
    """What a worker for `device` may see of the machine's GPUs: the others' faults are not its own."""
    return "" if device == "cpu" else device.removeprefix("cuda:")


def device_inside(device: str) -> str:
    """How a worker names its device, of which it sees no other."""
    return "cpu" if device == "cpu" else "cuda:0"
