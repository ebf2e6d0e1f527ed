"""Who is let in, and when the others shall come back."""

from __future__ import annotations

import pytest

from steadyolo.serve.admission import Admission, Pace

USUAL = Admission(num_queued=10, num_bytes=1000, latency_s=1.0, margin=1.0)


@pytest.mark.parametrize(
    ("ahead", "each_s", "workers", "timeout_s", "is_refused"),
    [
        (0, 99.0, 1, 0.1, False),  # nobody ahead: a pace of bad times keeps nobody out
        (1, 0.0, 1, 1.0, False),  # nothing measured yet
        (9, 0.1, 1, 5.0, False),
        (10, 0.05, 1, 5.0, True),  # the queue is full
        (9, 0.2, 1, 5.0, True),  # two seconds are too long
        (9, 0.2, 4, 5.0, False),  # but four workers share them
        (3, 0.1, 1, 0.3, True),  # this one has less time
    ],
)
def test_who_is_let_in(ahead: int, each_s: float, workers: int, timeout_s: float, is_refused: bool) -> None:
    refusal_s = USUAL.refusal_s(num_ahead=ahead, num_bytes=1, each_s=each_s, num_workers=workers, timeout_s=timeout_s)
    assert (refusal_s is not None) is is_refused
    if refusal_s is not None:
        assert 0.05 <= refusal_s <= 60


def test_bytes_are_bounded() -> None:
    assert USUAL.refusal_s(num_ahead=1, num_bytes=1001, each_s=0.01, num_workers=1, timeout_s=1) is not None


def test_whoever_comes_back_when_told_finds_room() -> None:
    ahead, each_s = 9, 0.2
    refusal_s = USUAL.refusal_s(num_ahead=ahead, num_bytes=1, each_s=each_s, num_workers=1, timeout_s=9)
    assert refusal_s is not None
    left = ahead - int(refusal_s / each_s + 1e-9)
    assert USUAL.refusal_s(num_ahead=left, num_bytes=1, each_s=each_s, num_workers=1, timeout_s=9) is None


def test_a_pace_is_what_passes_between_answers_of_a_busy_worker() -> None:
    pace = Pace()
    pace.begins(10.0)
    pace.finishes(10.5, is_idle=False)
    assert pace.mean_s == 0.5
    for number in range(100):
        pace.finishes(10.6 + number / 10, is_idle=False)
    assert pace.mean_s == pytest.approx(0.1, rel=0.01)


def test_idle_time_is_no_pace() -> None:
    pace = Pace()
    pace.begins(0.0)
    pace.finishes(0.1, is_idle=True)
    pace.begins(100.0)
    pace.finishes(100.1, is_idle=True)
    assert pace.mean_s == pytest.approx(0.1)
    pace.begins(200.0)
    pace.stops()
    pace.finishes(900.0, is_idle=True)
    assert pace.mean_s == pytest.approx(0.1)
