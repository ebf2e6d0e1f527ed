"""What to do after a fault in training: decided purely, carried out by the supervisor."""

from __future__ import annotations

from dataclasses import dataclass, replace

from steadyolo.plan.fit import Fit


@dataclass(frozen=True, slots=True)
class Rewind:
    """Go back to the newest good checkpoint and leave out the offending batches."""


@dataclass(frozen=True, slots=True)
class Again:
    """Free what nobody uses, and do the same again with `fit`."""

    fit: Fit
    action: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Give up: going back again would not help."""

    why: str


Move = Rewind | Stop


def next_move(*, faults_since_progress: int, num_tries: int) -> Move:
    """The move after a loss or gradient that is not finite.

    `faults_since_progress` counts such faults, this one included, since the last epoch was scored: a run that goes on
    learning may meet any number of bad batches, one that does not is stopped after `num_tries`.
    """
    if faults_since_progress > num_tries:
        return Stop(why=f"{faults_since_progress} batches of one epoch gave a loss or gradient that is not finite")
    return Rewind()


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """A pass for which there was not enough memory, and what its fit can still be changed to."""

    fit: Fit
    planned: Fit
    num_images: int  # of the whole batch
    num_least: int = 1  # normalisation layers may need more than one image
    num_layers: int = 0  # that can be computed again in the backward pass


def next_fit(misfit: Misfit, *, attempt: int, is_freed: bool) -> Again | Stop:
    """The move after an allocation that failed, for the `attempt`-th time at this batch.

    The least disturbing change comes first: nothing but freeing (what is left over may lie in pieces), half the images
    in a pass, recomputation (which costs time), and then fewer and fewer images. Freeing alone is tried once an epoch
    with each fit, which `is_freed` says, as long as there is something else to try.
    """
    smaller = _smaller(misfit)
    if attempt == 1 and (smaller is None or not is_freed):
        return Again(misfit.fit, "freeing what is not in use and doing it again")
    if smaller is None:
        recomputed = f" with {misfit.fit.num_recomputed} layers recomputed" if misfit.fit.num_recomputed else ""
        num_images = min(misfit.fit.num_images, misfit.num_images)
        return Stop(f"{_images(num_images)} in a pass{recomputed} already")
    recomputed = f", {smaller.num_recomputed} layers recomputed," if smaller.num_recomputed else ""
    return Again(smaller, f"doing it again with {_images(smaller.num_images)}{recomputed} in a pass")


def _smaller(misfit: Misfit) -> Fit | None:
    fit = replace(misfit.fit, num_images=min(misfit.fit.num_images, misfit.num_images))
    can_halve = fit.num_images > misfit.num_least
    is_halved = misfit.fit.num_images < misfit.planned.num_images
    if fit.num_recomputed < misfit.num_layers and (is_halved or not can_halve):
        return replace(fit, num_recomputed=misfit.num_layers)
    return replace(fit, num_images=max(-(-fit.num_images // 2), misfit.num_least)) if can_halve else None


def _images(num_images: int) -> str:
    return "1 image" if num_images == 1 else f"{num_images} images"
