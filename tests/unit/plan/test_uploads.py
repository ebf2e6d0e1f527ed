from __future__ import annotations

import pytest

from steadyolo.errors import UserError
from steadyolo.plan.uploads import FIRST_WAIT_S, LONGEST_WAIT_S, plan_order, plan_spool, plan_wait_s


@pytest.mark.parametrize(
    ("waiting", "best", "newest_kept", "order"),
    [
        ("", None, None, ""),
        ("abc", None, None, "cba"),
        ("abc", "a", None, "cab"),
        ("abc", "c", None, "cba"),
        ("ab", "a", "c", "ab"),  # the newest is there already: now the best comes first
        ("abd", "a", "c", "dab"),
        ("abc", "x", "c", "cba"),
    ],
)
def test_order(waiting: str, best: str | None, newest_kept: str | None, order: str) -> None:
    assert "".join(plan_order(waiting, best=best, newest_kept=newest_kept)) == order


@pytest.mark.parametrize(
    ("waiting", "best", "under_way", "budget_bytes", "given_up"),
    [
        ("abc", None, None, 3, ""),
        ("abcde", None, None, 4, "c"),
        ("abcde", None, None, 3, "cb"),
        ("abcde", "c", None, 4, "b"),
        ("abcde", "c", "b", 3, "da"),
        ("abc", "a", "b", 1, ""),  # what is spared may be more than the budget
        ("abc", None, None, 0, "ba"),
    ],
)
def test_spool(waiting: str, best: str | None, under_way: str | None, budget_bytes: int, given_up: str) -> None:
    found = plan_spool(dict.fromkeys(waiting, 1), best=best, under_way=under_way, budget_bytes=budget_bytes)
    assert "".join(found) == given_up


def test_waits_grow_to_a_limit_and_are_spread() -> None:
    waits = [plan_wait_s(num_failures=n, chance=1.0) for n in range(1, 40)]
    assert waits == sorted(waits)
    assert waits[0] == FIRST_WAIT_S
    assert waits[-1] == LONGEST_WAIT_S
    assert plan_wait_s(num_failures=39, chance=0.0) == LONGEST_WAIT_S / 2


@pytest.mark.parametrize(("num_failures", "chance"), [(0, 0.5), (1, -0.1), (1, 1.1)])
def test_what_is_no_failure_has_no_wait(num_failures: int, chance: float) -> None:
    with pytest.raises(UserError):
        plan_wait_s(num_failures=num_failures, chance=chance)


def test_a_budget_below_nothing_is_refused() -> None:
    with pytest.raises(UserError):
        plan_spool({}, best=None, under_way=None, budget_bytes=-1)
