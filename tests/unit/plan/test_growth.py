from __future__ import annotations

import pytest

from steadyolo.plan.growth import Growth, foreseen_growth

MIB = 2**20


def grown(first: int, step: int, count: int) -> list[int]:
    return [first, *(first + step * i for i in range(count))]


def test_steady_growth_that_reaches_the_limit_is_foreseen() -> None:
    series = grown(1000 * MIB, 50 * MIB, 5)
    assert foreseen_growth(series, limit_bytes=1500 * MIB, num_epochs_left=10) == Growth(
        step_bytes=50 * MIB, num_epochs_left=6
    )


@pytest.mark.parametrize(
    ("series", "limit", "left"),
    [
        (grown(1000, 50, 5), 1500, 5),  # the run is over before
        (grown(1000, 50, 2), 1100, 99),  # too few epochs to tell
        ([1000, 5000, 5000, 5000, 5000], 5100, 99),  # built up in the first epoch
        ([900, 1000, 1010, 990, 1000, 1005, 1000], 1100, 99),  # noise
        ([900, 1000, 1000, 1400, 1000, 1000, 1000], 1450, 99),  # one epoch stands out
        ([900, 1000, 1100, 1200, 1300, 1400, 1400, 1400, 1400, 1400, 1400, 1400], 1450, 99),  # levelled off
        ([2000, 1900, 1800, 1700, 1600], 2000, 99),  # shrinks
    ],
)
def test_what_is_no_danger(series: list[int], limit: int, left: int) -> None:
    assert foreseen_growth([one * MIB for one in series], limit_bytes=limit * MIB, num_epochs_left=left) is None


def test_one_epoch_that_stands_out_does_not_hide_growth() -> None:
    series = [one * MIB for one in (900, 1000, 1050, 700, 1150, 1200, 1250)]
    found = foreseen_growth(series, limit_bytes=1500 * MIB, num_epochs_left=99)
    assert found is not None
    assert 40 * MIB <= found.step_bytes <= 60 * MIB


def test_a_limit_that_is_reached_already_is_told_at_once() -> None:
    found = foreseen_growth(grown(1000 * MIB, 50 * MIB, 8), limit_bytes=1100 * MIB, num_epochs_left=3)
    assert found is not None
    assert found.num_epochs_left == 0
