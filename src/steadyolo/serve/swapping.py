"""A model comes into the workers; a new version comes beside the old one and takes its place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from steadyolo.errors import SteadyError
from steadyolo.serve.catalogue import Entry, key_of
from steadyolo.serve.dispatch import Dispatcher
from steadyolo.serve.place import Place
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.settings import ServeSettings
from steadyolo.serve.slot import Slot
from steadyolo.spec.size import size_text

_LOW = 19  # niceness of a worker that tries a version: it takes what the others leave
_TRIAL_HANG_S = 120.0  # where all cores are wanted, it gets a sixtieth of one
_POLL_S = 0.01
_log = logging.getLogger(__name__)


async def bring(entry: Entry, slots: Sequence[Slot], budget_bytes: int | None) -> None:
    """Load the current version in every worker; returns when it is warm in all, or `entry.failed` says why not."""
    model = entry.current
    if model is None:
        return
    key = key_of(entry.asked.name, model)
    results = await asyncio.gather(*(slot.want(key, model) for slot in slots), return_exceptions=True)
    errors = [one for one in results if isinstance(one, BaseException)]
    if errors:
        entry.failed = getattr(errors[0], "message", str(errors[0]))
    elif budget_bytes is not None and entry.num_bytes(slots) > budget_bytes:
        entry.failed = f"it takes {size_text(entry.num_bytes(slots))}, and {size_text(budget_bytes)} are allowed"
    if entry.failed:
        _log.error("%s is not served: %s", entry.asked.name, entry.failed)
        await asyncio.gather(*(slot.drop(key) for slot in slots))


async def swap(
    entry: Entry, model: ServedModel, slots: Sequence[Slot], dispatch: Dispatcher, settings: ServeSettings
) -> None:
    """Let `model` answer instead of the version that does; where it is refused, that one goes on.

    First a worker of its own with the lowest priority tries it: what is corrupt, wrong or ends its process does not
    come near requests, and what compiling leaves in the cache makes loading short.
    """
    sign = signature(model)
    if sign in entry.refused:
        return
    key = key_of(entry.asked.name, model)
    try:
        await _try(model, slots[0].place)
        await asyncio.gather(*(slot.want(key, model, is_verified=True) for slot in slots))
    except SteadyError as error:
        await asyncio.gather(*(slot.drop(key) for slot in slots))
        entry.refused[sign] = error.message
        entry.why = f"version {model.version} was refused: {error.message}"
        _log.error("%s: %s", entry.asked.name, entry.why)
        return
    old, entry.current, entry.why = entry.current, model, ""
    entry.num_swaps += 1
    if old is None:
        return
    entry.others[old.version] = old
    old_key = key_of(entry.asked.name, old)
    while dispatch.is_used(old_key):
        await asyncio.sleep(_POLL_S)
    del entry.others[old.version]
    await asyncio.gather(*(slot.drop(old_key) for slot in slots))


def signature(model: ServedModel) -> object:
    """Another one when a file was written again: a copy that was not whole may be now."""
    return model.version, tuple((model.folder / name).stat().st_mtime_ns for name in model.files)


async def _try(model: ServedModel, place: Place) -> None:
    patient = replace(place.load, warm_up=False, hang_s=_TRIAL_HANG_S)
    place = replace(place, name=f"trial of {model.version}", niceness=_LOW, load=patient, hang_s=_TRIAL_HANG_S)
    trial = Slot(replace(place, is_restarted=False), lambda: None, lambda _requests: None)
    trial.start()
    try:
        await trial.want(key_of("trial", model), model)
    finally:
        await trial.end()
