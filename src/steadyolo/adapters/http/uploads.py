"""The files of a multipart body, read in pieces, so that others get their turn in between."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadyolo.adapters.http.problems import Refused

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_PIECE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Upload:
    """One picture of a multipart body."""

    name: str
    data: bytes


async def read_uploads(body: bytes, content_type: str, num_most: int) -> list[Upload]:
    """In their order. Raises: Refused for a body that is malformed, torn or empty, or has too many or no files."""
    from python_multipart.exceptions import MultipartParseError
    from python_multipart.multipart import MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    files = _Files(num_most)
    try:
        if not 0 < len(boundary) <= 200:
            raise ValueError("its boundary is missing, or too long")
        parser = MultipartParser(boundary, files.callbacks())
        for at in range(0, len(body), _PIECE_BYTES):
            parser.write(body[at : at + _PIECE_BYTES])
            await asyncio.sleep(0)
        if not files.is_whole:
            raise ValueError("it ends too early")
    except (MultipartParseError, ValueError) as error:
        raise Refused(
            400,
            "bad_multipart",
            f"the multipart body cannot be read: {error}"[:300],
            remedy=f"send 1 to {num_most} files and nothing else: curl -F file=@picture.jpg",
        ) from None
    if not files.uploads:
        raise Refused(400, "empty", "the multipart body holds no file", remedy="send one: curl -F file=@picture.jpg")
    return files.uploads


class _Files:
    """What the parser tells, as it comes. Raises: ValueError for a part that is no file, or one too many."""

    def __init__(self, num_most: int) -> None:
        self.uploads: list[Upload] = []
        self.is_whole = False
        self._num_most = num_most
        self._name, self._header, self._value = "", bytearray(), bytearray()
        self._pieces: list[bytes] = []

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header,
            "on_header_value": self._on_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._check,
            "on_part_data": self._on_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.uploads) >= self._num_most:
            raise ValueError(f"it has more than {self._num_most} files")
        self._name, self._pieces = "", []

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        from python_multipart.multipart import parse_options_header

        if self._header.lower() == b"content-disposition":
            name = parse_options_header(bytes(self._value))[1].get(b"filename")
            if name is not None:
                self._name = name.decode("utf-8", "replace") or f"file {len(self.uploads)}"
        self._header, self._value = bytearray(), bytearray()

    def _check(self) -> None:
        if not self._name:
            raise ValueError("one of its parts is no file")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        self.uploads.append(Upload(self._name, b"".join(self._pieces)))

    def _finish(self) -> None:
        self.is_whole = True
