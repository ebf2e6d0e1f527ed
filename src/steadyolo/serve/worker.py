"""The worker process: decodes, prepares, forms batches, runs and finishes, for one device, until its front is gone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.serve import pictures, wire
from steadyolo.serve.gently import gently
from steadyolo.serve.lane import Lane
from steadyolo.serve.loaded import Loaded, OpenEngine, load
from steadyolo.serve.overdue import Calls
from steadyolo.serve.place import LoadSettings
from steadyolo.serve.resident import resident_bytes
from steadyolo.serve.service import DetectOptions, DeviceFault
from steadyolo.serve.session import SessionSettings
from steadyolo.serve.wire import Message

BEAT_S = 0.1
_NUM_HANDS = 2  # threads that decode and finish while another runs the session
_RUN_LIMIT_TIMES, _COLD_RUN_LIMIT_S, _HAND_LIMIT_S, _LOAD_LIMIT_S = 10, 60.0, 5.0, 900.0


class Expired(Transient):
    """Its time was over before anything was computed for it."""


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way through; ends with `told` or `refused`."""

    loaded: Loaded
    body: bytes | bytearray | memoryview
    options: DetectOptions | None  # None for a tensor, whose answer is the graph's own
    told: Callable[[dict[str, Any], bytes], None]
    refused: Callable[[SteadyError], None]
    deadline_s: float = float("inf")  # of the monotonic clock, which front and worker share
    shape: tuple[int, ...] | None = None  # that it has, or that a picture is to be prepared in
    is_behind: bool = False  # others go first
    images: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))  # as the session takes them
    prepared: Any = None
    size_px: tuple[int, int] = (0, 0)
    seconds: dict[str, float] = field(default_factory=dict)
    at_s: float = field(default_factory=time.monotonic)

    def stage(self, name: str) -> None:
        """What passed since the stage before belongs to `name`."""
        now_s = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now_s - self.at_s
        self.at_s = now_s


class Worker:
    """Threads: one reads what is asked, some decode and finish, one runs, one loads, one keeps warm, one beats."""

    def __init__(
        self,
        connection: socket.socket,
        open_engine: OpenEngine,
        *,
        first_before_bytes: int | None = None,
    ) -> None:
        self._connection, self._open_engine = connection, open_engine
        self._first_before_bytes = first_before_bytes  # memory in use before the first model was begun with
        self._sending = threading.Lock()
        self._loaded: dict[str, Loaded] = {}
        self._lane: Lane[Job] = Lane(self._run)
        self._calls = Calls()
        self._hands = ThreadPoolExecutor(_NUM_HANDS, thread_name_prefix="hand")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")

    def serve(self) -> None:
        """Until the front closes the socket or says `end`."""
        pictures.silence()
        pictures.one_thread()
        self._lane.start()
        for target in (self._beat, self._keep_warm):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()
        while (message := wire.receive(self._connection)) is not None and message.kind != "end":
            self._take(message)

    def _take(self, message: Message) -> None:
        asked, number = message.header, message.header["number"]
        refused = partial(self._refuse, number)
        if message.kind == "load":
            self._loader.submit(self._guarded, refused, partial(self._load, asked))
        elif (loaded := self._loaded.get(asked["key"])) is None:
            refused(UserError(f"{asked['key']} is not loaded here", remedy="load it first"))
        elif message.kind == "unload":
            self._loader.submit(self._guarded, refused, partial(self._unload, number, loaded))
        else:
            self._begin(
                Job(
                    loaded,
                    message.body,
                    DetectOptions(**asked["options"]) if message.kind == "detect" else None,
                    told=partial(self._answer, number),
                    refused=refused,
                    deadline_s=asked["deadline_s"],
                    shape=asked.get("shape"),
                    is_behind=asked.get("is_behind", False),
                )
            )

    # --- engines -------------------------------------------------------------------------------------------------

    def _load(self, asked: dict[str, Any]) -> None:
        begun_s, key = time.monotonic(), asked["key"]
        before_bytes, self._first_before_bytes = self._first_before_bytes or resident_bytes(), None
        session = asked["session"]
        session["cache"] = session["cache"] and Path(session["cache"])
        with self._calls.limited(f"loading {key}", _LOAD_LIMIT_S):
            beside = gently() if self._loaded else nullcontext()
            try:
                with beside:
                    loaded = load(
                        key,
                        Path(asked["folder"]),
                        asked["version"],
                        SessionSettings(**session),
                        LoadSettings(**asked["settings"]),
                        self._open_engine,
                    )
            except DeviceFault as error:  # of this model or of the device: the front knows which
                self._refuse(asked["number"], error)
                return
            if loaded.settings.warm_up:
                self._tell("warming", key=key)
                in_hands = _on_the_spot if self._loaded else self._in_each_hand  # warm by now, and others need them
                loaded.warm_up(partial(self._rehearse, loaded), in_hands)
        loaded.num_bytes = max(0, resident_bytes() - before_bytes)
        loaded.load_s = time.monotonic() - begun_s
        before = self._loaded.get(key)
        self._loaded[key] = loaded
        if before is not None:  # given up and wanted again before it was there
            self._lane.between(before.engine.session.close)
        self._tell("reply", loaded.jpeg, number=asked["number"], **loaded.told())
        if loaded.settings.warm_up and loaded.settings.max_batch > 1 and loaded.model.is_dynamic:
            self._loader.submit(self._grow, loaded)

    def _grow(self, loaded: Loaded) -> None:
        """Find out, beside requests, which larger batches pay; none is formed before it is warm."""
        size = 2
        while size <= loaded.settings.max_batch and self._loaded.get(loaded.key) is loaded:
            loaded.warm_up_batch(size, self._lane.between)
            for shape_px in loaded.engine.shapes_px:
                self._lane.bucket((loaded.key, shape_px), loaded.buckets, hold_s=loaded.settings.hold_s)
            self._tell("measured", key=loaded.key, **loaded.told())
            size *= 2

    def _unload(self, number: int, loaded: Loaded) -> None:
        if self._loaded.get(loaded.key) is loaded:
            del self._loaded[loaded.key]
        self._lane.between(loaded.engine.session.close)
        from steadyolo.state.host_memory import trim_freed_memory  # a start does not wait for it

        trim_freed_memory()  # a worker keeps it for its next picture otherwise (`spawning`)
        self._tell("reply", number=number)

    def _rehearse(self, loaded: Loaded, shape_px: tuple[int, int]) -> None:
        """The golden picture through the way of every request."""
        done: Future[None] = Future()
        self._begin(
            Job(
                loaded,
                loaded.jpeg,
                DetectOptions(),
                told=lambda _told, _body: done.set_result(None),
                refused=done.set_exception,
                shape=shape_px,
                is_behind=True,
            )
        )
        done.result()

    def _in_each_hand(self, task: Callable[[], object]) -> None:
        """Memory is a thread's own in part: one that never prepared a picture takes twice as long for its first."""
        together = threading.Barrier(_NUM_HANDS)

        def do() -> None:
            together.wait()  # none takes two of them
            task()

        for done in [self._hands.submit(do) for _ in range(_NUM_HANDS)]:
            done.result()

    def _keep_warm(self) -> None:
        while True:
            time.sleep(BEAT_S)
            for loaded in list(self._loaded.values()):
                if loaded.is_due(time.monotonic()):
                    self._guarded(None, partial(self._refresh, loaded))

    def _refresh(self, loaded: Loaded) -> None:
        with self._calls.limited(f"refreshing {loaded.key}", _HAND_LIMIT_S + self._limit_s(loaded, 1)):
            loaded.refresh(self._lane.between)
        self._tell("refreshed", key=loaded.key)

    # --- requests ------------------------------------------------------------------------------------------------

    def _begin(self, job: Job) -> None:
        self._lane.expect()
        self._hands.submit(self._guarded, job.refused, partial(self._prepare, job), self._lane.gave_up)

    def _prepare(self, job: Job) -> None:
        job.stage("queue")
        if time.monotonic() > job.deadline_s:
            raise Expired("its time was over before it was begun", remedy="send it again")
        engine = job.loaded.engine
        with self._calls.limited("decoding", _HAND_LIMIT_S):
            if job.options is None:
                job.images = np.frombuffer(job.body, np.float32).reshape(job.shape or ())
                if not np.isfinite(job.images).all():
                    raise UserError("the tensor holds numbers that are not finite", remedy="give numbers from 0 to 1")
            else:
                picture = engine.decode(job.body)  # type: ignore[arg-type]  # any buffer will do
                job.size_px = (picture.shape[0], picture.shape[1])
                job.stage("decode")
                job.prepared = engine.prepare(picture, job.shape)  # type: ignore[arg-type]
                job.images = job.prepared.image[None]
        job.stage("prepare")
        kind = (job.loaded.key, job.images.shape[-2:]) if job.options else id(job)  # tensors go alone
        self._lane.put(job, kind, is_behind=job.is_behind)

    def _run(self, jobs: list[Job]) -> None:
        def refused(error: SteadyError) -> None:
            for job in jobs:
                job.refused(error)

        self._guarded(refused, lambda: self._run_together(jobs))

    def _run_together(self, jobs: list[Job]) -> None:
        late = [job for job in jobs if time.monotonic() > job.deadline_s]
        for job in late:
            job.refused(Expired("its time was over before it ran", remedy="send it again"))
        if not (jobs := [job for job in jobs if job not in late]):
            return
        for job in jobs:
            job.stage("queue")
        loaded = jobs[0].loaded
        images = jobs[0].images if len(jobs) == 1 else np.concatenate([job.images for job in jobs])
        with self._calls.limited("a run", self._limit_s(loaded, len(images))):
            outputs = loaded.engine.session.run(images)
        for index, job in enumerate(jobs):
            job.stage("run")
            mine = outputs if job.options is None else [output[index : index + 1] for output in outputs]
            self._hands.submit(self._guarded, job.refused, partial(self._finish, job, mine, len(jobs)))

    def _finish(self, job: Job, outputs: list[NDArray[np.float32]], num_together: int) -> None:
        told: dict[str, Any] = {"session": job.loaded.engine.session.label, "seconds": job.seconds}
        body = b""
        with self._calls.limited("finishing", _HAND_LIMIT_S):
            if job.options is None:
                body = b"".join(np.ascontiguousarray(one, np.float32).tobytes() for one in outputs)
                told["outputs"] = list(zip(job.loaded.model.outputs, [one.shape for one in outputs], strict=True))
            else:
                told["objects"] = job.loaded.engine.finish(outputs, job.prepared, job.options).summary()
                told |= {"size_px": job.size_px, "num_together": num_together}
        job.stage("finish")
        job.told(told, body)

    def _limit_s(self, loaded: Loaded, num_images: int) -> float:
        usual_s = loaded.usual_s(num_images)
        return max(loaded.settings.hang_s, _RUN_LIMIT_TIMES * usual_s) if usual_s else _COLD_RUN_LIMIT_S

    # --- what is said --------------------------------------------------------------------------------------------

    def _guarded(
        self,
        refused: Callable[[SteadyError], None] | None,
        do: Callable[[], object],
        otherwise: Callable[[], None] | None = None,
    ) -> None:
        """The edge of every thread: what goes wrong is answered, or takes the whole worker out."""
        try:
            do()
        except (DeviceFault, MemoryError) as error:
            self._tell("fault", why=str(error) or "out of memory")
        except (BrokenPipeError, ConnectionError):
            raise SystemExit from None  # the front is gone
        except Exception as error:  # noqa: BLE001  # a mistake of ours, or an error of a library: told whole
            if not isinstance(error, SteadyError):
                error = SteadyError(f"{type(error).__name__}: {error}", remedy="report it with what was asked")
            if refused:
                refused(error)
            else:
                self._tell("fault", why=error.message)
        else:
            return
        if otherwise:
            otherwise()

    def _answer(self, number: int, told: dict[str, Any], body: bytes) -> None:
        self._tell("reply", body, number=number, **told)

    def _refuse(self, number: int, error: SteadyError) -> None:
        self._tell("error", number=number, type=type(error).__name__, message=error.message, remedy=error.remedy)

    def _tell(self, kind: str, body: bytes = b"", **header: Any) -> None:
        with self._sending:
            wire.send(self._connection, Message({"kind": kind, **header}, body))

    def _beat(self) -> None:
        while True:
            try:
                self._tell("beat", overdue=self._calls.beat(BEAT_S), num_bytes=resident_bytes())
            except OSError:
                return  # the front is gone, as `serve` notices too
            time.sleep(BEAT_S)


def _on_the_spot(task: Callable[[], object]) -> None:
    task()
