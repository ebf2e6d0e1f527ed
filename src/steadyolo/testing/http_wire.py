"""Just enough of HTTP/1.1 to stand between a client and a server: heads, and bodies piece by piece."""

from __future__ import annotations

from asyncio import IncompleteReadError, StreamReader
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Literal, Self

_PIECE_BYTES = 64 * 1024
Framing = int | Literal["chunked", "until close"]  # how the end of a body is known; a number is its size in bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The first line of a message and its fields, in the order and the spelling in which they came."""

    line: str
    fields: tuple[tuple[str, str], ...] = ()

    @property
    def words(self) -> tuple[str, str, str]:
        """The parts of the first line: method, target and version, or version, status and reason."""
        first, _, rest = self.line.partition(" ")
        second, _, third = rest.partition(" ")
        return first, second, third

    def get(self, name: str) -> str:
        """The value of a field; empty where there is none."""
        return next((value for found, value in self.fields if found.lower() == name.lower()), "")

    def without(self, *names: str) -> Self:
        """The same head less some fields."""
        gone = {name.lower() for name in names}
        return replace(self, fields=tuple(field for field in self.fields if field[0].lower() not in gone))

    def with_field(self, name: str, value: str) -> Self:
        """The same head with one field set."""
        kept = self.without(name)
        return replace(kept, fields=(*kept.fields, (name, value)))

    def __bytes__(self) -> bytes:
        lines = [self.line, *(f"{name}: {value}" for name, value in self.fields), "", ""]
        return "\r\n".join(lines).encode("latin-1")


async def read_head(stream: StreamReader) -> Head | None:
    """The next message's head, or None when there is no next message."""
    try:
        raw = await stream.readuntil(b"\r\n\r\n")
    except IncompleteReadError:
        return None
    line, *fields = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = (field.partition(":") for field in fields)
    return Head(line, tuple((name, value.strip()) for name, _, value in pairs))


def request_framing(head: Head) -> Framing:
    """How the body of a request ends."""
    return "chunked" if "chunked" in head.get("Transfer-Encoding") else int(head.get("Content-Length") or 0)


def answer_framing(head: Head, method: str) -> Framing:
    """How the body of the answer to a request of `method` ends."""
    status = int(head.words[1])
    if method == "HEAD" or status in {204, 304} or status < 200:
        return 0
    if "chunked" in head.get("Transfer-Encoding"):
        return "chunked"
    return int(length) if (length := head.get("Content-Length")) else "until close"


async def read_body(stream: StreamReader, framing: Framing) -> AsyncIterator[bytes]:
    """The pieces of a body as they arrive, none of them empty. Raises: IncompleteReadError when it ends too early."""
    match framing:
        case "chunked":
            while size := int((await stream.readuntil(b"\r\n")).split(b";")[0], 16):
                yield await stream.readexactly(size)
                await stream.readexactly(2)
            while await stream.readuntil(b"\r\n") != b"\r\n":
                pass  # trailers
        case "until close":
            while piece := await stream.read(_PIECE_BYTES):
                yield piece
        case left:
            while left:
                piece = await stream.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise IncompleteReadError(b"", left)
                left -= len(piece)
                yield piece


def framed(piece: bytes, framing: Framing) -> bytes:
    """A piece of a body as it goes over the wire. An empty one ends the body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece
