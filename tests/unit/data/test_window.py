from __future__ import annotations

import multiprocessing
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.data.window import DecodedWindow

CHILDREN = multiprocessing.get_context("fork")  # as loader workers are


def image(number: int, height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray[Any, Any]:
    """An image all of whose pixels follow from its number, so that a mixture of two is seen."""
    return np.full((height, width, channels), number % 251, np.uint8)


def window(num_slots: int, *, shared: bool) -> DecodedWindow:
    return DecodedWindow(num_slots, max_image_bytes=6 * 5 * 3, shared=shared)


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_put_is_got_until_its_slot_is_taken(shared: bool) -> None:
    held = window(4, shared=shared)
    assert held.get(0, 7) is None
    held.put(0, 7, image(7), (60, 50))
    found = held.get(0, 7)
    assert found is not None
    assert np.array_equal(found[0], image(7))
    assert found[1] == (60, 50)
    assert held.get(0, 8) is None, "an image of another index"
    assert held.get(1, 7) is None
    assert held.get(-4, 7) is not None, "positions before the start of the run have slots too"
    held.put(4, 9, image(9), (1, 1))
    assert held.get(0, 7) is None
    assert held.get(4, 9) is not None


@pytest.mark.parametrize("shape", [(6, 5, 3), (5, 6, 3), (2, 2, 1), (1, 1, 3)])
def test_shapes_come_back(shape: tuple[int, int, int]) -> None:
    held = window(2, shared=True)
    given = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    held.put(1, 3, given, (9, 8))
    found = held.get(1, 3)
    assert found is not None
    assert found[0].shape == shape
    assert np.array_equal(found[0], given)


def test_an_image_that_is_too_large_or_not_of_bytes_is_not_kept() -> None:
    held = window(2, shared=True)
    held.put(0, 3, image(3, height=7), (7, 5))
    assert held.get(0, 3) is None
    held.put(0, 3, np.zeros((2, 2, 3), np.float32), (2, 2))  # type: ignore[arg-type]
    assert held.get(0, 3) is None
    held.put(0, 3, image(3), (6, 5))
    held.put(0, 4, image(4, height=7), (7, 5))
    assert held.get(0, 3) is not None, "what does not fit takes nobody's place"


def test_a_shared_image_is_a_copy() -> None:
    held = window(1, shared=True)
    held.put(0, 3, image(3), (6, 5))
    found = held.get(0, 3)
    assert found is not None
    found[0][:] = 99
    again = held.get(0, 3)
    assert again is not None
    assert np.array_equal(again[0], image(3))


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(-30, 30), st.integers(0, 20)), max_size=60))
def test_both_kinds_hold_the_newest_image_of_each_slot(num_slots: int, puts: list[tuple[int, int]]) -> None:
    own, shared = window(num_slots, shared=False), window(num_slots, shared=True)
    expected: dict[int, int] = {}
    for position, index in puts:
        expected[position % num_slots] = index
        for held in (own, shared):
            held.put(position, index, image(index), (index, index))
    for slot in range(num_slots):
        for index in range(21):
            for held in (own, shared):
                found = held.get(slot, index)
                assert (found is not None) == (expected.get(slot) == index)
                assert found is None or found[1] == (index, index)


def _work(held: DecodedWindow, worker: int, seconds: float, found: Any) -> None:
    rng = np.random.default_rng(worker)
    deadline_s, num_hits, num_torn = time.monotonic() + seconds, 0, 0
    while time.monotonic() < deadline_s:
        position, index = int(rng.integers(0, 8)), int(rng.integers(0, 40))
        got = held.get(position, index)
        if got is None:
            held.put(position, index, image(index), (index, index + 1))
        else:
            num_hits += 1
            num_torn += not (np.array_equal(got[0], image(index)) and got[1] == (index, index + 1))
    found.put((num_hits, num_torn))


def test_writers_and_readers_in_several_processes_never_see_a_mixture() -> None:
    held, found = window(8, shared=True), CHILDREN.SimpleQueue()
    workers = [CHILDREN.Process(target=_work, args=(held, number, 0.6, found)) for number in range(4)]
    for worker in workers:
        worker.start()
    results = [found.get() for _ in workers]
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == 0
    assert sum(hits for hits, _ in results) > 100, "they hardly met, so this proves nothing"
    assert sum(torn for _, torn in results) == 0


def test_locks_are_needed() -> None:
    """Without them readers meet images that are half of one and half of another."""

    class NoLock:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    held = DecodedWindow(1, max_image_bytes=400 * 400 * 3, shared=True)
    held._locks = [NoLock()] * len(held._locks)  # type: ignore[list-item]
    writer = CHILDREN.Process(target=_write_for_ever, args=(held,), daemon=True)
    writer.start()
    try:
        deadline_s = time.monotonic() + 20.0
        torn = False
        while not torn and time.monotonic() < deadline_s:
            for index in (1, 2):
                got = held.get(0, index)
                torn = torn or (got is not None and len(np.unique(got[0])) > 1)
        assert torn
    finally:
        writer.kill()
        writer.join()


def _write_for_ever(held: DecodedWindow) -> None:
    while True:
        for index in (1, 2):
            held.put(0, index, image(index, 400, 400), (1, 1))
