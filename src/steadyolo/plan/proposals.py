"""What a user could change where nothing fits that keeps what was asked: it is proposed, and never taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from steadyolo.errors import UserError
from steadyolo.plan.choosing import (
    RESERVE_SHARE,
    Asked,
    Estimate,
    Measured,
    TooLarge,
    first_that_fits,
    lasting_bytes_of,
)
from steadyolo.plan.memory import Workload
from steadyolo.plan.room import Room
from steadyolo.spec.size import size_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """What a user could change: image sizes and models, each larger first, and boxes in a picture without mosaic."""

    sizes_px: tuple[int, ...]
    models: tuple[str, ...]
    num_boxes_unmixed: int | None  # None: pictures are not mixed, or their boxes are not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A change of what was asked, its effect, and the peak that it is predicted to have."""

    change: str
    effect: str
    workload: Workload
    num_bytes: int


def propose(too_large: TooLarge, asked: Asked, others: Alternatives, estimate: Estimate) -> Iterator[Proposal]:
    """What would fit in the same memory, changing one thing each; least change first."""
    base, measured = too_large.closest, Measured(estimate)
    has_space = lasting_bytes_of(too_large.estimate.training) <= asked.usable_bytes
    if has_space and others.num_boxes_unmixed is not None:
        lighter = replace(base, most_boxes=others.num_boxes_unmixed)
        few = f"at most {others.num_boxes_unmixed} boxes in a picture instead of {base.most_boxes}"
        yield from _proposed("mosaic=0 mixup=0 cutmix=0", few, lighter, asked, measured)
    sides = [side for side in others.sizes_px if side < base.imgsz and has_space]
    sizes = [base, *(replace(base, imgsz=side) for side in sides)]
    smaller = first_that_fits(sizes, asked.usable_bytes, measured.whole, place=lambda one: -(one.imgsz**2))
    yield from _proposed("imgsz={0.imgsz}", "small objects are seen with fewer pixels", smaller, asked, measured)
    models = [base, *(replace(base, model=model) for model in others.models)]
    lesser = first_that_fits(models, asked.usable_bytes, measured.whole)
    yield from _proposed("model={0.model}", "fewer weights, less accurate", lesser, asked, measured)


def _proposed(
    change: str, effect: str, workload: Workload | None, asked: Asked, measured: Measured
) -> Iterator[Proposal]:
    """A proposal of a workload that fits; of another one none."""
    if workload is not None and measured.whole(workload) <= asked.usable_bytes:
        peak = measured.whole(workload)
        yield Proposal(change=change.format(workload), effect=effect, workload=workload, num_bytes=peak)


def refusal(too_large: TooLarge, proposals: Sequence[Proposal], room: Room) -> UserError:
    """The error that says what does not fit, and what would: nothing of it is taken without being asked for."""
    workload, needed = too_large.closest, size_text(_budget_for(too_large.estimate.num_bytes))
    listed = "".join(f"\n    {one.change}: {size_text(one.num_bytes)} ({one.effect})" for one in proposals)
    would = f"\n  what would fit, with its predicted peak:{listed}" if listed else ""
    more = f"give it memory.budget={needed.replace(' ', '')} or more" if room.is_given else f"free {needed} for it"
    return UserError(
        f"{workload.model} at imgsz={workload.imgsz} does not fit: {too_large.why} ({room.told}){would}",
        remedy=more + (f", or use {proposals[0].change}" if proposals else ", or use a much smaller model and imgsz"),
    )


def _budget_for(num_bytes: int) -> int:
    tenth = 2**30 // 10
    return -(-int(num_bytes / (1 - RESERVE_SHARE)) // tenth) * tenth
