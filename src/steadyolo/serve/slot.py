"""A slot: the place of one device's worker, which is started, watched, ended and started again."""

from __future__ import annotations

import asyncio
import itertools
import logging
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from steadyolo.errors import DataLoss, SteadyError
from steadyolo.serve import spawning, wire
from steadyolo.serve.admission import Pace
from steadyolo.serve.place import Place
from steadyolo.serve.requests import Request, error_of, lost
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import DetectOptions, DeviceFault
from steadyolo.serve.session import SessionSettings
from steadyolo.serve.spawning import Spawned
from steadyolo.serve.wire import Message

_BEAT_S = 0.1  # as workers do
_START_LIMIT_S = 120.0  # for importing its runtime
_END_LIMIT_S = 2.0
_REHEARSAL_LIMIT_S = 60.0
_NUM_LOSSES = 2  # a model that two workers ended with gets no third
_USUAL = asdict(DetectOptions())
_HEALTHY_S = 30.0  # after which a worker's earlier ends do not count
_log = logging.getLogger(__name__)
_numbers = itertools.count(1)


def restart_delay_s(num_ends: int) -> float:
    """How long a place stays empty after `num_ends` workers ended there in a row, each soon after the other."""
    return 0.0 if num_ends <= 1 else min(30.0, 0.2 * 2.0 ** (num_ends - 2))


@dataclass(eq=False, slots=True)
class _Wanted:
    message: dict[str, Any]
    done: asyncio.Future[dict[str, Any]]
    was_warm: bool = False
    runtime: str = ""  # that it had when it was warm, where that is known
    why: str = ""
    golden: bytes = b""  # its golden picture, as a JPEG
    used_s: float = 0.0
    num_losses: int = 0  # workers that ended while they loaded it


@dataclass(frozen=True, slots=True)
class _Asked:
    """A load or an unload under way."""

    key: str
    done: asyncio.Future[dict[str, Any]]
    is_load: bool


class Slot:
    """Keeps the engines in `want` loaded in a worker. `on_change` is called whenever there may be room, or a loss."""

    def __init__(self, place: Place, on_change: Callable[[], None], on_loss: Callable[[list[Request]], None]) -> None:
        self.place = place
        self.loaded: dict[str, dict[str, Any]] = {}  # what is warm in the worker of now, and what it told of it
        self.warming: set[str] = set()
        self.num_restarts, self.num_rehearsals, self.num_bytes, self.pace = 0, 0, 0, Pace()
        self.why_out = ""
        self.outstanding: dict[int, Request] = {}
        self._on_change, self._on_loss = on_change, on_loss
        self._wanted: dict[str, _Wanted] = {}
        self._asked: dict[int, _Asked] = {}
        self._rehearsals: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._spawned: Spawned | None = None
        self._num_missed_beats, self._is_heard, self._is_ending = 0, False, False
        self._num_ends = 0  # in a row
        self._task: asyncio.Task[None] | None = None

    def start(self, spawned: Spawned | None = None) -> None:
        """Go on with a worker that was started already, or start one."""
        self._task = asyncio.get_running_loop().create_task(self._keep(spawned))

    @property
    def pid(self) -> int | None:
        return self._spawned.process.pid if self._spawned else None

    def has_room(self, request: Request) -> bool:
        """One that a worker ended with goes alone, so that no other is blamed when it happens again."""
        if request.num_losses:
            return not self.outstanding
        is_alone = any(other.num_losses for other in self.outstanding.values())
        return len(self.outstanding) < self.place.window and not is_alone

    def send(self, request: Request, key: str) -> None:
        """Compute it; its answer comes by itself, or it is in a loss."""
        if not self.outstanding:
            self.pace.begins(time.monotonic())
        self._wanted[key].used_s = time.monotonic()
        request.key = key
        request.is_by_fallback = self.place.is_fallback
        self.outstanding[request.number] = request
        self._send(request.message(key))

    async def want(
        self, key: str, model: ServedModel, *, like: str | None = None, is_verified: bool = False
    ) -> dict[str, Any]:
        """Load it, and again after each restart; returns what was measured when it is warm.

        It is opened as the engine `like` is. Where `is_verified`, every byte was read just now: not again, the first
        time.

        Raises: UserError, DataLoss, DeviceFault for a model that is refused.
        """
        wanted = self._wanted.get(key)
        if wanted is None or (wanted.done.done() and wanted.done.exception()):
            session = {**asdict(self.session_like(like)), "device": spawning.device_inside(self.place.device)}
            session["cache"] = str(session["cache"]) if session["cache"] else None
            folder = str(model.folder.resolve())  # a link may lead elsewhere when it is loaded again
            message = {"key": key, "folder": folder, "version": model.version, "session": session}
            message["settings"] = asdict(self.place.load)
            wanted = _Wanted(message, asyncio.get_running_loop().create_future())
            self._wanted[key] = wanted
            if self._writer:
                self._load(key, wanted, is_verified=is_verified)
        return await asyncio.shield(wanted.done)

    def session_like(self, key: str | None) -> SessionSettings:
        """Those of the place, with the runtime that `key` has or had here: beside requests none can be measured."""
        session, wanted = self.place.session, self._wanted.get(key) if key else None
        return replace(session, runtime=wanted.runtime) if wanted and wanted.runtime else session

    async def drop(self, key: str) -> None:
        """Give its memory back; where it is only being loaded, when it is."""
        if (wanted := self._wanted.pop(key, None)) is not None:
            _fulfil(wanted.done, {})
        if self.loaded.pop(key, None) is not None:
            with suppress(SteadyError):
                await self._unload(key)

    def why(self, key: str) -> str:
        """What keeps it from being warm here; empty where nothing does."""
        wanted = self._wanted.get(key)
        return wanted.why if wanted else ""

    def is_expected(self, key: str) -> bool:
        """Is it warm here, or was it and is the worker only now started again?"""
        return key in self.loaded or (self.was_warm(key) and self._num_ends <= 1)

    def was_warm(self, key: str) -> bool:
        """Has it been warm here, in this worker or an earlier one?"""
        return key in self._wanted and self._wanted[key].was_warm

    def kill(self, why: str) -> None:
        """End the worker at once, by its id: a call into a library that hangs cannot be interrupted."""
        if self._spawned and not self.why_out:
            self.why_out = why
            _log.warning("worker %s (%s) is ended: %s", self.place.name, self.pid, why)
        if self._spawned:
            self._spawned.process.kill()
        if self._writer:
            self._writer.transport.abort()  # a process that its driver holds does not close its side

    async def end(self) -> None:
        """Let the worker finish, and start no other."""
        self._is_ending = True
        if self._writer:
            self._send(Message({"kind": "end", "number": 0}))
        if self._task:
            done, _ = await asyncio.wait([self._task], timeout=_END_LIMIT_S)
            if not done:
                self.kill("it did not end when told to")
                self._task.cancel()
                await asyncio.wait([self._task])

    # --- one worker after the other ------------------------------------------------------------------------------

    async def _keep(self, spawned: Spawned | None) -> None:
        while not self._is_ending:
            begun_s = time.monotonic()
            place = self.place
            try:
                self._spawned = spawned or spawning.spawn(
                    device=place.device, command=place.command, niceness=place.niceness
                )
                spawned, self._num_missed_beats, self._is_heard = None, 0, False
                try:
                    await self._live(self._spawned)
                finally:
                    self._take_out(self._spawned)
                await asyncio.to_thread(_reap, self._spawned)
            except (OSError, DataLoss) as error:  # no process could be started, or one spoke nonsense
                _log.error("worker %s: %s", place.name, error)
            if self._is_ending or not place.is_restarted:
                break
            self._num_ends = 1 if time.monotonic() - begun_s > _HEALTHY_S else self._num_ends + 1
            self.num_restarts += 1
            await asyncio.sleep(restart_delay_s(self._num_ends))

    async def _live(self, spawned: Spawned) -> None:
        reader, self._writer = await asyncio.open_connection(sock=spawned.connection, limit=1 << 22)
        self.why_out = ""
        watch = asyncio.get_running_loop().create_task(self._watch())
        try:
            for key, wanted in self._wanted.items():
                self._load(key, wanted)
            while (message := await wire.receive_from(reader)) is not None:
                self._hear(message)
        finally:
            watch.cancel()
            self._writer.close()
            self._writer = None

    def _take_out(self, spawned: Spawned) -> None:
        why = self.why_out or f"it ended with code {spawned.process.poll()}"
        spawned.process.kill()  # it closed its socket: whatever still runs in it is of no use
        if not self._is_ending:
            self.why_out = why
            _log.warning("worker %s is gone: %s", self.place.name, why)
        self.loaded.clear()
        self.warming.clear()
        self.pace.stops()
        self.num_bytes = 0
        losses, self.outstanding = list(self.outstanding.values()), {}
        asked, self._asked = list(self._asked.values()), {}
        rehearsals, self._rehearsals = self._rehearsals, {}
        for done in rehearsals.values():
            _fulfil(done, {})
        if self._is_heard and not self._is_ending:
            self._blame(next((one.key for one in asked if one.is_load), None), why)
        for one in asked:
            is_again = one.is_load and one.key in self._wanted and self.place.is_restarted and not self._is_ending
            if not is_again:
                _fail(one.done, lost(why))
        for wanted in self._wanted.values():
            wanted.why = why
        self._on_loss(losses)
        self._on_change()

    def _blame(self, key: str | None, why: str) -> None:
        """The worker ended while it loaded that one: a model that does this again and again takes the others along."""
        wanted = self._wanted.get(key) if key is not None else None
        if key is None or wanted is None or wanted.was_warm or not self.place.is_restarted:
            return
        wanted.num_losses += 1
        if wanted.num_losses >= _NUM_LOSSES:
            del self._wanted[key]
            remedy = "export the model again; if it stays, report it"
            _fail(
                wanted.done,
                DeviceFault(f"{wanted.num_losses} workers ended while they loaded it: {why}", remedy=remedy),
            )

    def _unload(self, key: str) -> asyncio.Future[dict[str, Any]]:
        number, done = next(_numbers), asyncio.get_running_loop().create_future()
        if self._writer:
            self._asked[number] = _Asked(key, done, is_load=False)
            self._send(Message({"kind": "unload", "number": number, "key": key}))
        else:
            _fulfil(done, {})  # with the worker that had it
        return done

    def _load(self, key: str, wanted: _Wanted, *, is_verified: bool = False) -> None:
        number = next(_numbers)
        self._asked[number] = _Asked(key, wanted.done, is_load=True)
        message = {"kind": "load", "number": number, **wanted.message}
        if is_verified:
            message["settings"] = {**message["settings"], "verify": False}
        self._send(Message(message))

    def _send(self, message: Message) -> None:
        if self._writer:
            for frame in wire.frames(message):
                self._writer.write(frame)

    def _hear(self, message: Message) -> None:
        self._num_missed_beats, self._is_heard = 0, True
        header = message.header
        match message.kind:
            case "beat":
                self.num_bytes = header["num_bytes"]
                if header["overdue"]:
                    self.kill(header["overdue"])
            case "fault":
                self.kill(header["why"])
            case "warming":
                self.warming.add(header["key"])
            case "measured":
                if header["key"] in self.loaded:
                    self.loaded[header["key"]] = header
            case "reply" | "error" if header["number"] in self._asked:
                self._settle_load(self._asked.pop(header["number"]), message)
            case "reply" | "error" if header["number"] in self._rehearsals:
                _fulfil(self._rehearsals.pop(header["number"]), header)
            case "reply" | "error":
                request = self.outstanding.pop(header["number"], None)
                self.pace.finishes(time.monotonic(), is_idle=not self.outstanding)
                if request:
                    request.settle(message)
                self._on_change()

    def _settle_load(self, asked: _Asked, message: Message) -> None:
        key, wanted = asked.key, self._wanted.get(asked.key)
        if not asked.is_load:
            _fulfil(asked.done, message.header)
            return
        self.warming.discard(key)
        if wanted is None or wanted.done is not asked.done:
            if wanted is None and message.kind == "reply":  # nobody wants it any more
                self._unload(key)
        elif message.kind == "reply":
            wanted.golden = bytes(message.body)
            task = asyncio.get_running_loop().create_task(self._open(key, wanted, message.header))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            error = error_of(message)
            if wanted.was_warm and isinstance(error, DeviceFault):
                self.kill(error.message)  # the model was right before: the device is not, and may be in a fresh process
            elif wanted.was_warm:  # it is not what it was: whoever wants it is told
                wanted.was_warm, wanted.done = False, asyncio.get_running_loop().create_future()
            wanted.why = error.message
            _fail(wanted.done, error)

    async def _open(self, key: str, wanted: _Wanted, told: dict[str, Any]) -> None:
        """The worker is warm; now the way to it and back."""
        writer = self._writer
        if self.place.load.warm_up:
            await self._rehearse(key, wanted)
        if writer is None or self._writer is not writer:
            return  # that worker is gone; the next one loads it anew
        if self._wanted.get(key) is None:  # nobody wants it any more
            self._unload(key)
        elif self._wanted[key] is wanted:
            self.loaded[key], wanted.was_warm, wanted.why = told, True, ""
            wanted.used_s, wanted.runtime = time.monotonic(), told["runtime"]
            _fulfil(wanted.done, told)
            self._on_change()

    async def _rehearse(self, key: str, wanted: _Wanted) -> None:
        """The golden picture, as if it were a request; real ones go first."""
        wanted.used_s = time.monotonic()
        if not self._writer:
            return
        number, done = next(_numbers), asyncio.get_running_loop().create_future()
        self._rehearsals[number] = done
        self.num_rehearsals += 1
        asked = {"options": _USUAL, "is_behind": True, "deadline_s": wanted.used_s + _REHEARSAL_LIMIT_S}
        self._send(Message({"kind": "detect", "number": number, "key": key, **asked}, wanted.golden))
        await done

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            self._num_missed_beats += 1  # counted, not timed: where this process stood still, so did the counting
            limit_s = self.place.hang_s if self._is_heard else _START_LIMIT_S
            if self._num_missed_beats * _BEAT_S > limit_s:
                self.kill(f"no sign of life for {limit_s:.1f} s")
            if self.place.load.warm_up and not self._rehearsals:
                await self._keep_warm()

    async def _keep_warm(self) -> None:
        """What nobody asked for a while goes once the whole way, so that the next request is no first one."""
        for key in list(self.loaded):
            wanted = self._wanted.get(key)
            if wanted and time.monotonic() - wanted.used_s >= self.place.load.idle_s:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._rehearse(key, wanted), _BEAT_S)


def _fulfil(done: asyncio.Future[dict[str, Any]], told: dict[str, Any]) -> None:
    if not done.done():
        done.set_result(told)


def _fail(done: asyncio.Future[dict[str, Any]], error: SteadyError) -> None:
    if not done.done():
        done.set_exception(error)
        done.exception()  # whoever waits is told; nobody has to


def _reap(spawned: Spawned) -> None:
    with suppress(subprocess.TimeoutExpired):  # a driver may hold it for ever
        spawned.process.wait(timeout=_END_LIMIT_S)
