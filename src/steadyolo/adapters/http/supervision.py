"""What systemd is told, where it started this process: ready, stopping, and that the event loop still turns."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

logger = logging.getLogger(__name__)


class Supervisor:
    """Speaks over the socket that `NOTIFY_SOCKET` names; where there is none, says nothing."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._watchdog_s = _whole(os.environ.get("WATCHDOG_USEC", "")) / 1e6

    async def ready(self) -> None:
        """Say that the server is ready; then, where a watchdog waits, that it lives, until cancelled."""
        self._tell("READY=1")
        while self._address and self._watchdog_s:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 3)

    def stopping(self) -> None:
        """Say that the server ends."""
        self._tell("STOPPING=1")

    def _tell(self, text: str) -> None:
        if self._address:
            address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                try:
                    out.sendto(text.encode(), address)
                except OSError as error:  # whoever listened there is gone, and requests are still to be answered
                    logger.warning("the supervisor at %s was not told %s: %s", self._address, text, error)


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
