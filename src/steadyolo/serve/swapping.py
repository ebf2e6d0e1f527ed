"""A model comes into the workers; a new version comes beside the old one and takes its place."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.serve.catalogue import Entry, key_of
from steadyolo.serve.dispatch import Dispatcher
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.slot import Slot
from steadyolo.serve.watching import signature
from steadyolo.spec.size import size_text

_LOW = 10  # niceness of a worker that tries a version: a tenth of what another gets where all cores are wanted
_TRIAL_HANG_S = 120.0
_POLL_S = 0.01
_LAST_S = 10.0  # for which a version that was replaced answers those who ask for it by name
_NUM_TRIES = 3  # of a version whose trial was lost: it may not have been its fault
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
    else:
        try:
            check_room(entry.num_bytes(slots), budget_bytes)
        except UserError as error:
            entry.failed = error.message
    if entry.failed:
        _log.error("%s is not served: %s", entry.asked.name, entry.failed)
        await asyncio.gather(*(slot.drop(key) for slot in slots))


async def swap(
    entry: Entry, model: ServedModel, slots: Sequence[Slot], dispatch: Dispatcher, *, room_bytes: int | None
) -> None:
    """Let `model` answer instead of the version that does; where it is refused, that one goes on.

    First a worker of its own with a low priority tries it: what is corrupt, wrong or ends its process does not come
    near requests, and what compiling leaves in the cache makes loading short. It gets the runtime of the version that
    answers: what is measured beside requests may be wrong by as much as runtimes differ. `room_bytes` is what it may
    take; while the two change places, both are in memory. Raises: OSError where the version is gone already.
    """
    sign = signature(model)
    if sign in entry.refused:
        return
    key, like = key_of(entry.asked.name, model), entry.key()
    try:
        check_room(await _try(model, slots[0], like), room_bytes)
        await asyncio.gather(*(slot.want(key, model, like=like, is_verified=True) for slot in slots))
    except SteadyError as error:
        await asyncio.gather(*(slot.drop(key) for slot in slots))
        entry.num_tries[sign] = entry.num_tries.get(sign, 0) + 1
        if not isinstance(error, Transient) or entry.num_tries[sign] >= _NUM_TRIES:
            entry.refused[sign] = error.message
        entry.why = f"version {model.version} was refused: {error.message}"
        _log.error("%s: %s", entry.asked.name, entry.why)
        return
    old, entry.current, entry.why, entry.failed = entry.current, model, "", ""
    entry.num_swaps += 1
    if old is None or old.version == model.version:
        return
    entry.others[old.version] = old
    old_key, until_s = key_of(entry.asked.name, old), time.monotonic() + _LAST_S
    while dispatch.is_used(old_key) and time.monotonic() < until_s:
        await asyncio.sleep(_POLL_S)
    del entry.others[old.version]
    await retire(old_key, slots, dispatch)


async def retire(key: str, slots: Sequence[Slot], dispatch: Dispatcher) -> None:
    """Give an engine's memory back when what was accepted for it is answered; nothing more may be."""
    dispatch.pump()  # what waits for a version that is gone is told so
    while dispatch.is_used(key):
        await asyncio.sleep(_POLL_S)
    await asyncio.gather(*(slot.drop(key) for slot in slots))


def check_room(num_bytes: int, room_bytes: int | None) -> None:
    """Raises: UserError where that is more than there is room for."""
    if room_bytes is not None and num_bytes > room_bytes:
        raise UserError(
            f"it takes {size_text(num_bytes)}, and {size_text(max(room_bytes, 0))} are allowed",
            remedy="raise the memory budget, or serve a smaller model",
        )


async def _try(model: ServedModel, slot: Slot, like: str | None) -> int:
    """The memory it takes. Raises: as `Slot.want`."""
    patient = replace(slot.place.load, warm_up=False, check=True, hang_s=_TRIAL_HANG_S)
    place = replace(slot.place, session=slot.session_like(like), load=patient, hang_s=_TRIAL_HANG_S)
    place = replace(place, name=f"trial of {model.version}", niceness=_LOW)
    trial = Slot(replace(place, is_restarted=False), lambda: None, lambda _requests: None)
    trial.start()
    try:
        return int((await trial.want(key_of("trial", model), model))["num_bytes"])
    finally:
        await trial.end()
