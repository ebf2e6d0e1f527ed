"""Calls that must not take for ever: told apart from a machine that stands still."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class _Call:
    what: str
    limit_s: float
    for_s: float = 0.0


class Calls:
    """The calls into libraries that are under way. Their time is counted in beats of a thread beside them.

    Where all threads of a machine stand still, so does the count: a process that was suspended has no overdue calls.
    """

    def __init__(self) -> None:
        self._lock, self._under_way = threading.Lock(), set[_Call]()

    @contextmanager
    def limited(self, what: str, limit_s: float) -> Iterator[None]:
        """What is done in it is overdue after `limit_s`."""
        call = _Call(what, limit_s)
        with self._lock:
            self._under_way.add(call)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(call)

    def beat(self, passed_s: float) -> str | None:
        """`passed_s` are over: what is overdue now, if anything is."""
        with self._lock:
            for call in self._under_way:
                call.for_s += passed_s
            late = [call for call in self._under_way if call.for_s > call.limit_s]
        return f"{late[0].what} took longer than {late[0].limit_s:.1f} s" if late else None
