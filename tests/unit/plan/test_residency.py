"""Which models are in memory."""

from __future__ import annotations

import pytest

from steadyolo.errors import UserError
from steadyolo.plan.residency import Resident, plan_room, plan_start


def model(text: str) -> Resident:
    """`name:bytes`, then p where it is pinned, b where it is busy, and a digit for when it was used."""
    name, _, rest = text.partition(":")
    digits = rest.rstrip("pb")
    num_bytes, _, used_at_s = digits.partition("@")
    return Resident(
        name=name,
        num_bytes=int(num_bytes),
        is_pinned="p" in rest,
        is_busy="b" in rest,
        used_at_s=float(used_at_s or 0),
    )


@pytest.mark.parametrize(
    ("models", "budget_bytes", "expected"),
    [
        ("", 10, ""),
        ("big:9 small:1", None, "small big"),
        ("big:9 small:1", 10, "small big"),
        ("big:9 small:2", 10, "small"),
        ("big:9p small:2", 10, "big"),  # pinned ones come first
        ("a:3 b:4 c:5", 7, "a b"),
    ],
)
def test_what_is_loaded_at_first(models: str, budget_bytes: int | None, expected: str) -> None:
    assert plan_start(map(model, models.split()), budget_bytes=budget_bytes) == tuple(expected.split())


@pytest.mark.parametrize("models", ["big:11", "a:6p b:6p", "a:1 big:11"])
def test_what_cannot_start(models: str) -> None:
    with pytest.raises(UserError):
        plan_start(map(model, models.split()), budget_bytes=10)


@pytest.mark.parametrize(
    ("models", "wanted", "budget_bytes", "expected"),
    [
        ("a:5@1 b:5@2", "c:5", None, ""),
        ("a:5@1", "c:5", 10, ""),
        ("a:5@1 b:5@2", "c:5", 10, "a"),
        ("a:5@2 b:5@1", "c:5", 10, "b"),
        ("a:5@1p b:5@2", "c:5", 10, "b"),
        ("a:5@1b b:5@2", "c:5", 10, "b"),
        ("a:3@1 b:3@2 d:3@3", "c:6", 10, "a b"),
        ("a:5@1 c:5@2", "c:6", 10, "a"),  # its own old size does not count
    ],
)
def test_what_makes_room(models: str, wanted: str, budget_bytes: int | None, expected: str) -> None:
    chosen = plan_room(map(model, models.split()), model(wanted), budget_bytes=budget_bytes)
    assert chosen == tuple(expected.split())


@pytest.mark.parametrize("models", ["", "a:5p b:5b", "a:9p"])
def test_where_there_is_no_room(models: str) -> None:
    wanted = model("c:11" if not models else "c:5")
    with pytest.raises(UserError):
        plan_room(map(model, models.split()), wanted, budget_bytes=10)
