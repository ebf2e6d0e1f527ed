"""Bodies of requests, read within limits of size and time, unpacked where they are packed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.requests import Request

from steadyolo.adapters.http.limits import HttpLimits, Room
from steadyolo.adapters.http.problems import Refused, the_header

_EITHER_HEADER = 47  # zlib: a gzip header or one of its own
_PIECE_BYTES = 256 << 10  # unpacked at once: others get their turn in between


class Bodies:
    """Reads bodies for all requests of a front."""

    def __init__(self, limits: HttpLimits) -> None:
        self.room = Room(limits.bodies_bytes)
        self._limits = limits

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, unpacked. Its bytes count until the end of the block.

        Raises: Refused for one that is too large, too slow or not what it says; Overloaded where there is no room.
        """
        self._check_length(request)
        unpack = _unpacking(the_header(request, "content-encoding") or "")
        with self.room.share() as take:
            data = bytearray()
            try:
                async with asyncio.timeout(self._limits.body_timeout_s):
                    async for piece in unpack(request.stream()):
                        if len(data) + len(piece) > self._limits.body_bytes:
                            raise self._too_large()
                        take(len(piece))
                        data += piece
            except TimeoutError:
                raise Refused(
                    408,
                    "body_late",
                    f"the body did not come within {self._limits.body_timeout_s:g} s",
                    remedy="send a smaller picture, or over a faster line",
                    headers={"connection": "close"},
                ) from None
            body = bytes(data)
            del data  # or there would be two of it for as long as it is worked on
            yield body

    def _check_length(self, request: Request) -> None:
        length = request.headers.get("content-length")
        if length is not None and length.isdigit() and int(length[:20]) > self._limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> Refused:
        return Refused(
            413,
            "too_large",
            f"the body is larger than {self._limits.body_bytes} bytes",
            remedy="send a smaller picture, or fewer at once",
        )


Unpack = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]


def _unpacking(encoding: str) -> Unpack:
    match encoding.strip().lower():
        case "" | "identity":
            return _as_it_is
        case "gzip" | "x-gzip" | "deflate":
            return _unpacked
    raise Refused(
        415,
        "content_encoding",
        f"bodies packed with {encoding[:40]!r} are not read",
        remedy="use gzip or deflate, or send it as it is",
        headers={"accept-encoding": "gzip, deflate"},
    )


async def _as_it_is(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in stream:
        yield chunk


async def _unpacked(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pieces of bounded size, so that the caller can stop before a small body has become a large one."""
    unpacker = zlib.decompressobj(_EITHER_HEADER)
    try:
        async for chunk in stream:
            while chunk:
                if unpacker.eof:
                    raise zlib.error("more bytes follow its end")
                yield unpacker.decompress(chunk, _PIECE_BYTES)
                chunk = unpacker.unconsumed_tail or unpacker.unused_data
                await asyncio.sleep(0)
        yield unpacker.flush()  # what the last piece had no room for: less than one match is long
        if not unpacker.eof:
            raise zlib.error("it ends too early")
    except zlib.error as error:
        raise Refused(
            400, "bad_encoding", f"the packed body cannot be read: {error}", remedy="send it whole, or not packed"
        ) from None
