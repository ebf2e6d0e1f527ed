"""`FaultProxy`: stands before an S3 server on this machine and does to its clients what networks and services do."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Coroutine, Iterable
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from steadyolo.testing.fault_rules import Request, Rule
from steadyolo.testing.free_ports import free_ports
from steadyolo.testing.http_wire import Head, answer_framing, framed, read_body, read_head, request_framing
from steadyolo.testing.network_faults import (
    Answer,
    Bandwidth,
    ErrorPage,
    Fault,
    Flipped,
    Latency,
    LostAnswer,
    Reset,
    Silence,
    Truncated,
)

_HOST = "127.0.0.1"
_MAX_HEAD_BYTES = 1024 * 1024


class FaultProxy:
    """Passes requests on as they are, its own address in `Host` included, which signatures cover.

    Of the rules that match a request, all latencies and bandwidths apply, and the oldest of the others. Connections to
    the server are made for each request, so that it may be restarted. Use it in a `with`.
    """

    def __init__(self, server_port: int) -> None:
        self.port = free_ports(1)[0]
        self.requests: list[Request] = []  # all that came, in their order
        self._server_port = server_port
        self._rules: tuple[Rule, ...] = ()
        self._writers: set[StreamWriter] = set()
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)

    @property
    def endpoint(self) -> str:
        """What a client takes for the server's address."""
        return f"http://{_HOST}:{self.port}"

    def inject(self, fault: Fault, *, method: str = "", key: str = "", times: int | None = None) -> Rule:
        """Let `fault` happen to requests of `method` with `key` in their path or query; `times` times, or for good."""
        rule = Rule(fault, method=method, key=key, times=times)
        self._rules = (*self._rules, rule)
        return rule

    def clear(self) -> None:
        """No more faults. Who waits for an answer that never comes goes on waiting, as in a real network."""
        rules, self._rules = self._rules, ()
        for rule in rules:
            rule.clear()

    def go_down(self) -> None:
        """Reset every connection and refuse new ones."""
        self._do(self._close())

    def come_up(self) -> None:
        """Listen again, on the same port."""
        self._do(self._listen())

    def __enter__(self) -> Self:
        self._thread.start()
        self.come_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, _HOST, self.port, limit=_MAX_HEAD_BYTES)

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for writer in tuple(self._writers):
            _reset(writer)
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Answer a client's requests until one of us ends the connection."""
        self._writers.add(writer)
        try:
            while (head := await read_head(reader)) is not None:
                exchange = _Exchange(head, reader, writer, self._rules)
                self.requests.append(exchange.request)
                if not await exchange.run(self._server_port):
                    break
        except (OSError, EOFError, asyncio.CancelledError):  # a cancelled task ends here: nobody else waits for it
            _reset(writer)
        finally:
            self._writers.discard(writer)
            writer.close()


class _Exchange:
    """One request of a client, and what becomes of it."""

    def __init__(self, head: Head, reader: StreamReader, writer: StreamWriter, rules: Iterable[Rule]) -> None:
        method, target, _ = head.words
        self.request = Request(method, unquote(target))
        self._head = head
        self._reader = reader
        self._writer = writer
        line = [rule for rule in rules if isinstance(rule.fault, Latency | Bandwidth)]
        others = [rule for rule in rules if rule not in line]
        self._line = [rule for rule in line if rule.takes(self.request)]
        self._rule = next((rule for rule in others if rule.takes(self.request)), None)

    async def run(self, server_port: int) -> bool:
        """Returns whether the connection may be used for another request. Raises: OSError, EOFError for a reset."""
        for rule in self._line:
            if isinstance(rule.fault, Latency):
                await asyncio.sleep(rule.fault.delay_s)
            rule.happened()
        if self._head.get("Expect"):
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        match self._rule and self._rule.fault:
            case Silence():
                return await self._hang()
            case Reset(is_midway=False):
                self._happened()
                raise ConnectionResetError
            case Answer(is_committed=False) as answer:
                async for _ in self._body():
                    pass
                return await self._say(answer)
        reader, writer = await asyncio.open_connection(_HOST, server_port, limit=_MAX_HEAD_BYTES)
        try:
            await self._forward(writer)
            return await self._give_back(reader)
        finally:
            writer.close()

    async def _forward(self, server: StreamWriter) -> None:
        """Send the request to the server."""
        framing = request_framing(self._head)
        server.write(bytes(self._head.without("Expect")))
        is_cut = framing != 0 and self._rule is not None and isinstance(self._rule.fault, Reset)
        left = framing // 2 if isinstance(framing, int) else 1
        async for piece in self._body():
            if is_cut and len(piece) >= left:
                server.write(framed(piece[:left], framing))
                await server.drain()
                self._happened()
                raise ConnectionResetError
            left -= len(piece)
            server.write(framed(piece, framing))
            await server.drain()
        server.write(framed(b"", framing))

    async def _give_back(self, server: StreamReader) -> bool:
        """Send the server's answer to the client. Returns whether another request may follow."""
        answer = await read_head(server)
        if answer is None:
            raise ConnectionResetError
        framing = answer_framing(answer, self.request.method)
        body = self._throttled(read_body(server, framing))
        if self._rule is not None:
            return await self._spoil(answer, b"".join([piece async for piece in body]), self._rule.fault)
        self._writer.write(bytes(answer))
        async for piece in body:
            self._writer.write(framed(piece, framing))
            await self._writer.drain()
        self._writer.write(framed(b"", framing))
        await self._writer.drain()
        return framing != "until close"

    async def _spoil(self, answer: Head, body: bytes, fault: Fault) -> bool:
        """Do to an answer what the fault says. Returns whether another request may follow."""
        middle = len(body) // 2
        match fault:
            case LostAnswer(is_reset=False):
                return await self._hang()
            case LostAnswer():
                self._happened()
                raise ConnectionResetError
            case Answer():
                return await self._say(fault)
            case Reset():
                await self._write(answer, body, middle)
                raise ConnectionResetError
            case Truncated() if body:
                await self._write(answer, body, middle)
                return False
            case Flipped() if body:
                body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
                await self._write(answer, body)
            case ErrorPage(page) if body:
                await self._write(answer.with_field("Content-Type", "text/html"), page)
            case _:
                raise ValueError(f"{fault} cannot happen to the answer {answer.line}, which has no body")
        return True

    async def _say(self, answer: Answer) -> bool:
        line = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"
        await self._write(Head(line, answer.fields), answer.body)
        return True

    async def _write(self, answer: Head, body: bytes, stop_at: int | None = None) -> None:
        """Write an answer with its size, and the part of its body before `stop_at`. This is a fault happening."""
        self._happened()  # before the client can tell
        head = answer.without("Transfer-Encoding").with_field("Content-Length", str(len(body)))
        self._writer.write(bytes(head) + (b"" if self.request.method == "HEAD" else body[:stop_at]))
        await self._writer.drain()

    async def _hang(self) -> bool:
        """Leave the client without an answer until it goes away."""
        self._happened()
        while await self._reader.read(_MAX_HEAD_BYTES):
            pass
        return False

    def _body(self) -> AsyncIterator[bytes]:
        return self._throttled(read_body(self._reader, request_framing(self._head)))

    async def _throttled(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            for rule in self._line:
                if isinstance(rule.fault, Bandwidth):
                    await rule.let_pass(len(piece), rule.fault.bytes_per_s)
            yield piece

    def _happened(self) -> None:
        if self._rule is not None:
            self._rule.happened()


def _reset(writer: StreamWriter) -> None:
    """End a connection with RST, as a machine that crashed or a firewall does."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
