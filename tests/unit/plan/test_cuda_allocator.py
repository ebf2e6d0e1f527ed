"""The allocator's rules one by one, and what must hold for any sequence of requests."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.plan.cuda_allocator import MIB, Block, CachingAllocator, Usage, replay

UNIT = 512


@pytest.mark.parametrize(
    ("asked_bytes", "block_bytes", "reserved_bytes"),
    [
        (1, UNIT, 2 * MIB),
        (UNIT, UNIT, 2 * MIB),
        (UNIT + 1, 2 * UNIT, 2 * MIB),
        (1 * MIB, 1 * MIB, 2 * MIB),
        (1 * MIB + 1, 1 * MIB + UNIT, 20 * MIB),
        (10 * MIB - UNIT, 10 * MIB - UNIT, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # a rest of 1 MiB is not split off a large block
        (11 * MIB - UNIT, 11 * MIB - UNIT, 12 * MIB),
        (100 * MIB + 1, 100 * MIB + UNIT, 102 * MIB),
    ],
)
def test_one_request_on_an_empty_device(asked_bytes: int, block_bytes: int, reserved_bytes: int) -> None:
    allocator = CachingAllocator()
    block = allocator.allocate(asked_bytes)
    assert block is not None
    assert (block.num_bytes, allocator.allocated_bytes) == (block_bytes, block_bytes)
    assert allocator.reserved_bytes == reserved_bytes


def test_nothing_takes_nothing() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(0))
    assert allocator.peak_reserved_bytes == 0


def test_small_and_large_requests_share_no_segment() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(19 * MIB))
    allocator.allocate(UNIT)
    assert allocator.reserved_bytes == (20 + 2) * MIB


def test_smallest_block_that_fits_is_taken_and_the_lowest_among_equals() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(size * MIB) for size in (40, 12, 30, 12)]
    for block in blocks:
        allocator.free(block)
    taken = allocator.allocate(12 * MIB)
    assert taken is blocks[1]
    assert allocator.allocate(13 * MIB).address == blocks[2].address  # type: ignore[union-attr]


def test_rest_is_split_off_and_joined_again() -> None:
    allocator = CachingAllocator()
    first, second, third = (allocator.allocate(size * MIB) for size in (4, 5, 6))
    assert allocator.reserved_bytes == 20 * MIB
    allocator.free(first)
    allocator.free(third)  # joins the 5 MiB that were left
    assert allocator.allocate(11 * MIB).address == third.address  # type: ignore[union-attr]
    allocator.free(second)  # joins the first 4 MiB
    assert allocator.allocate(9 * MIB).address == first.address  # type: ignore[union-attr]
    assert allocator.reserved_bytes == 20 * MIB


def test_freed_memory_stays_reserved_until_the_cache_is_emptied() -> None:
    allocator = CachingAllocator()
    kept, freed = allocator.allocate(3 * MIB), allocator.allocate(50 * MIB)
    allocator.free(freed)
    assert allocator.reserved_bytes == 70 * MIB
    allocator.empty_cache()
    assert allocator.reserved_bytes == 20 * MIB, "a segment that is in use in part cannot be returned"
    allocator.free(kept)
    allocator.empty_cache()
    assert (allocator.reserved_bytes, allocator.peak_reserved_bytes) == (0, 70 * MIB)


def test_fragments_cost_a_segment_although_there_is_room() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    allocator.allocate(9 * MIB)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (19 * MIB, 40 * MIB)


def test_a_block_is_given_back_once() -> None:
    allocator = CachingAllocator()
    block = allocator.allocate(UNIT)
    allocator.free(block)
    with pytest.raises(ValueError, match="free already"):
        allocator.free(block)


def test_replay_counts_what_was_held_at_once() -> None:
    assert replay([(1, 30 * MIB), (1, 0), (2, 20 * MIB), (3, 12 * MIB)]) == Usage(32 * MIB, 42 * MIB)
    assert replay([]) == Usage(0, 0)


def test_replay_refuses_what_does_not_add_up() -> None:
    with pytest.raises(ValueError, match="held already"):
        replay([(1, UNIT), (1, UNIT)])
    with pytest.raises(KeyError):
        replay([(1, 0)])


SIZES = st.one_of(
    st.integers(1, 4 * UNIT),
    st.integers(1, 2 * MIB),
    st.integers(1 * MIB, 24 * MIB),
    st.sampled_from([UNIT, 1 * MIB, 10 * MIB, 20 * MIB]).flatmap(lambda n: st.integers(n - 1, n + 1)),
)
MOVES = st.lists(st.one_of(SIZES, st.just(0)), max_size=60)  # 0 gives back one of those held


@given(moves=MOVES, data=st.data())
def test_whatever_is_asked_for(moves: list[int], data: st.DataObject) -> None:
    allocator = CachingAllocator()
    held: list[tuple[Block, int]] = []
    peak = 0
    for asked_bytes in moves:
        if asked_bytes:
            block = allocator.allocate(asked_bytes)
            assert block is not None
            held.append((block, asked_bytes))
        elif held:
            allocator.free(held.pop(data.draw(st.integers(0, len(held) - 1)))[0])
        spans = sorted((block.address, block.address + block.num_bytes) for block, _ in held)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans)), "two blocks overlap"
        assert all(asked <= block.num_bytes <= asked + MIB + UNIT for block, asked in held)
        assert allocator.allocated_bytes == sum(block.num_bytes for block, _ in held)
        assert allocator.allocated_bytes <= allocator.reserved_bytes <= allocator.peak_reserved_bytes
        peak = max(peak, allocator.allocated_bytes)
    assert allocator.peak_allocated_bytes == peak
    for block, _ in held:
        allocator.free(block)
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0, "all neighbours have joined, so every segment is whole"
