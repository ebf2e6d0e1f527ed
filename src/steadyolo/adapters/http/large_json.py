"""JSON with millions of numbers, read in pieces, so that others get their turn in between.

A thread would not help: `json.loads` keeps the interpreter until it is done. So long rows of numbers are read by
themselves, a piece at a time, and the little that is left at once.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
from array import array
from typing import Any

_ROW_BYTES = 256  # an array of numbers that is at least so long is read by itself
_PIECE_BYTES = 32 << 10  # takes less than a millisecond
_REST_BYTES = 1 << 20  # takes some milliseconds
_NUM_IN_A_TURN = 500  # of arrays
_BEGINNINGS, _NUMBERS = frozenset(b"-0123456789"), frozenset({int, float})


def floats(numbers: list[Any]) -> array[float]:
    """Numbers of JSON as FP32. Raises: ValueError, OverflowError for what is none, or too large."""
    if not all(type(one) in _NUMBERS for one in numbers):
        raise ValueError("some are no numbers")
    converted = array("f", numbers)
    if not math.isfinite(sum(converted)):
        raise ValueError("some are too large for FP32")
    return converted


async def read_json(text: bytes) -> Any:
    """As `json.loads`, but for long rows of numbers, which become FP32 arrays.

    Raises: ValueError for what is no JSON, or has more than 1 MiB beside such rows; OverflowError, RecursionError.
    """
    mark = secrets.token_hex(8)  # that nobody could have sent
    rest, at, num_seen = bytearray(), 0, 0
    rows: list[array[float]] = []
    while (end := text.find(b"]", at)) >= 0:
        start = text.rfind(b"[", at, end) + 1
        if start and end - start >= _ROW_BYTES and _begins_row(text[start : start + 64]):
            rest += text[at : start - 1] + f'{{"{mark}":{len(rows)}}}'.encode()
            rows.append(await _row(text, start, end))
        else:
            rest += text[at : end + 1]
        at, num_seen = end + 1, num_seen + 1
        if len(rest) > _REST_BYTES:
            break
        if num_seen % _NUM_IN_A_TURN == 0:
            await asyncio.sleep(0)
    rest += text[at : at + _REST_BYTES + 1]
    if len(rest) > _REST_BYTES:
        raise ValueError(f"more than {_REST_BYTES} bytes are no long rows of numbers")

    def with_row(given: dict[str, Any]) -> Any:
        return rows[given[mark]] if mark in given else given

    return json.loads(bytes(rest), parse_constant=_refuse, object_hook=with_row)


def _begins_row(text: bytes) -> bool:
    text = text.lstrip()
    return bool(text) and text[0] in _BEGINNINGS


async def _row(text: bytes, at: int, end: int) -> array[float]:
    row = array("f")
    while at <= end:
        comma = text.find(b",", min(at + _PIECE_BYTES, end), end)
        until = comma if comma >= 0 else end
        numbers = json.loads(b"[" + text[at:until] + b"]", parse_constant=_refuse)
        if not numbers:
            raise ValueError("a row of numbers has a gap")
        row.extend(floats(numbers))
        at = until + 1
        await asyncio.sleep(0)
    return row


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
