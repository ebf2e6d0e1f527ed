"""Brings requests to workers: one queue, bounded in length and time; what a worker loses is tried once more."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from steadyolo.errors import SteadyError
from steadyolo.serve.admission import Admission
from steadyolo.serve.requests import Request, lost, replaced
from steadyolo.serve.service import BadImage, Overloaded
from steadyolo.serve.slot import Slot
from steadyolo.serve.wire import Message

_NUM_LOSSES = 2  # a request that two workers ended with gets no third
_numbers = itertools.count(1 << 32)  # apart from those of loads


class Dispatcher:
    """`route` names the engine for a model and version as things stand now; None where there is none."""

    def __init__(
        self, slots: Sequence[Slot], route: Callable[[str, str | None], str | None], admission: Admission
    ) -> None:
        self._slots, self._route, self._admission = slots, route, admission
        self._queue: deque[Request] = deque()
        self._num_bytes = 0
        self._num_open = 0
        self.num_fallbacks, self.num_refused, self.num_lost, self.num_retried = 0, 0, 0, 0

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def num_running(self) -> int:
        return sum(len(slot.outstanding) for slot in self._slots)

    @property
    def num_open(self) -> int:
        """Accepted and not answered."""
        return self._num_open

    def is_used(self, key: str) -> bool:
        """Is anything that was accepted still to be computed with that engine?"""
        return any(request.key == key for slot in self._slots for request in slot.outstanding.values()) or any(
            self._route(request.name, request.version) == key for request in self._queue
        )

    async def ask(
        self, name: str, version: str | None, kind: str, asked: dict[str, Any], body: Any, *, timeout_s: float
    ) -> tuple[Message, Request]:
        """The worker's reply. Raises: Overloaded at once, or what `Service.detect` may."""
        self._admit(name, version, len(body), timeout_s)
        loop = asyncio.get_running_loop()
        deadline_s = time.monotonic() + timeout_s  # the clock that workers share
        request = Request(next(_numbers), name, version, kind, asked, body, deadline_s, loop.create_future())
        request.timer = loop.call_later(timeout_s, self._expire, request)
        self._num_open += 1
        self._num_bytes += len(body)
        self._queue.append(request)
        try:
            self.pump()
            message = await request.answer
            self.num_fallbacks += request.is_by_fallback
            return message, request
        finally:
            self._num_open -= 1
            self._num_bytes -= len(body)
            request.timer.cancel()
            if not request.key and request in self._queue:  # whoever asked went away
                self._queue.remove(request)

    def pump(self) -> None:
        """Send what can be sent."""
        if not self._queue:
            return
        for request in list(self._queue):
            key = self._route(request.name, request.version)
            if key is None:
                self._queue.remove(request)
                request.refuse(replaced(request.name, request.version))
                continue
            able = self.able(key)
            free = [slot for slot in able if slot.has_room(request)]
            if free:
                self._queue.remove(request)
                min(free, key=lambda slot: len(slot.outstanding)).send(request, key)
            elif request.num_losses and able:
                return  # it goes alone: others would keep its worker busy for ever
            elif not any(slot.has_room(request) for slot in self._slots):
                return

    def able(self, key: str) -> list[Slot]:
        """The workers that have this engine warm; the fallback's only where no other has."""
        warm = [slot for slot in self._slots if key in slot.loaded and not slot.why_out]
        return [slot for slot in warm if not slot.place.is_fallback] or warm

    def take_back(self, requests: list[Request]) -> None:
        """A worker ended with these."""
        for request in reversed(requests):
            request.num_losses += 1
            request.key = ""
            if request.answer.done():
                continue
            if request.num_losses >= _NUM_LOSSES:
                self.num_lost += 1
                request.refuse(
                    BadImage(
                        "two workers ended while they computed this", remedy="send another image, or report this one"
                    )
                )
            else:
                self.num_retried += 1
                self._queue.appendleft(request)

    def refuse_all(self, error: SteadyError) -> None:
        """Nobody is left to compute what waits."""
        while self._queue:
            self._queue.popleft().refuse(error)

    def _admit(self, name: str, version: str | None, num_bytes: int, timeout_s: float) -> None:
        key = self._route(name, version)
        able = self.able(key) if key else []
        paces = [slot.pace.mean_s for slot in able if slot.pace.mean_s]
        retry_after_s = self._admission.refusal_s(
            num_ahead=len(self._queue) + sum(len(slot.outstanding) for slot in able),
            num_bytes=self._num_bytes + num_bytes,
            each_s=sum(paces) / len(paces) if paces else 0.0,
            num_workers=len(able),
            timeout_s=timeout_s,
        )
        if retry_after_s is not None:
            self.num_refused += 1
            raise Overloaded("too many requests wait already", retry_after_s=retry_after_s)

    def _expire(self, request: Request) -> None:
        if request in self._queue:
            self._queue.remove(request)
        if request.key or request.num_losses:
            self.num_lost += 1
            request.refuse(lost("its time is over"))
        else:
            request.refuse(Overloaded("its time was over before it was begun", retry_after_s=0.5))
