from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.errors import UserError
from steadyolo.plan.retention import plan_retention

NAMES = st.lists(st.integers(0, 99).map(lambda step: f"step-{step:08d}.{step:08d}"))


@pytest.mark.parametrize(
    ("committed", "keep_last", "pinned", "deleted"),
    [
        ("", 1, "", ""),
        ("a", 1, "", ""),
        ("a b c", 1, "", "a b"),
        ("c a b", 2, "", "a"),
        ("a b c", 5, "", ""),
        ("a b c d", 2, "a", "b"),
        ("a b c d", 1, "d", "a b c"),
        ("a a b b", 1, "", "a"),
        ("a b", 1, "gone", "a"),
    ],
)
def test_retention(committed: str, keep_last: int, pinned: str, deleted: str) -> None:
    planned = plan_retention(committed.split(), keep_last=keep_last, pinned=pinned.split())
    assert planned == tuple(deleted.split())


@given(NAMES, st.integers(1, 5), NAMES)
def test_the_last_ones_and_the_pinned_ones_stay(committed: list[str], keep_last: int, pinned: list[str]) -> None:
    deleted = plan_retention(committed, keep_last=keep_last, pinned=pinned)
    left = sorted(set(committed) - set(deleted))
    assert left[-keep_last:] == sorted(set(committed))[-keep_last:]
    assert not set(deleted) & set(pinned)
    assert plan_retention(left, keep_last=keep_last, pinned=pinned) == ()


def test_keeping_none_is_refused() -> None:
    with pytest.raises(UserError, match="keep_last is 0"):
        plan_retention(["a"], keep_last=0)
