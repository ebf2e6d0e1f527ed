from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.errors import UserError
from steadyolo.plan.eviction import Cached, plan_eviction, usual_budget_bytes

GIB = 1024**3


def others(text: str) -> list[Cached]:
    """`a10` takes 10 bytes; earlier ones were used earlier; a `!` says that it is in use."""
    return [
        Cached(name=word[0], num_bytes=int(word[1:].strip("!")), used_at_s=float(at), in_use=word.endswith("!"))
        for at, word in enumerate(text.split())
    ]


@pytest.mark.parametrize(
    ("there", "wanted", "to_write", "budget", "free", "gone"),
    [
        ("", 10, 10, 10, 10, ""),
        ("a10 b10", 10, 10, 30, 10, ""),
        ("a10 b10", 10, 10, 29, 10, "a"),
        ("b10 a10", 10, 10, 29, 10, "b"),
        ("a10 b10", 10, 10, 10, 10, "a b"),
        ("a10! b10", 10, 10, 29, 10, "b"),
        ("a1 b10 c10", 10, 10, 25, 10, "a b"),  # as few as it takes in their order, not the best fit
        ("a10 b10", 10, 10, 100, 3, "a"),  # the disk is the limit, not the budget
        ("a10 b10", 10, 2, 100, 3, ""),  # most of it is there already
        ("a10!", 10, 10, 20, 10, ""),
    ],
)
def test_eviction(there: str, wanted: int, to_write: int, budget: int, free: int, gone: str) -> None:
    planned = plan_eviction(
        others(there), wanted_bytes=wanted, to_write_bytes=to_write, budget_bytes=budget, free_bytes=free
    )
    assert planned == tuple(gone.split())


@pytest.mark.parametrize(
    ("there", "wanted", "budget", "free", "message"),
    [
        ("a10", 11, 10, 100, "takes 11 B, and the cache may take 10 B"),
        ("a10! b5", 10, 19, 100, "1 B more are needed .* than the cache can give; in use by runs: a"),
        ("a10! b5", 10, 100, 4, "1 B more are needed .* than the disk can give; in use by runs: a"),
        ("", 10, 100, 4, "in use by runs: none"),
    ],
)
def test_what_cannot_fit_is_refused(there: str, wanted: int, budget: int, free: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan_eviction(others(there), wanted_bytes=wanted, to_write_bytes=wanted, budget_bytes=budget, free_bytes=free)
    assert "data.cache" in caught.value.remedy


CACHED = st.builds(
    Cached,
    name=st.text("abcdef", min_size=3, max_size=6),
    num_bytes=st.integers(0, 50),
    used_at_s=st.floats(0, 100),
    in_use=st.booleans(),
)


@given(st.lists(CACHED, unique_by=lambda it: it.name), *[st.integers(0, 200)] * 4)
def test_what_is_planned_suffices_and_spares_who_is_in_use(
    there: list[Cached], wanted: int, to_write: int, budget: int, free: int
) -> None:
    removable = sum(it.num_bytes for it in there if not it.in_use)
    total = sum(it.num_bytes for it in there)
    can = total - removable + wanted <= budget and to_write <= free + removable
    try:
        gone = plan_eviction(there, wanted_bytes=wanted, to_write_bytes=to_write, budget_bytes=budget, free_bytes=free)
    except UserError:
        assert not can
        return
    assert can
    freed = sum(it.num_bytes for it in there if it.name in gone)
    assert total - freed + wanted <= budget
    assert to_write <= free + freed
    left = [it for it in there if it.name not in gone]
    assert not any(it.in_use for it in there if it.name in gone)
    newest_gone = max((it.used_at_s for it in there if it.name in gone), default=0.0)
    assert all(it.in_use or it.used_at_s >= newest_gone for it in left)


@pytest.mark.parametrize(
    ("free", "cached", "budget"), [(1000 * GIB, 0, 100 * GIB), (50 * GIB, 0, 40 * GIB), (10 * GIB, 40 * GIB, 40 * GIB)]
)
def test_the_usual_budget_leaves_room_for_others(free: int, cached: int, budget: int) -> None:
    assert usual_budget_bytes(free_bytes=free, cached_bytes=cached) == budget
