"""Millions of numbers as text are read as `json.loads` reads them, and others are answered in the meantime."""

from __future__ import annotations

import asyncio
import json
import time
from array import array
from typing import Any

import numpy as np
import pytest

from steadyolo.adapters.http.large_json import read_json

NUMBERS = np.random.default_rng(0).random(3 * 200 * 300, np.float32)


def plain(value: Any) -> Any:
    """Arrays as lists."""
    if isinstance(value, array):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("shape", [(-1,), (1, 3, 200, 300), (1, 10_000, 3)], ids=["flat", "rows", "small rows"])
def test_it_is_read_as_json_is(shape: tuple[int, ...], indent: int | None) -> None:
    data = np.round(NUMBERS[: 30_000 if len(shape) == 3 else None], 3).reshape(-1, *shape[1:])
    asked = {"id": "a]b[", "inputs": [{"name": "images", "shape": [1, 3], "data": data.tolist(), "parameters": {}}]}
    text = json.dumps(asked, indent=indent).encode()
    given = asyncio.run(read_json(text))
    np.testing.assert_array_equal(np.asarray(given["inputs"][0].pop("data"), np.float32), data)
    assert {**given, "inputs": [{**asked["inputs"][0], "data": 0}]} == {
        "id": "a]b[",
        "inputs": [{"name": "images", "shape": [1, 3], "data": 0, "parameters": {}}],
    }


def row(*ends: str) -> bytes:
    """A long row of ones, between two words."""
    return (ends[0] + "1," * 30_000 + ends[1]).encode()


@pytest.mark.parametrize(
    "text",
    [
        row("[", "]"),
        row("[", "1"),
        row("[", "1]]"),
        row("[", "NaN]"),
        row("[", '"1"]'),
        row("[", "true]"),
        row("[", "{}]"),
        row("[", "1 1]"),
        row('{"id": "[', '1]"}'),
        row("[,", "1]"),
        row("[", "1" + "0" * 5_000 + "]"),
        b"[" + b"[]," * 400_000 + b"[]]",
        b"[" * 100_000,
        b'"' + b"a" * 2_000_000 + b'"',
        b"]" * 10,
        b"",
    ],
)
def test_what_is_no_json_or_too_much_is_refused(text: bytes) -> None:
    with pytest.raises((ValueError, OverflowError, RecursionError)):
        asyncio.run(read_json(text))


@pytest.mark.parametrize("value", [[], {}, 1, "a", [1, "a"], {"a": [{"b": "x" * 300}]}, [["a"] * 100], None])
def test_small_things_stay_as_they_are(value: Any) -> None:
    assert plain(asyncio.run(read_json(json.dumps(value).encode()))) == value


def test_others_get_their_turn() -> None:
    text = json.dumps({"data": NUMBERS.tolist() * 2}).encode()

    async def longest_wait_s(read: Any) -> float:
        waits = [0.0]

        async def tick() -> None:
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0)
                waits.append(time.perf_counter() - before)

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        await read
        await asyncio.sleep(0)
        ticking.cancel()
        return max(waits)

    async def at_once() -> Any:
        return json.loads(text)

    in_pieces_s = min(asyncio.run(longest_wait_s(read_json(text))) for _ in range(3))
    at_once_s = asyncio.run(longest_wait_s(at_once()))
    assert in_pieces_s < at_once_s / 4, (in_pieces_s, at_once_s)
