"""When a session is warm: its times are flat, and its answers are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_NUM_RUNS = 3  # the least that can tell; the slow one, with every box, came before them
_CLOSE_SHARE = 0.15  # the last three are within this of the fastest: flat at once, on a machine that is quiet
_GROUP, _DRIFT_SHARE = 4, 0.10  # on one that is not: the medians of the last two groups are this close


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmth:
    """How a shape was warmed: seconds of each run, and whether they were flat at the end of it."""

    seconds: tuple[float, ...]
    is_flat: bool

    @property
    def usual_s(self) -> float:
        """What a run takes when warm."""
        return _median(self.seconds[-3:]) if self.seconds else 0.0


def is_flat(seconds: Sequence[float]) -> bool:
    """True when one more run would not be faster than the last ones.

    Either the last three are within 15 % of the fastest of all, or the medians of the last four and of the four before
    differ by at most 10 %: where others use the machine, single times scatter, and only their middle settles.
    """
    if len(seconds) < _NUM_RUNS:
        return False
    if max(seconds[-3:]) <= (1 + _CLOSE_SHARE) * min(seconds):
        return True
    if len(seconds) < 2 * _GROUP:
        return False
    last, before = _median(seconds[-_GROUP:]), _median(seconds[-2 * _GROUP : -_GROUP])
    return abs(last - before) <= _DRIFT_SHARE * min(last, before)


def warm(run: Callable[[], object], *, limit_s: float, clock: Callable[[], float]) -> Warmth:
    """Run until times are flat, or for `limit_s`; at least once."""
    begun_s, seconds = clock(), list[float]()
    while True:
        before_s = clock()
        run()
        seconds.append(clock() - before_s)
        if is_flat(seconds) or clock() - begun_s >= limit_s:
            return Warmth(seconds=tuple(seconds), is_flat=is_flat(seconds))


def paying_buckets(seconds: dict[int, float], *, gain_share: float = 0.1) -> tuple[int, ...]:
    """The batch sizes worth forming, smallest first, given what a batch of each size takes.

    A larger one pays when each image of it takes at least `gain_share` less than in the best smaller one.
    """
    paying: list[int] = []
    for num_images in sorted(seconds):
        each_s = seconds[num_images] / num_images
        if not paying or each_s <= (1 - gain_share) * seconds[paying[-1]] / paying[-1]:
            paying.append(num_images)
    return tuple(paying)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
