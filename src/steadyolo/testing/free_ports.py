"""Ports of this machine that nobody uses."""

from __future__ import annotations

import random
import socket
from contextlib import suppress


def free_ports(num: int) -> list[int]:
    """So many free ports, below those that the kernel gives to outgoing connections.

    A port from the kernel's own range could be taken by anybody's connection while its server is down; a client that
    tries to reach it again and again would sooner or later connect to itself.
    """
    found: set[int] = set()
    while len(found) < num:
        port = random.SystemRandom().randrange(10_240, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)
