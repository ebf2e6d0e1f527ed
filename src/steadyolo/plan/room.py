"""`Room`: how much memory a run may take, and why that much."""

from __future__ import annotations

from dataclasses import dataclass

from steadyolo.errors import UserError
from steadyolo.spec.budget import Budget, ByteBudget
from steadyolo.spec.size import size_text

_NUM_TOLD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUser:
    """Another process that holds memory of the device."""

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """What a device has, and what of it this process may still come to hold, with what it holds already.

    `limit` names what sets that bound, such as MemAvailable or a control group.
    """

    name: str
    total_bytes: int
    free_bytes: int
    limit: str
    others: tuple[MemoryUser, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The memory that a run may take; `told` says where the number comes from."""

    num_bytes: int
    told: str
    is_given: bool


def room_for(budget: Budget | None, device: DeviceMemory | None) -> Room | None:
    """What a run may take: what was asked for, but not more than the device has free; None where nobody knows.

    Raises: UserError for a share of a device that is not here.
    """
    if device is None:
        if budget is None:
            return None
        if not isinstance(budget, ByteBudget):
            raise UserError(
                f"memory.budget={budget.memory_share:.0%} of a device that is not here",
                remedy="give the budget in bytes, such as memory.budget=24GiB",
            )
        return Room(num_bytes=budget.num_bytes, told=f"{size_text(budget.num_bytes)}, as asked", is_given=True)
    free = f"{size_text(device.free_bytes)} of {size_text(device.total_bytes)} are free on {device.name}"
    free += f" ({device.limit})" + _held(device)
    if budget is None:
        return Room(num_bytes=device.free_bytes, told=free, is_given=False)
    if isinstance(budget, ByteBudget):
        asked_bytes, asked = budget.num_bytes, size_text(budget.num_bytes)
    else:
        asked_bytes = int(device.total_bytes * budget.memory_share)
        asked = f"{budget.memory_share:.0%} of {size_text(device.total_bytes)}"
    if asked_bytes > device.free_bytes:
        return Room(num_bytes=device.free_bytes, told=f"{asked} were asked for, but only {free}", is_given=False)
    return Room(num_bytes=asked_bytes, told=f"{asked}, as asked", is_given=True)


def _held(device: DeviceMemory) -> str:
    largest = sorted(device.others, key=lambda one: -one.num_bytes)[:_NUM_TOLD]
    held = ", ".join(f"{one.name} holds {size_text(one.num_bytes)}" for one in largest)
    return f"; {held}" if held else ""
