"""Connections with limits that uvicorn's lack: of heads, of time to send them, of time to read an answer.

Checked with uvicorn 0.54. To be removed when uvicorn limits heads and slow clients itself.
"""

from __future__ import annotations

import asyncio
import http
import json
from asyncio import TimerHandle
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from steadyolo.adapters.http.limits import HttpLimits
from steadyolo.adapters.http.problems import Problem, retry_after

_MAX_HEAD_BYTES = 32 << 10
_AFTER_BODY_S = 5.0  # the application notices a late body first, and says so; this is for what it does not read
_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
_HEAD_TOO_LARGE = Problem(431, "head_too_large", f"the head has more than {_MAX_HEAD_BYTES} bytes", "send less")
_NO_HTTP = Problem(400, "bad_http", "this is no HTTP request", "send HTTP/1.1")
_UPGRADE = Problem(400, "upgrade", "a request with a body cannot change the protocol", "send HTTP/1.1 without Upgrade")
_FIRST_REQUEST_S = 1.0  # how long a connection that was accepted may still send its request once the server ends


def connections_within(limits: HttpLimits) -> type[HttpToolsProtocol]:
    """A protocol for `uvicorn.Config(http=…)` that keeps to these limits."""
    return type("Limited", (_Limited,), {"limits": limits})


class _Limited(HttpToolsProtocol):
    limits: ClassVar[HttpLimits]

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._deadline: TimerHandle | None = None  # of the part of a request that is awaited
        self._stall: TimerHandle | None = None  # of the client reading its answer
        self._head_bytes = 0
        self._is_in_body = False
        self._wrong = _NO_HTTP  # what is told where the parser does not go on
        self._waits_since_s = self.loop.time()  # for a request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self._has_room():
            self._refuse(Problem(503, "overloaded", "too many connections", "send it again later", retry_after(1.0)))
        else:
            self._expect(self.limits.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        if self._stall is not None:
            self._stall.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if not self._is_in_body:
            self._head_bytes += len(data)
            if self._deadline is None:
                self._expect(self.limits.head_timeout_s)
        super().data_received(data)
        if not self._is_in_body and self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > _MAX_HEAD_BYTES:
            self._wrong = _HEAD_TOO_LARGE
        elif self.parser.should_upgrade() and any(name in _BODY_HEADERS for name, _ in self.headers):
            self._wrong = _UPGRADE
        if self._wrong is not _NO_HTTP:
            raise ValueError(self._wrong.message)  # the parser reads no further, and `send_400_response` is called
        self._is_in_body, self._head_bytes = True, 0
        self._expect(self.limits.body_timeout_s + _AFTER_BODY_S)
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # what follows would not be read as HTTP

    def on_message_complete(self) -> None:
        self._is_in_body, self._head_bytes = False, 0
        self._expect(None)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._wrong)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._waits_since_s = self.loop.time()
        self._watch_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # it reads its answer still
            wait_s = self.timeout_keep_alive
            self.timeout_keep_alive_task = self.loop.call_later(wait_s, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """A request may be on its way on a connection that was accepted and sent none yet, or half of one."""
        if self.cycle is None or self._head_bytes:
            self.loop.call_later(_FIRST_REQUEST_S, super().shutdown)
        else:
            super().shutdown()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _has_room(self) -> bool:
        """Where all places are taken, whoever has waited for longest without a whole request gives up its own."""
        others = [one for one in self.connections if one is not self and not one.transport.is_closing()]
        if len(others) < self.limits.num_connections:
            return True
        waiting = [one for one in others if isinstance(one, _Limited) and not one._is_answering]
        if waiting:
            min(waiting, key=lambda one: one._waits_since_s).transport.close()
        return bool(waiting)

    def _expect(self, within_s: float | None) -> None:
        """The next part of a request has to be whole within this time; None: nothing is awaited."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if within_s is None else self.loop.call_later(within_s, self._late)

    def _late(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._is_in_body:
            self.transport.abort()
        elif self._is_answering:
            self._expect(self.limits.head_timeout_s)  # half of the next request, while this one is computed
        elif self._head_bytes:
            limit_s = self.limits.head_timeout_s
            self._refuse(Problem(408, "head_late", f"no whole request came within {limit_s:g} s", "send it again"))
        else:
            self.transport.close()

    def _watch_reading(self) -> None:
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes and self._stall is None:
            self._stall = self.loop.call_later(self.limits.stall_timeout_s, self._check_reading, left_bytes)

    def _check_reading(self, before_bytes: int) -> None:
        self._stall = None
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes and left_bytes >= before_bytes:
            self.transport.abort()
        else:
            self._watch_reading()

    def _refuse(self, problem: Problem) -> None:
        if self.pipeline or (self._is_answering and (not self._is_in_body or self.cycle.response_started)):
            self.transport.close()  # an earlier request is computed: this would be taken for its answer
            return
        error = {"message": problem.message, "remedy": problem.remedy, "code": problem.code}
        body = json.dumps({"error": error}).encode()
        lines = [f"HTTP/1.1 {problem.status} {http.HTTPStatus(problem.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in problem.headers.items()]
        lines += ["content-type: application/json", f"content-length: {len(body)}", "connection: close", "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()
