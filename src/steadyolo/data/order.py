"""The order in which samples are learned from, and the keys of their random draws: pure functions of a position.

A *position* counts samples from the start of the run: epoch x samples per epoch + offset. Nothing here depends on what
was drawn before, on the number of loader workers, or on where a run was resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from steadyolo.state.run_state import Cursor

_MASK = (1 << 64) - 1


def key(*parts: int) -> int:
    """A 64-bit key from whole numbers: equal parts give equal keys, different ones unrelated keys.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), chained over the parts.
    """
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = (mixed ^ (part & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _MASK
        mixed ^= mixed >> 31
    return mixed


@lru_cache(maxsize=4)  # a sample and its partners span two epochs at most
def _epoch_order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    # RandomState's stream is frozen by NumPy's compatibility policy; Generator's may change between releases.
    draws = np.random.RandomState([key(seed, epoch, 1) >> 32, key(seed, epoch, 1) & 0xFFFFFFFF])
    order = draws.permutation(num_samples).astype(np.int64)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=4)
def _epoch_places(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """Where each dataset index stands in an epoch: the inverse of its order."""
    places = np.empty(num_samples, np.int64)
    places[_epoch_order(seed, epoch, num_samples)] = np.arange(num_samples)
    return places


def share_of(positions: range, rank: int, count: int) -> range:
    """The part of a batch's `positions` that falls to process `rank` of `count`: even parts, in order; maybe none."""
    return positions[len(positions) * rank // count : len(positions) * (rank + 1) // count]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOrder:
    """The stream of dataset indices over all epochs of a run.

    `shuffle` False keeps the dataset's own order in each epoch (rectangular batches need it). Partners for mosaics come
    from a window of the stream that ends two batches before the sample, so that their decoded images are still at hand
    and, with several workers, already there.
    """

    seed: int
    num_samples: int
    batch_size: int
    num_batches: int  # batches in an epoch; the last one may be smaller
    shuffle: bool = True

    def index(self, position: int) -> int:
        """Dataset index of the sample at `position`, which may lie before the start of the run."""
        epoch, offset = divmod(position, self.num_samples)
        return int(_epoch_order(self.seed, epoch, self.num_samples)[offset]) if self.shuffle else offset

    def indices(self, positions: range) -> NDArray[np.int64]:
        """Dataset indices of consecutive positions, shape (len(positions),)."""
        parts, position = [], positions.start
        while position < positions.stop:
            epoch, offset = divmod(position, self.num_samples)
            count = min(self.num_samples - offset, positions.stop - position)
            order = _epoch_order(self.seed, epoch, self.num_samples) if self.shuffle else np.arange(self.num_samples)
            parts.append(order[offset : offset + count])
            position += count
        return np.concatenate(parts)

    def position_before(self, position: int) -> int:
        """The position in the epoch before at which the same dataset index stood."""
        epoch = position // self.num_samples - 1
        index = self.index(position)
        place = int(_epoch_places(self.seed, epoch, self.num_samples)[index]) if self.shuffle else index
        return epoch * self.num_samples + place

    def epoch_of(self, position: int) -> int:
        return position // self.num_samples

    def sample_key(self, position: int) -> int:
        """Key of all random draws of the sample at `position`: (seed, epoch, index)."""
        return key(self.seed, self.epoch_of(position), self.index(position), 2)

    def batch_key(self, cursor: Cursor) -> int:
        """Key of the draws that a batch makes as a whole, such as its size in multi-scale training, or dropout."""
        return key(self.seed, cursor.epoch, cursor.batch, 3)

    def share_key(self, cursor: Cursor, rank: int) -> int:
        """Key of the draws that process `rank` makes for its share of a batch, such as dropout. Rank 0: `batch_key`."""
        return key(self.seed, cursor.epoch, cursor.batch, 3, rank) if rank else self.batch_key(cursor)

    def positions(self, cursor: Cursor) -> range:
        """Positions of the samples of the batch at `cursor`."""
        first = cursor.batch * self.batch_size
        start = cursor.epoch * self.num_samples
        return range(start + first, start + min(first + self.batch_size, self.num_samples))

    @property
    def lookback(self) -> int:
        """Samples between the oldest possible partner and the sample itself."""
        return max(min(8 * self.batch_size, 1000), 3 * self.batch_size)

    def partner_positions(self, position: int) -> range:
        """Positions that the sample's mosaic partners are drawn from; never empty, may lie before the run's start."""
        return range(position - self.lookback, position - 2 * self.batch_size)
