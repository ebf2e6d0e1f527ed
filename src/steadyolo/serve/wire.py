"""How a front and its worker speak: frames of a small JSON header and raw bytes. Nothing is pickled."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from steadyolo.errors import DataLoss

if TYPE_CHECKING:
    import asyncio  # a worker, which must start fast, has no loop

_SIZES = struct.Struct("<II")  # bytes of the header and of the body
_LARGEST_HEADER_BYTES = 64 << 20  # outlines of hundreds of masks are in it
_LARGEST_BODY_BYTES = 1 << 30
_JOINED_BYTES = 64 << 10  # up to here one copy is cheaper than a second system call


@dataclass(frozen=True, slots=True)
class Message:
    """`header` is JSON-ready and has a `kind`; `body` is what JSON would only make larger."""

    header: dict[str, Any]
    body: bytes | bytearray | memoryview = field(default=b"", repr=False)

    @property
    def kind(self) -> str:
        return str(self.header["kind"])


def frames(message: Message) -> Iterable[bytes | bytearray | memoryview]:
    """The bytes of a message, in one piece where that is cheap."""
    header = json.dumps(message.header, separators=(",", ":")).encode()
    start = _SIZES.pack(len(header), len(message.body)) + header
    return [start + message.body] if len(message.body) <= _JOINED_BYTES else [start, message.body]


def send(connection: socket.socket, message: Message) -> None:
    """Returns when all of it is on its way. One thread at a time. Raises: OSError when the other side is gone."""
    for frame in frames(message):
        connection.sendall(frame)


def receive(connection: socket.socket) -> Message | None:
    """The next message, or None when the other side is gone. Raises: DataLoss for what is no message."""
    start = _exactly(connection, _SIZES.size)
    if start is None:
        return None
    num_header_bytes, num_body_bytes = _sizes(start)
    header, body = _exactly(connection, num_header_bytes), _exactly(connection, num_body_bytes)
    return None if header is None or body is None else _message(header, body)


async def receive_from(reader: asyncio.StreamReader) -> Message | None:
    """As `receive`, in an event loop."""
    try:
        num_header_bytes, num_body_bytes = _sizes(await reader.readexactly(_SIZES.size))
        header = await reader.readexactly(num_header_bytes)
        return _message(header, await reader.readexactly(num_body_bytes))
    except (EOFError, OSError):
        return None


def _exactly(connection: socket.socket, num_bytes: int) -> bytearray | None:
    data = bytearray(num_bytes)
    view, num_read = memoryview(data), 0
    while num_read < num_bytes:
        try:
            num_new = connection.recv_into(view[num_read:])
        except OSError:
            return None
        if not num_new:
            return None
        num_read += num_new
    return data


def _sizes(start: bytes | bytearray) -> tuple[int, int]:
    num_header_bytes, num_body_bytes = _SIZES.unpack(start)
    if num_header_bytes > _LARGEST_HEADER_BYTES or num_body_bytes > _LARGEST_BODY_BYTES:
        raise _broken(f"sizes of {num_header_bytes} and {num_body_bytes} bytes")
    return num_header_bytes, num_body_bytes


def _message(header: bytes | bytearray, body: bytes | bytearray) -> Message:
    try:
        values = json.loads(header)
    except ValueError as error:
        raise _broken(str(error)) from None
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise _broken("no kind")
    return Message(values, body)


def _broken(what: str) -> DataLoss:
    return DataLoss(f"what came over the socket is no message: {what}", remedy="start the process that sent it again")
