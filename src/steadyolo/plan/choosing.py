"""Chooses how a step's images go through the network so that they fit, giving up as little as possible.

What is never given up here: images in a step, image size, model. What may be, in this order, each only as far as it has
to be: the number of images in one pass (BatchNorm's statistics are then those of a pass), keeping the layers' results
(computing them again takes time), passes of fewer than four images, and the first choice of arithmetic.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from steadyolo.plan.fit import Fit
from steadyolo.plan.memory import Kind, MemoryEstimate, Peak, Workload
from steadyolo.spec.size import size_text

Estimate = Callable[[Workload], MemoryEstimate]

RESERVE_SHARE = 0.05  # of a budget stays free, for what a prediction misses
_LASTING: tuple[Kind, ...] = ("weights", "gradients", "optimizer", "ema", "context")
_FEW_IMAGES = 4  # below this, BatchNorm's statistics are poor, and recomputing costs less than they do


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What has to be kept, and what was pinned.

    `workload` is a whole batch at once with nothing computed again; `computes` the kinds of arithmetic that may be
    used, first choice first; `num_layers` how many layers can be computed again; `num_least_images` how many a pass
    must have, because normalisation needs more than one value. A pin of None leaves it open.
    """

    workload: Workload
    budget_bytes: int
    computes: tuple[str, ...]
    num_layers: int
    num_least_images: int = 1
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

    def whole(self, workload: Workload) -> int:
        """The peak of both training and validation."""
        return self(workload).num_bytes

    def training(self, workload: Workload) -> int:
        """The peak of training, which validation says nothing about: it is left out unless it is known already."""
        known = workload if workload in self._known else replace(workload, val_batch=0)
        return self(known).training.num_bytes


def choose(asked: Asked, estimate: Estimate) -> Choice | TooLarge:
    """The fit that gives up least and whose predicted peaks stay below the budget.

    What is chosen was estimated itself, not interpolated. Few estimates suffice, because memory is nearly affine in
    images.
    """
    measured = Measured(estimate)
    rungs = list(_ladder(asked))
    lasting_bytes = lasting_bytes_of(measured(rungs[0][0]).training)
    for rung in rungs if lasting_bytes <= asked.usable_bytes else ():
        is_of_layers = rung[0].fit.num_recomputed < rung[-1].fit.num_recomputed
        place = None if is_of_layers else _images_left_out
        found = first_that_fits(rung, asked.usable_bytes, measured.training, place=place)
        if found is not None:
            return _completed(found, asked, measured)
    return _too_large(rungs[-1][-1], asked, measured, "training")


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

    found = first_that_fits(_Counted(num_most, at), asked.usable_bytes, measured.training, place=_images_left_out)
    if found is None:
        return _too_large(at(1), asked, measured, "training with a single image")
    choice = _completed(found, replace(asked, workload=found), measured)
    if isinstance(choice, TooLarge):
        return choice
    num_images = found.fit.num_images
    limit = "there are no more" if num_images == num_most else "more would not fit"
    first = f"batch {num_images} is the largest that goes through in one pass with nothing given up; {limit}"
    return replace(choice, reasons=(first, *choice.reasons[1:]))


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
    """Rungs of workloads, each needing less memory than the one before it; a later rung gives up more.

    A rung begins with the last workload of the one before: it is known not to fit.
    """
    whole = asked.workload.fit.num_images
    sizes = [asked.num_pinned_images] if asked.num_pinned_images else part_sizes(whole)
    most = asked.num_layers
    pinned = None if asked.num_pinned_layers is None else min(asked.num_pinned_layers, most)
    good = [size for size in sizes if size >= min(_FEW_IMAGES, whole)] or sizes
    few = [size for size in sizes[len(good) :] if size >= asked.num_least_images]
    for compute in asked.computes:

        def at(num_images: int, num_layers: int, compute: str = compute) -> Workload:
            fit = Fit(num_images=min(num_images, whole), num_recomputed=num_layers)
            accumulates = asked.workload.accumulates or num_images < whole
            return replace(asked.workload, fit=fit, compute=compute, accumulates=accumulates)

        yield [at(size, pinned or 0) for size in good]
        if pinned is None and most:
            yield [at(good[-1], layers) for layers in range(most + 1)]
        if few:
            yield [at(size, most if pinned is None else pinned) for size in (good[-1], *few)]


def part_sizes(num_images: int) -> list[int]:
    """The sizes that the largest of a batch's even parts may have, largest first."""
    return sorted({-(-num_images // count) for count in range(1, num_images + 1)}, reverse=True)


def _images_left_out(workload: Workload) -> float:
    """What memory is nearly affine in, along a rung of images. In layers it is not: the first ones hold most."""
    return -workload.fit.num_images


def first_that_fits(
    rung: Sequence[Workload],
    limit_bytes: int,
    need: Callable[[Workload], int],
    *,
    place: Callable[[Workload], float] | None = None,
) -> Workload | None:
    """The first workload of a rung that needs at most `limit_bytes`; None where even the last needs more.

    With `place`, in which memory is nearly affine, a straight line says which to try.
    """
    if need(rung[0]) <= limit_bytes:
        return rung[0]
    if len(rung) == 1 or need(rung[-1]) > limit_bytes:
        return None
    low, high = 0, len(rung) - 1  # `low` does not fit, `high` does
    tried = [low, high]
    while high - low > 1:
        middle = (low + high) // 2
        if place is not None:
            # Of all that were tried, the two closest to the limit: what is far away lies on another line.
            one, other = sorted(tried, key=lambda at: abs(need(rung[at]) - limit_bytes))[:2]
            slope = (need(rung[other]) - need(rung[one])) / (place(rung[other]) - place(rung[one]))
            if slope < 0:
                wanted = place(rung[one]) + (limit_bytes - need(rung[one])) / slope
                middle = min(max(bisect.bisect_left(rung, wanted, key=place), low + 1), high - 1)
        low, high = (low, middle) if need(rung[middle]) <= limit_bytes else (middle, high)
        tried.append(middle)
    return rung[high]


def lasting_bytes_of(peak: Peak) -> int:
    """What is held however few and small the images are."""
    return sum(peak.by_kind.get(kind, 0) for kind in _LASTING)


def _completed(found: Workload, asked: Asked, measured: Measured) -> Choice | TooLarge:
    """`found`, which trains, with as many images in a pass of validation as fit, by halves."""
    num_images = found.val_batch
    while True:
        chosen = replace(found, val_batch=num_images)
        estimate = measured(chosen)
        if estimate.validation.num_bytes <= asked.usable_bytes:
            return Choice(workload=chosen, estimate=estimate, reasons=_reasons(chosen, asked))
        if num_images <= 1:
            return _too_large(chosen, asked, measured, "validation of a single image")
        num_images = _halved(num_images, estimate.validation, asked.usable_bytes)


def _halved(num_images: int, peak: Peak, limit_bytes: int) -> int:
    """Half of `num_images` as often as a peak that grows with them says."""
    held = lasting_bytes_of(peak)
    moving = max(1, peak.num_bytes - held)
    fewer = -(-num_images // 2)
    while fewer > 1 and held + moving * fewer / num_images > limit_bytes:
        fewer = -(-fewer // 2)
    return fewer


# --- saying why -------------------------------------------------------------------------------------------------------


def _reasons(chosen: Workload, asked: Asked) -> tuple[str, ...]:
    return (
        _why_images(chosen, asked),
        *_why_layers(chosen, asked),
        *_why_arithmetic(chosen, asked),
        *_why_validation(chosen, asked),
    )


def _why_images(chosen: Workload, asked: Asked) -> str:
    whole, part = asked.workload.fit.num_images, chosen.fit.num_images
    if part >= whole:
        return f"the whole batch of {whole} goes through in one pass"
    if asked.num_pinned_images:
        return f"micro-batch {part} of {whole}: as asked"
    passes = f"micro-batch {part} of {whole}, {-(-whole // part)} passes a step"
    if chosen.fit.num_recomputed and part >= _FEW_IMAGES and asked.num_pinned_layers is None:
        return f"{passes}: with fewer images BatchNorm's statistics would be poor"
    return f"{passes}: the largest even part that fits; the gradient is that of the whole batch"


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
    lasting, budget = lasting_bytes_of(estimate.training), size_text(asked.budget_bytes)
    if lasting > asked.usable_bytes:
        why = f"weights and what lasts beside them take {size_text(lasting)} already, and {budget} may be used"
    else:
        spared = f"{budget}, less the {RESERVE_SHARE:.0%} that stay free, may be used"
        why = f"{what} needs {size_text(needed)} at least, and {spared}"
    return TooLarge(closest=least, estimate=estimate, why=why)
