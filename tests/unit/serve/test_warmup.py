"""When times are flat, and which batches pay."""

from __future__ import annotations

import pytest

from steadyolo.serve.warmup import is_flat, paying_buckets, warm


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([], False),
        ([1, 1], False),  # too few to tell
        ([1, 1, 1], True),
        ([9, 1, 1, 1], True),  # the first is slow, then flat at once
        ([9, 3, 1.5, 1], False),  # still getting faster
        ([9, 3, 1.1, 1, 1.1], True),
        ([1, 1, 1, 1.3], False),
        ([9, 8, 7, 6, 5, 4, 3, 2], False),
        ([9, 1, 1.4, 1, 1.3, 1, 1.4, 1.2, 1.3], True),  # noise around a middle that settled
        ([9, 9, 9, 9, 1, 1.4, 1, 1.3], False),  # settled only just now
    ],
)
def test_flat(seconds: list[float], expected: bool) -> None:
    assert is_flat(seconds) is expected


class Clock:
    def __init__(self, seconds: list[float]) -> None:
        self.now_s, self.seconds = 0.0, iter(seconds)

    def __call__(self) -> float:
        return self.now_s

    def run(self) -> None:
        self.now_s += next(self.seconds)


def test_warming_ends_when_times_are_flat() -> None:
    clock = Clock([5.0, 1.0, 1.0, 1.0, 99.0])
    warmth = warm(clock.run, limit_s=60, clock=clock)
    assert warmth.seconds == (5.0, 1.0, 1.0, 1.0)
    assert warmth.is_flat
    assert warmth.usual_s == 1.0


def test_warming_ends_after_its_time() -> None:
    clock = Clock([2.0**-number for number in range(99)])
    warmth = warm(clock.run, limit_s=1.6, clock=clock)
    assert not warmth.is_flat
    assert len(warmth.seconds) == 3


def test_warming_runs_once_at_least() -> None:
    clock = Clock([7.0])
    assert warm(clock.run, limit_s=0, clock=clock).seconds == (7.0,)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0}, (1,)),
        ({1: 1.0, 2: 2.0, 4: 4.0}, (1,)),  # two cores: nothing gained
        ({1: 1.0, 2: 1.2, 4: 2.0, 8: 4.0}, (1, 2, 4)),
        ({1: 1.0, 2: 2.0, 4: 2.0}, (1, 4)),
        ({1: 1.0, 2: 1.9}, (1,)),  # too little
    ],
)
def test_batches_that_pay(seconds: dict[int, float], expected: tuple[int, ...]) -> None:
    assert paying_buckets(seconds) == expected
