"""Whether memory that grows from epoch to epoch will reach its limit before the run ends."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

_LEAST_EPOCHS = 4  # fewer are no series
_NEWEST_EPOCHS = 20  # older ones say nothing about the pace of today
_LEAST_STEP_SHARE = 0.001  # of the limit, an epoch: less is noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Memory rises by `step_bytes` an epoch, and at this pace reaches its limit after `num_epochs_left` more."""

    step_bytes: int
    num_epochs_left: int


def foreseen_growth(held_bytes: Sequence[int], *, limit_bytes: int, num_epochs_left: int) -> Growth | None:
    """The growth that would reach `limit_bytes` within the epochs that are left; None where none would.

    `held_bytes` is what was held at the close of each epoch of this process, oldest first. The first epoch is left out:
    it is the one that builds up. The pace is the median over all pairs of epochs, so that one that stands out, either
    way, raises no alarm; and memory that levelled off grows no more, so the newest half must have grown too.
    """
    series = held_bytes[1:][-_NEWEST_EPOCHS:]
    if len(series) < _LEAST_EPOCHS:
        return None
    pace = min(_median_slope(series), _median_slope(series[len(series) // 2 :]))
    if pace <= limit_bytes * _LEAST_STEP_SHARE:
        return None
    reached_after = max(0, math.ceil((limit_bytes - series[-1]) / pace))
    return Growth(step_bytes=round(pace), num_epochs_left=reached_after) if reached_after <= num_epochs_left else None


def _median_slope(series: Sequence[int]) -> float:
    """Theil and Sen's estimate: the median of the slopes between any two."""
    return statistics.median((series[b] - series[a]) / (b - a) for a, b in combinations(range(len(series)), 2))
