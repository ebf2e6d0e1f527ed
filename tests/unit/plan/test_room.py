from __future__ import annotations

import pytest

from steadyolo.errors import UserError
from steadyolo.plan.room import DeviceMemory, MemoryUser, room_for
from steadyolo.spec.budget import ByteBudget, ShareBudget, parse_budget

GIB = 2**30
GPU = DeviceMemory(name="cuda:0", total_bytes=24 * GIB, free_bytes=20 * GIB, limit="as NVML says")
BUSY = DeviceMemory(
    name="cuda:0",
    total_bytes=24 * GIB,
    free_bytes=2 * GIB,
    limit="as NVML says",
    others=(MemoryUser(name="python (pid 7)", num_bytes=21 * GIB),),
)


@pytest.mark.parametrize(
    ("text", "budget"),
    [("24GiB", ByteBudget(24 * GIB)), ("24 GB", ByteBudget(24 * 10**9)), (" 80% ", ShareBudget(0.8))],
)
def test_budgets(text: str, budget: object) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("24GiBs", "24GiB"),
        ("24 gigs", "24GB"),
        ("24 gigabyte", "24GB"),
        ("24", "24GiB"),
        ("24 parsecs", "4GiB, 500MB"),
        ("lots", "4GiB, 500MB"),
        ("130%", "80%"),
        ("0%", "80%"),
    ],
)
def test_nonsense_is_answered_with_the_nearest_thing_that_works(text: str, remedy: str) -> None:
    with pytest.raises(UserError) as error:
        parse_budget(text)
    assert remedy in error.value.remedy


def test_what_is_free_is_the_room_where_nothing_was_asked_for() -> None:
    room = room_for(None, GPU)
    assert room is not None
    assert (room.num_bytes, room.is_given) == (20 * GIB, False)
    assert "20.0 GiB of 24.0 GiB are free on cuda:0 (as NVML says)" in room.told


@pytest.mark.parametrize(("budget", "num_bytes"), [(ByteBudget(8 * GIB), 8 * GIB), (ShareBudget(0.5), 12 * GIB)])
def test_a_budget_is_the_room_where_that_much_is_free(budget: ByteBudget | ShareBudget, num_bytes: int) -> None:
    room = room_for(budget, GPU)
    assert room is not None
    assert (room.num_bytes, room.is_given) == (num_bytes, True)


@pytest.mark.parametrize("budget", [ByteBudget(8 * GIB), ShareBudget(0.5)])
def test_what_others_hold_is_no_room_and_they_are_named(budget: ByteBudget | ShareBudget) -> None:
    room = room_for(budget, BUSY)
    assert room is not None
    assert (room.num_bytes, room.is_given) == (2 * GIB, False)
    assert "python (pid 7) holds 21.0 GiB" in room.told


def test_a_device_that_is_not_here() -> None:
    assert room_for(None, None) is None
    room = room_for(ByteBudget(8 * GIB), None)
    assert room is not None and room.num_bytes == 8 * GIB
    with pytest.raises(UserError, match="not here"):
        room_for(ShareBudget(0.8), None)
