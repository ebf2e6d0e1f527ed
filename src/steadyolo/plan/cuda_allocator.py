"""What torch's caching allocator takes from a CUDA device to serve a sequence of requests.

Source: c10/cuda/CUDACachingAllocator.cpp, the native backend with its default settings, for one stream. A request is
rounded to 512 bytes. Up to 1 MiB it is served from segments of 2 MiB, below 10 MiB from segments of 20 MiB, else from a
segment of its own, rounded to 2 MiB. The smallest free block that is large enough is taken, the lowest address among
equals, and what is left of it is split off where it is worth keeping. Freed neighbours join. Segments stay reserved
until the cache is emptied; here the device never runs out, so that happens on request only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MIB = 1024 * 1024

BLOCK_UNIT_BYTES = 512
LARGEST_SMALL_BYTES = 1 * MIB
SMALL_SEGMENT_BYTES = 2 * MIB
SHARED_BELOW_BYTES = 10 * MIB
SHARED_SEGMENT_BYTES = 20 * MIB
SEGMENT_UNIT_BYTES = 2 * MIB


class Block:
    """A piece of a segment, and its neighbours in it."""

    __slots__ = ("address", "after", "before", "is_free", "is_small", "num_bytes")

    def __init__(self, address: int, num_bytes: int, *, is_small: bool) -> None:
        self.address = address
        self.num_bytes = num_bytes
        self.is_small = is_small
        self.is_free = True
        self.before: Block | None = None
        self.after: Block | None = None


class CachingAllocator:
    """The allocator's state on an empty device of boundless size."""

    def __init__(self) -> None:
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        self._end = 0  # addresses are never used again
        self._small = _FreeBlocks()
        self._large = _FreeBlocks()

    def allocate(self, num_bytes: int) -> Block | None:
        """A block for `num_bytes`; none for nothing."""
        if num_bytes <= 0:
            return None
        num_bytes = _rounded(num_bytes, BLOCK_UNIT_BYTES)
        is_small = num_bytes <= LARGEST_SMALL_BYTES
        pool = self._small if is_small else self._large
        block = pool.take(num_bytes) or self._new_segment(num_bytes, is_small=is_small)
        rest = block.num_bytes - num_bytes
        if rest >= BLOCK_UNIT_BYTES if is_small else rest > LARGEST_SMALL_BYTES:
            pool.add(_split(block, num_bytes))
        block.is_free = False
        self.allocated_bytes += block.num_bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block

    def free(self, block: Block | None) -> None:
        """Give `block` back; it joins the free blocks beside it."""
        if block is None:
            return
        if block.is_free:
            raise ValueError(f"the block at {block.address} is free already")
        self.allocated_bytes -= block.num_bytes
        pool = self._small if block.is_small else self._large
        block.is_free = True
        if block.after is not None and block.after.is_free:
            pool.remove(block.after)
            _join(block, block.after)
        if block.before is not None and block.before.is_free:
            pool.remove(block.before)
            block = _join(block.before, block)
        pool.add(block)

    def empty_cache(self) -> None:
        """Return the segments that hold nothing to the device."""
        for pool in (self._small, self._large):
            for block in list(pool):
                if block.before is None and block.after is None:
                    pool.remove(block)
                    self.reserved_bytes -= block.num_bytes

    def _new_segment(self, num_bytes: int, *, is_small: bool) -> Block:
        block = Block(self._end, _segment_bytes(num_bytes), is_small=is_small)
        self._end += block.num_bytes
        self.reserved_bytes += block.num_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return block


@dataclass(frozen=True, slots=True)
class Usage:
    """The most that was held at once, and the most that was taken from the device for it."""

    allocated_bytes: int
    reserved_bytes: int


def replay(events: Iterable[tuple[int, int]]) -> Usage:
    """Serve `events`, each the name of an allocation and its bytes; no bytes (0) give it back.

    Raises KeyError for giving back what was never asked for, ValueError for a name that is in use.
    """
    allocator = CachingAllocator()
    held: dict[int, Block] = {}
    for name, num_bytes in events:
        if num_bytes == 0:
            allocator.free(held.pop(name))
            continue
        if name in held:
            raise ValueError(f"allocation {name} is held already")
        block = allocator.allocate(num_bytes)
        if block is not None:
            held[name] = block
    return Usage(allocator.peak_allocated_bytes, allocator.peak_reserved_bytes)


class _FreeBlocks:
    """Free blocks in the order in which they are tried: by size, then by address."""

    def __init__(self) -> None:
        self._order: list[tuple[int, int]] = []
        self._at: dict[int, Block] = {}

    def __iter__(self) -> Iterator[Block]:
        return iter(self._at.values())

    def add(self, block: Block) -> None:
        insort(self._order, (block.num_bytes, block.address))
        self._at[block.address] = block

    def remove(self, block: Block) -> None:
        del self._order[bisect_left(self._order, (block.num_bytes, block.address))]
        del self._at[block.address]

    def take(self, num_bytes: int) -> Block | None:
        index = bisect_left(self._order, (num_bytes, -1))
        return self._at.pop(self._order.pop(index)[1]) if index < len(self._order) else None


def _rounded(num_bytes: int, unit: int) -> int:
    return -(-num_bytes // unit) * unit


def _segment_bytes(num_bytes: int) -> int:
    if num_bytes <= LARGEST_SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if num_bytes < SHARED_BELOW_BYTES:
        return SHARED_SEGMENT_BYTES
    return _rounded(num_bytes, SEGMENT_UNIT_BYTES)


def _split(block: Block, num_bytes: int) -> Block:
    """Cut `block` to `num_bytes`. Returns the rest, which is free."""
    rest = Block(block.address + num_bytes, block.num_bytes - num_bytes, is_small=block.is_small)
    rest.before, rest.after = block, block.after
    if block.after is not None:
        block.after.before = rest
    block.after, block.num_bytes = rest, num_bytes
    return rest


def _join(first: Block, second: Block) -> Block:
    """Make neighbours one block, `first`."""
    first.num_bytes += second.num_bytes
    first.after = second.after
    if second.after is not None:
        second.after.before = first
    return first
