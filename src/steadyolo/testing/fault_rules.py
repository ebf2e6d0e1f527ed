"""`Rule`: a fault, the requests that it is meant for, and how often it happened."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

from steadyolo.testing.network_faults import NEED_A_BODY, Fault


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for. `target` is the path and the query, decoded."""

    method: str
    target: str


class Rule:
    """A fault, the requests that it is meant for, and how often it happened."""

    def __init__(self, fault: Fault, *, method: str, key: str, times: int | None) -> None:
        self.fault = fault
        self._method = method
        self._key = key
        self._left = times
        self._num_hits = 0
        self._changed = threading.Condition()
        self._line_free_at_s = 0.0  # by the loop's clock: when the bytes that were let through have passed

    @property
    def num_hits(self) -> int:
        """How often the fault happened."""
        with self._changed:
            return self._num_hits

    def wait(self, num_hits: int = 1, *, timeout_s: float = 30.0) -> None:
        """Return once it happened so often. Raises: TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._num_hits >= num_hits, timeout_s):
                raise TimeoutError(f"{self.fault} happened {self._num_hits} times in {timeout_s:g} s, not {num_hits}")

    def clear(self) -> None:
        """From now on it happens no more."""
        with self._changed:
            self._left = 0

    def takes(self, request: Request) -> bool:
        """Whether it is to happen to this request, which uses up one of its times."""
        if self._method not in {"", request.method} or self._key not in request.target:
            return False
        if isinstance(self.fault, NEED_A_BODY) and request.method != "GET":
            return False
        with self._changed:
            if self._left == 0:
                return False
            if self._left is not None:
                self._left -= 1
            return True

    def happened(self) -> None:
        """Count it."""
        with self._changed:
            self._num_hits += 1
            self._changed.notify_all()

    async def let_pass(self, num_bytes: int, bytes_per_s: float) -> None:
        """Wait until so many bytes have passed, after those that came before them."""
        now_s = asyncio.get_running_loop().time()
        self._line_free_at_s = max(now_s, self._line_free_at_s) + num_bytes / bytes_per_s
        await asyncio.sleep(self._line_free_at_s - now_s)
