"""Chooses how a step's images go through the network so that they fit, giving up as little as possible.

What is never given up here: images in a step, image size, model. What may be, in this order, each only as far as it has
to be: the number of images in one pass (BatchNorm's statistics are then those of a pass), keeping the layers' results
(computing them again takes time), passes of fewer than four images, and the first choice of arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from steadyolo.errors import UserError
from steadyolo.plan.fit import Fit
from steadyolo.plan.memory import MemoryEstimate, Workload
from steadyolo.plan.room import Room
from steadyolo.spec.size import size_text

Estimate = Callable[[Workload], MemoryEstimate]

RESERVE_SHARE = 0.05  # of a budget stays free, for what a prediction misses
_FEW_IMAGES = 4  # below this, BatchNorm's statistics are poor, and recomputing costs less than they do


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What has to be kept, and what was pinned.

    `workload` is a whole batch at once with nothing computed again; `computes` the kinds of arithmetic that may be
    used, first choice first; `num_layers` how many layers can be computed again. A pin of None leaves it open.
    """

    workload: Workload
    budget_bytes: int
    computes: tuple[str, ...]
    num_layers: int
    num_pinned_images: int | None = None
    num_pinned_layers: int | None = None

    @property
    def usable_bytes(self) -> int:
        return int(self.budget_bytes * (1 - RESERVE_SHARE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A workload that fits, what it is predicted to need, and a sentence for each thing that was chosen."""

    workload: Workload
    estimate: MemoryEstimate
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLarge:
    """Nothing that keeps what was asked fits; `closest` is what needs least memory, and `why` says so."""

    closest: Workload
    estimate: MemoryEstimate
    why: str


class Measured:
    """An estimate that is asked for each workload once."""

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate
        self._known: dict[Workload, MemoryEstimate] = {}

    def __call__(self, workload: Workload) -> MemoryEstimate:
        if workload not in self._known:
            self._known[workload] = self._estimate(workload)
        return self._known[workload]


def choose(asked: Asked, estimate: Estimate) -> Choice | TooLarge:
    """The fit that gives up least and whose predicted peaks stay below the budget.

    What is chosen was estimated itself, not interpolated. Few estimates suffice, because memory is nearly affine in
    images and in layers.
    """
    measured = Measured(estimate)
    closest: Workload | None = None
    for rung in _ladder(asked):
        fits = _first_that_fits(rung, asked.usable_bytes, lambda one: measured(one).training.num_bytes)
        if fits is None:
            closest = rung[-1]
            continue
        chosen = _with_validation(fits, asked, measured)
        if chosen is None:
            return _too_large(fits, asked, measured, "validation of a single image")
        return Choice(workload=chosen, estimate=measured(chosen), reasons=_reasons(chosen, asked, measured))
    if closest is None:
        raise ValueError("a ladder has rungs")
    return _too_large(closest, asked, measured, "training")


def largest_batch(
    asked: Asked, whole: Callable[[int], Workload], estimate: Estimate, *, num_most: int
) -> Choice | TooLarge:
    """The most images, up to `num_most`, that a batch may have to go through in one pass: `batch=auto`.

    Keeps model, image size and the first choice of arithmetic, and computes nothing again but what is pinned. `whole`
    makes the workload of a batch.
    """
    measured = Measured(estimate)
    layers = min(asked.num_pinned_layers or 0, asked.num_layers)

    def at(num_images: int) -> Workload:
        return replace(whole(num_images), fit=Fit(num_images=num_images, num_recomputed=layers))

    found = _first_that_fits(_Counted(num_most, at), asked.usable_bytes, lambda one: measured(one).training.num_bytes)
    if found is None:
        return _too_large(at(1), asked, measured, "training with a single image")
    chosen = _with_validation(found, asked, measured)
    if chosen is None:
        return _too_large(found, asked, measured, "validation of a single image")
    num_images = chosen.fit.num_images
    limit = "there are no more" if num_images == num_most else f"{num_images + 1} would not fit"
    first = f"batch {num_images} is the largest that goes through in one pass with nothing given up; {limit}"
    asked = replace(asked, workload=found)
    return Choice(workload=chosen, estimate=measured(chosen), reasons=(first, *_reasons(chosen, asked, measured)[1:]))


# --- what may be given up ---------------------------------------------------------------------------------------------


class _Counted(Sequence[Workload]):
    """Workloads of `num_most` down to 1 images, made when they are asked for."""

    def __init__(self, num_most: int, make: Callable[[int], Workload]) -> None:
        self._num_most, self._make = num_most, make

    def __len__(self) -> int:
        return self._num_most

    def __getitem__(self, index: int) -> Workload:  # type: ignore[override]  # never sliced
        return self._make(self._num_most - (index if index >= 0 else len(self) + index))


def _ladder(asked: Asked) -> Iterator[list[Workload]]:
    """Rungs of workloads, each needing less memory than the one before it; a later rung gives up more."""
    whole = asked.workload.fit.num_images
    sizes = [asked.num_pinned_images] if asked.num_pinned_images else part_sizes(whole)
    most = asked.num_layers
    pinned = None if asked.num_pinned_layers is None else min(asked.num_pinned_layers, most)
    good = [size for size in sizes if size >= min(_FEW_IMAGES, whole)] or sizes
    few = sizes[len(good) :]
    for compute in asked.computes:

        def at(num_images: int, num_layers: int, compute: str = compute) -> Workload:
            fit = Fit(num_images=min(num_images, whole), num_recomputed=num_layers)
            accumulates = asked.workload.accumulates or num_images < whole
            return replace(asked.workload, fit=fit, compute=compute, accumulates=accumulates)

        yield [at(size, pinned or 0) for size in good]
        if pinned is None and most:
            yield [at(good[-1], layers) for layers in range(1, most + 1)]
        if few:
            yield [at(size, most if pinned is None else pinned) for size in few]


def part_sizes(num_images: int) -> list[int]:
    """The sizes that the largest of a batch's even parts may have, largest first."""
    return sorted({-(-num_images // count) for count in range(1, num_images + 1)}, reverse=True)


def _first_that_fits(rung: Sequence[Workload], limit_bytes: int, need: Callable[[Workload], int]) -> Workload | None:
    """The first workload of a rung that needs at most `limit_bytes`; None where even the last needs more.

    Between one that does not fit and one that does, the next to try is where a straight line meets the limit.
    """
    if need(rung[0]) <= limit_bytes:
        return rung[0]
    if len(rung) == 1 or need(rung[-1]) > limit_bytes:
        return None
    low, high = 0, len(rung) - 1  # `low` does not fit, `high` does
    while high - low > 1:
        above, below = need(rung[low]), need(rung[high])
        share = (above - limit_bytes) / max(1, above - below)
        middle = _at_share(rung, low, high, share)
        low, high = (low, middle) if need(rung[middle]) <= limit_bytes else (middle, high)
    return rung[high]


def _at_share(rung: Sequence[Workload], low: int, high: int, share: float) -> int:
    """The index between `low` and `high`, exclusive, that lies at `share` of the way in images and layers."""

    def place(index: int) -> float:
        fit = rung[index].fit
        return fit.num_recomputed - fit.num_images

    first, last = low + 1, high - 1
    if place(low) == place(high):  # models, image sizes
        return (first + last) // 2
    wanted = place(low) + share * (place(high) - place(low))
    while first < last:
        middle = (first + last) // 2
        first, last = (first, middle) if place(middle) >= wanted else (middle + 1, last)
    return first


def _with_validation(workload: Workload, asked: Asked, measured: Measured) -> Workload | None:
    """`workload` with as many images in a pass of validation as fit, by halves; None where one does not."""
    num_images = workload.val_batch
    while True:
        tried = replace(workload, val_batch=num_images)
        if measured(tried).validation.num_bytes <= asked.usable_bytes:
            return tried
        if num_images <= 1:
            return None
        num_images = -(-num_images // 2)


# --- saying why -------------------------------------------------------------------------------------------------------


def _reasons(chosen: Workload, asked: Asked, measured: Measured) -> tuple[str, ...]:
    return (
        _why_images(chosen, asked, measured),
        *_why_layers(chosen, asked),
        *_why_arithmetic(chosen, asked),
        *_why_validation(chosen, asked),
    )


def _why_images(chosen: Workload, asked: Asked, measured: Measured) -> str:
    whole, part = asked.workload.fit.num_images, chosen.fit.num_images
    if asked.num_pinned_images and part < whole:
        return f"micro-batch {part} of {whole}: as asked"
    if part >= whole:
        return f"the whole batch of {whole} goes through in one pass"
    passes = (
        f"micro-batch {part} of {whole}, {-(-whole // part)} passes a step: the gradient is that of the whole batch"
    )
    if chosen.fit.num_recomputed and part >= _FEW_IMAGES:
        return f"{passes}; with fewer images BatchNorm's statistics would be poor"
    larger = [size for size in part_sizes(whole) if size > part][-1]
    fit = replace(chosen.fit, num_images=larger)
    whole_too = larger == whole and not asked.workload.accumulates
    bigger = measured(
        replace(chosen, fit=fit, accumulates=not whole_too, val_batch=asked.workload.val_batch)
    ).training.num_bytes
    return f"{passes}; passes of {larger} would need {size_text(bigger)}"


def _why_layers(chosen: Workload, asked: Asked) -> tuple[str, ...]:
    layers = chosen.fit.num_recomputed
    if asked.num_pinned_layers is not None:
        return (f"{layers} of {asked.num_layers} layers are recomputed: as asked",) if layers else ()
    if not layers:
        return ()
    return (
        f"the first {layers} of {asked.num_layers} layers are computed again in the backward pass: "
        "with fewer it would not fit; this changes nothing that is learned and takes time",
    )


def _why_arithmetic(chosen: Workload, asked: Asked) -> tuple[str, ...]:
    if chosen.compute == asked.computes[0]:
        return ()
    return (f"{chosen.compute} instead of {asked.computes[0]}: nothing else would fit",)


def _why_validation(chosen: Workload, asked: Asked) -> tuple[str, ...]:
    if chosen.val_batch >= asked.workload.val_batch:
        return ()
    return (f"validation takes {chosen.val_batch} images at once instead of {asked.workload.val_batch}, which fit",)


def _too_large(closest: Workload, asked: Asked, measured: Measured, what: str) -> TooLarge:
    """What does not fit: the weights and what goes with them already, or only a pass."""
    least = replace(closest, val_batch=min(closest.val_batch, 1))
    estimate = measured(least)
    needed = max(estimate.training.num_bytes, estimate.validation.num_bytes)
    held = sum(estimate.training.by_kind.get(kind, 0) for kind in ("weights", "gradients", "optimizer", "ema"))
    budget = size_text(asked.budget_bytes)
    if held > asked.usable_bytes:
        why = f"{budget} is less than weights, gradients, optimizer and EMA alone take, {size_text(held)}"
    else:
        why = f"{what} needs {size_text(needed)} at least, and {budget} may be used"
    return TooLarge(closest=least, estimate=estimate, why=why)


# --- what may be proposed, and is never taken -------------------------------------------------------------------------


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


def propose(too_large: TooLarge, asked: Asked, others: Alternatives, estimate: Estimate) -> list[Proposal]:
    """What would fit in the same memory, changing one thing each; least change first."""
    base = too_large.closest
    found = []
    if others.num_boxes_unmixed is not None:
        lighter = replace(base, most_boxes=others.num_boxes_unmixed)
        effect = f"at most {others.num_boxes_unmixed} boxes in a picture instead of {base.most_boxes}"
        found.append(("mosaic=0 mixup=0 cutmix=0", effect, [lighter]))
    sizes = [replace(base, imgsz=side) for side in others.sizes_px if side < base.imgsz]
    found.append(("imgsz={0.imgsz}", "small objects are seen with fewer pixels", sizes))
    found.append(("model={0.model}", "fewer weights, less accurate", [replace(base, model=m) for m in others.models]))
    measured = Measured(estimate)
    proposals = []
    for change, effect, rung in found:
        fits = _first_that_fits(rung, asked.usable_bytes, lambda one: measured(one).num_bytes) if rung else None
        if fits is not None:
            peak = measured(fits).num_bytes
            proposals.append(Proposal(change=change.format(fits), effect=effect, workload=fits, num_bytes=peak))
    return proposals


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
