"""`WarmService`: models that answer at once, in processes that may end at any time."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steadyolo.errors import SteadyError, UserError
from steadyolo.plan.residency import Resident, plan_room, plan_start
from steadyolo.serve.catalogue import Catalogue, Entry, version_in
from steadyolo.serve.dispatch import Dispatcher
from steadyolo.serve.requests import Request, lost, replaced
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import Answer, DetectOptions, Figures, Inferred, NotReady, Readiness, Tensor
from steadyolo.serve.settings import ServedName, ServeSettings
from steadyolo.serve.slot import Slot
from steadyolo.serve.spawning import Spawned
from steadyolo.serve.swapping import bring, retire, swap
from steadyolo.serve.watching import FolderVersions, FoundVersions, IsRefused, Versions, signature
from steadyolo.serve.wire import Message

_RETRY_S = 1.0
_NUMBER_BYTES = 4  # of FP32
_log = logging.getLogger(__name__)


class WarmService:
    """Implements `Service`. `find` leads from a model's name to a served model; `first` is a worker started already."""

    def __init__(
        self,
        names: Sequence[ServedName],
        settings: ServeSettings,
        *,
        find: Callable[[str], ServedModel],
        first: Spawned | None = None,
    ) -> None:
        self._settings, self._find, self._first = settings, find, first
        self._catalogue = Catalogue(names)
        self._slots = [Slot(place, self._pump, self._lose) for place in settings.places()]
        self._dispatch = Dispatcher(self._slots, self._catalogue.route, settings.admission)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()  # loads and unloads, each of which may unload others
        self._is_draining = False

    async def start(self) -> None:
        """Begin to load. Raises: UserError for a model that is not there, or larger than the budget."""
        for slot in self._slots:
            slot.start(self._first)
            self._first = None
        here = [entry for entry in self._catalogue.entries.values() if "://" not in entry.asked.source]
        for entry in here:
            await self._look(entry)
        self._choose(here)
        self._spawn(self._load_all(here))
        for entry in self._catalogue.entries.values():
            if entry not in here:
                self._spawn(self._load_from_afar(entry))

    async def detect(
        self, name: str, image: bytes, options: DetectOptions, *, version: str | None = None, timeout_s: float
    ) -> Answer:
        asked = {"options": asdict(options)}
        begun_s = time.monotonic()
        message, request = await self._ask(name, version, "detect", asked, image, timeout_s)
        header = message.header
        seconds = dict(header["seconds"])
        seconds["queue"] = seconds.get("queue", 0.0) + time.monotonic() - begun_s - sum(seconds.values())
        height_px, width_px = header["size_px"]
        return Answer(
            objects=header["objects"],
            height_px=height_px,
            width_px=width_px,
            model=name,
            version=version_in(request.key),
            session=header["session"],
            seconds=seconds,
        )

    async def infer(self, name: str, images: Tensor, *, version: str | None = None, timeout_s: float) -> Inferred:
        asked = {"shape": images.shape}
        message, request = await self._ask(name, version, "infer", asked, images.data, timeout_s)
        outputs, rest = {}, memoryview(message.body)
        for output, shape in message.header["outputs"]:
            num_bytes = _NUMBER_BYTES * math.prod(shape)
            outputs[output], rest = Tensor(tuple(shape), rest[:num_bytes]), rest[num_bytes:]
        return Inferred(outputs=outputs, version=version_in(request.key))

    def readiness(self) -> Readiness:
        models = tuple(entry.status(self._slots) for entry in self._catalogue.entries.values())
        is_ready = all(model.state == "ready" for model in models if model.is_required)
        return Readiness(is_ready=is_ready and not self._is_draining, models=models, is_draining=self._is_draining)

    def figures(self) -> Figures:
        entries = self._catalogue.entries.values()
        return Figures(
            num_queued=self._dispatch.num_queued,
            num_running=self._dispatch.num_running,
            num_restarts=sum(slot.num_restarts for slot in self._slots),
            num_fallbacks=self._dispatch.num_fallbacks,
            resident_bytes={slot.place.name: slot.num_bytes for slot in self._slots},
            more={
                "num_refused": self._dispatch.num_refused,
                "num_lost": self._dispatch.num_lost,
                "num_retried": self._dispatch.num_retried,
                "num_swaps": sum(entry.num_swaps for entry in entries),
                "num_refused_versions": sum(len(entry.refused) for entry in entries),
            },
        )

    async def load(self, name: str) -> None:
        entry = self._catalogue.entry(name)
        async with self._changing, entry.changing:
            if not entry.is_resident or entry.failed or not self._is_expected(entry):
                before = entry.key()
                await self._look(entry)
                if entry.current is None:
                    raise NotReady(f"{name} has no version yet", retry_after_s=_RETRY_S)
                if before and before != entry.key():
                    await retire(before, self._slots, self._dispatch)
                await self._make_room(entry)
                entry.failed, entry.is_resident = "", True
            await bring(entry, self._slots, self._settings.budget_bytes)
            if entry.failed:
                raise UserError(entry.failed, remedy="repair the model, and load it again")
            entry.is_required, entry.why = True, ""

    async def unload(self, name: str) -> None:
        entry = self._catalogue.entry(name)
        async with self._changing:
            await self._retire(entry)

    async def drain(self, timeout_s: float) -> None:
        self._is_draining = True
        until_s = time.monotonic() + timeout_s
        while self._dispatch.num_open and time.monotonic() < until_s:
            await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
        self._dispatch.refuse_all(lost("the service ends"))
        await asyncio.gather(*(slot.end() for slot in self._slots))

    # --- requests ------------------------------------------------------------------------------------------------

    async def _ask(
        self, name: str, version: str | None, kind: str, asked: dict[str, Any], body: Any, timeout_s: float
    ) -> tuple[Message, Request]:
        if self._is_draining:
            raise NotReady("the service is ending", retry_after_s=_RETRY_S)
        entry = self._catalogue.entry(name)
        entry.used_at_s = time.monotonic()
        if not entry.is_resident and not entry.failed and self._settings.load_on_request:
            timeout_s -= await self._load_for_request(entry, timeout_s)
        key = entry.key(version)
        if version is not None and key is None and entry.current:
            raise replaced(name, version)
        if not entry.is_resident or key is None or not self._is_expected(entry, version):
            status = entry.status(self._slots)
            raise NotReady(f"{name} is {status.state}: {status.why or 'not warm yet'}", retry_after_s=_RETRY_S)
        return await self._dispatch.ask(name, version, kind, asked, body, timeout_s=timeout_s)

    async def _load_for_request(self, entry: Entry, timeout_s: float) -> float:
        """All requests wait for one load, at most so long; returns how long this one did."""
        begun_s = time.monotonic()
        if entry.loading is None or entry.loading.done():
            entry.loading = self._spawn(self.load(entry.asked.name))
        done, _ = await asyncio.wait([entry.loading], timeout=timeout_s)
        if done and not entry.loading.cancelled() and isinstance(error := entry.loading.exception(), SteadyError):
            raise NotReady(f"{entry.asked.name} cannot be loaded: {error.message}", retry_after_s=_RETRY_S)
        return time.monotonic() - begun_s

    def _is_expected(self, entry: Entry, version: str | None = None) -> bool:
        key = entry.key(version)
        return key is not None and any(slot.is_expected(key) for slot in self._slots)

    def _pump(self) -> None:
        self._dispatch.pump()

    def _lose(self, requests: list[Request]) -> None:
        self._dispatch.take_back(requests)

    # --- models --------------------------------------------------------------------------------------------------

    async def _look(self, entry: Entry) -> None:
        """Find the version to begin with, and where others will come from."""
        source = entry.asked.source
        if entry.asked.is_watched and entry.versions is None:
            is_far = "://" in source
            entry.versions = FoundVersions(source, self._find) if is_far else FolderVersions(Path(source))
        if (versions := entry.versions) is not None:
            entry.current = await asyncio.to_thread(versions.newest, _is_refused_by(entry))
        else:
            entry.current = await asyncio.to_thread(self._find, source)

    def _choose(self, entries: Sequence[Entry]) -> None:
        there = [entry for entry in entries if entry.current]
        chosen = plan_start([self._resident(entry) for entry in there], budget_bytes=self._settings.budget_bytes)
        for entry in there:
            entry.is_resident = entry.is_required = entry.asked.name in chosen
            entry.why = "" if entry.is_resident else "left out: the memory budget is used up"
        there.sort(key=lambda entry: chosen.index(entry.asked.name) if entry.is_resident else len(chosen))
        for entry in there:  # in the order that was chosen
            self._catalogue.entries[entry.asked.name] = self._catalogue.entries.pop(entry.asked.name)

    async def _load_all(self, entries: Sequence[Entry]) -> None:
        ordered = [one for one in self._catalogue.entries.values() if one in entries]
        present = [one for one in ordered if one.is_resident and one.current]
        if self._settings.budget_bytes is None:
            await asyncio.gather(*(bring(entry, self._slots, None) for entry in present))
        else:
            for entry in present:  # one by one: each is measured before the next
                await self._bring_within(entry, self._settings.budget_bytes)
        for entry in ordered:
            if entry.versions:
                if entry.failed and entry.current:
                    with suppress(OSError):
                        entry.refused[signature(entry.current)] = entry.failed
                self._spawn(self._watch(entry, entry.versions))

    async def _bring_within(self, entry: Entry, budget_bytes: int) -> None:
        left_bytes = budget_bytes - self._others_bytes(entry)
        if entry.num_bytes(self._slots) <= left_bytes:
            await bring(entry, self._slots, budget_bytes)
        if entry.num_bytes(self._slots) > left_bytes and not entry.failed:
            entry.why = "left out: the memory budget is used up"
            await self.unload(entry.asked.name)

    def _others_bytes(self, entry: Entry) -> int:
        """What the other models have in memory."""
        others = [one for one in self._catalogue.entries.values() if one is not entry and one.is_resident]
        return sum(one.num_bytes(self._slots) for one in others if one.is_loaded(self._slots))

    async def _make_room(self, entry: Entry) -> None:
        residents = [self._resident(one) for one in self._catalogue.entries.values() if one.is_resident]
        for name in plan_room(residents, self._resident(entry), budget_bytes=self._settings.budget_bytes):
            await self._retire(self._catalogue.entry(name))

    async def _retire(self, entry: Entry) -> None:
        """Nothing more is accepted for it; what was is answered."""
        entry.is_resident, entry.is_required = False, False
        async with entry.changing:
            if key := entry.key():
                await retire(key, self._slots, self._dispatch)

    async def _load_from_afar(self, entry: Entry) -> None:
        try:
            await self._look(entry)
        except (SteadyError, OSError) as error:
            entry.failed = _text_of(error)
        await self._load_all([entry])

    async def _watch(self, entry: Entry, versions: Versions) -> None:
        """Swap whenever there is a newer version; one that was refused is not tried again."""
        while True:
            await asyncio.sleep(self._settings.poll_s)
            try:
                newest = await asyncio.to_thread(versions.newest, _is_refused_by(entry))
                entry.unseen = ""
                if newest and (entry.failed or entry.current is None or newest.version != entry.current.version):
                    await self._swap(entry, newest)
            except (SteadyError, OSError) as error:
                entry.unseen = _text_of(error)

    async def _swap(self, entry: Entry, newest: ServedModel) -> None:
        async with entry.changing:
            if not entry.is_resident:
                entry.current = newest  # for when it is loaded
                return
            budget_bytes = self._settings.budget_bytes
            room_bytes = None if budget_bytes is None else budget_bytes - self._others_bytes(entry)
            await swap(entry, newest, self._slots, self._dispatch, room_bytes=room_bytes)

    def _resident(self, entry: Entry) -> Resident:
        return Resident(
            name=entry.asked.name,
            num_bytes=entry.num_bytes(self._slots),
            is_pinned=entry.asked.is_pinned,
            is_busy=self._dispatch.is_used(entry.key() or ""),
            used_at_s=entry.used_at_s,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._is_over)
        return task

    def _is_over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error(
                "%s ended: %s", task.get_name(), error, exc_info=None if isinstance(error, SteadyError) else error
            )


def _is_refused_by(entry: Entry) -> IsRefused:
    return lambda model: signature(model) in entry.refused


def _text_of(error: SteadyError | OSError) -> str:
    return error.message if isinstance(error, SteadyError) else str(error)
