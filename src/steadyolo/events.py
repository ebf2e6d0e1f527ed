"""What happens in a run: one frozen type per happening, and the log that tells everybody who listens.

`epoch` and `batch` of an event count from 0, as `Cursor` does. Closed epochs (`EpochClosed.epoch`, `best_epoch`) count
from 1, as `results.csv` and `Ledger` do; 0 is none.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, SupportsFloat

logger = logging.getLogger(__name__)

StopReason = Literal["interrupted", "finished", "early_stopping", "time", "taken_over", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run. `kind` names the type in `events.jsonl` and never changes."""

    kind: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A process began to work on the run; `resumed_from` names the checkpoint that it goes on from."""

    kind: ClassVar[str] = "run_started"
    model: str
    task: str
    data: str
    device: str
    precision: str
    threads: int
    num_train_images: int
    num_val_images: int
    resumed_from: str | None = None
    epochs: int | None = None  # asked for
    num_batches: int | None = None  # in one epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(Event):
    """Batches were consumed, up to and with `batch`.

    `losses` are means over the epoch so far. `num_images` and `seconds` count from the event before this one: where
    batches are fast, not each of them is told.
    """

    kind: ClassVar[str] = "step_done"
    epoch: int
    batch: int
    step: int
    losses: dict[str, float]
    num_images: int
    seconds: float
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochClosed(Event):
    """An epoch was trained and scored, which took `seconds` together; its row is in `results.csv`."""

    kind: ClassVar[str] = "epoch_closed"
    epoch: int
    metrics: dict[str, float]
    fitness: float | None
    is_best: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlanned(Event):
    """What was decided about the run's memory, told in `lines`; `predicted_bytes` None where nothing was predicted.

    Predicted is what `MemoryMeasured` measures: of the process on a CPU, of torch's allocator on an accelerator.
    """

    kind: ClassVar[str] = "memory_planned"
    lines: tuple[str, ...]
    predicted_bytes: int | None
    budget_bytes: int | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryMeasured(Event):
    """Memory at the close of an epoch: what this process and its loader workers hold of the host, and of an accelerator
    what tensors hold, the most that torch reserved in the epoch, and what all processes use of the total.
    """

    kind: ClassVar[str] = "memory_measured"
    epoch: int
    process_bytes: int
    process_peak_bytes: int  # since the process began
    workers_bytes: int
    host_limit_bytes: int
    allocated_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    device_used_bytes: int | None = None
    device_total_bytes: int | None = None

    @property
    def peak_bytes(self) -> int:
        """The peak that a prediction is compared with."""
        return self.process_peak_bytes if self.reserved_peak_bytes is None else self.reserved_peak_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGrowing(Event):
    """`what` grows by `step_bytes` an epoch; at this pace `limit_bytes` are reached in `epochs_left` epochs."""

    kind: ClassVar[str] = "memory_growing"
    what: str
    held_bytes: int
    step_bytes: int
    limit_bytes: int
    epochs_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveCommitted(Event):
    """A checkpoint is whole and durable. Writing took `seconds`; the loop stood still for `stall_seconds` of them."""

    kind: ClassVar[str] = "save_committed"
    name: str
    step: int
    num_bytes: int
    seconds: float
    stall_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveFailed(Event):
    """A checkpoint could not be written; training goes on."""

    kind: ClassVar[str] = "save_failed"
    name: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyVerified(Event):
    """A checkpoint is whole in `tier`, confirmed there. `num_bytes` were sent, in `seconds`."""

    kind: ClassVar[str] = "copy_verified"
    tier: str
    name: str
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyFailed(Event):
    """A tier could not be written to, for the `attempt`-th time in a row. It is tried again in `retry_s` seconds."""

    kind: ClassVar[str] = "copy_failed"
    tier: str
    error: str
    remedy: str
    attempt: int
    retry_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyDropped(Event):
    """A checkpoint will not be kept in `tier`; newer ones will."""

    kind: ClassVar[str] = "copy_dropped"
    tier: str
    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver(Event):
    """Another process took the run over in `tier`; this one saves and stops."""

    kind: ClassVar[str] = "taken_over"
    tier: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRejected(Event):
    """A checkpoint was not good enough to go on from; an older one is tried."""

    kind: ClassVar[str] = "checkpoint_rejected"
    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """The run went on from checkpoint `name`; the next batch is `batch` of `epoch`."""

    kind: ClassVar[str] = "resumed"
    name: str
    step: int
    epoch: int
    batch: int
    best_fitness: float | None = None
    best_epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NonFinite(Event):
    """`what` (a loss, a gradient) was not finite at a batch, for the `attempt`-th time; `action` says what was done."""

    kind: ClassVar[str] = "non_finite"
    epoch: int
    batch: int
    what: str
    attempt: int
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory(Event):
    """An allocation failed at a batch, for the `attempt`-th time there; `action` says what was done.

    `where` is loading, forward, backward, update, ema or validation; `error` says what could not be allocated; `fit`
    is how the batch is put through the network from now on. Of a validation, `batch` is that of its own.
    """

    kind: ClassVar[str] = "out_of_memory"
    where: str
    epoch: int
    batch: int
    attempt: int
    action: str
    fit: dict[str, int]
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalReceived(Event):
    """The process was asked to stop by `signal` (a name such as SIGTERM)."""

    kind: ClassVar[str] = "signal_received"
    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionNotice(Event):
    """The cloud `provider` told of the end of this machine: `action` (such as terminate) in `seconds_left`.

    Where `seconds_left` is None nothing is decided: the notice only warns, and the run goes on.
    """

    kind: ClassVar[str] = "preemption_notice"
    provider: str
    action: str
    seconds_left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSkipped(Event):
    """A batch was left out of training for good."""

    kind: ClassVar[str] = "batch_skipped"
    epoch: int
    batch: int
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesSkipped(Event):
    """`count` images were left out of the data set; `listed` maps the path of some or all of them to the reason."""

    kind: ClassVar[str] = "images_skipped"
    count: int
    listed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStopped(Event):
    """The process is done with the run, for `reason`, and exits with `exit_code`. A process's last event."""

    kind: ClassVar[str] = "run_stopped"
    reason: StopReason
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Event):
    """The run reached its end. `seconds` counts training over all attempts."""

    kind: ClassVar[str] = "run_finished"
    epochs: int
    step: int
    seconds: float
    best_fitness: float | None
    best_epoch: int


Listener = Callable[[Event], None]


class EventLog:
    """Tells listeners at once, and appends events to a file as JSON lines that a kill can tear only at the end.

    Any thread may emit, a signal handler too. Nothing that the disk or a listener does reaches the emitter: a line that
    cannot be written is dropped and counted in `num_dropped`; a listener that raises is logged and told nothing more.
    `StepDone` reaches every listener, but the file only once per `step_every_s`.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        step_every_s: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.num_dropped = 0
        self._path = path
        self._step_every_s = step_every_s
        self._monotonic = monotonic
        self._now = now
        self._next_step_at = -math.inf
        self._listeners: tuple[Listener, ...] = ()
        self._lock = threading.RLock()  # reentrant: a signal handler may emit while this thread is writing
        self._descriptor: int | None = None
        self._torn = False  # the file ends in the middle of a line
        with self._lock:
            self._open()

    def subscribe(self, listener: Listener) -> None:
        """From now on `listener` is called with each event, on the thread that emits it. It must be quick."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def unsubscribe(self, listener: Listener) -> None:
        """`listener` is told nothing more. One that never subscribed is not an error."""
        with self._lock:
            self._listeners = tuple(known for known in self._listeners if known != listener)

    def emit(self, event: Event) -> None:
        """Tell the listeners and append to the file. Never raises."""
        if isinstance(event, StepDone):
            at = self._monotonic()
            if at >= self._next_step_at:
                self._next_step_at = at + self._step_every_s
                self._append(event)
        else:
            self._append(event)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # the listener's edge: a broken display must not end a run
                logger.exception("an event listener failed on %s and is told nothing more", event.kind)
                self.unsubscribe(listener)

    def close(self) -> None:
        """Close the file. Events emitted later reach listeners only."""
        with self._lock:
            self._path = None
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _open(self) -> None:
        """Open the file for appending, if it can be; remember whether its last line was torn."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:  # tried again at the next event
            return
        self._descriptor = descriptor
        size = os.fstat(descriptor).st_size
        self._torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"

    def _append(self, event: Event) -> None:
        line = _line(event, self._now())
        with self._lock:
            if self._path is None:
                return
            if self._descriptor is None:
                self._open()
            if self._descriptor is None:
                self.num_dropped += 1
                return
            whole = b"\n" + line if self._torn else line
            try:
                written = os.write(self._descriptor, whole)
            except OSError:  # a full or broken disk: the run matters more than its log
                self.num_dropped += 1
                return
            if written:
                self._torn = written < len(whole)
            if written < len(whole):
                self.num_dropped += 1


def read_events(path: Path, kinds: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Each event of the file, or of the given `kinds`, as written: `{"time": ..., "kind": ..., fields}`, oldest first.

    Lines that a kill or a full disk tore are left out. Numbers that are not finite are the strings "nan", "inf" and
    "-inf", which `float()` understands. A file that is not there has no events.
    """
    marks = None if kinds is None else [f'"kind": "{kind}"'.encode() for kind in kinds]
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if marks is not None and not any(mark in line for mark in marks):
                continue  # parsing is a hundred times dearer, and most lines are steps
            try:
                event = json.loads(line)
            except ValueError:  # torn; undecodable bytes after a power loss are a ValueError too
                continue
            if isinstance(event, dict) and "kind" in event and (kinds is None or event["kind"] in kinds):
                yield event


def _line(event: Event, at: datetime) -> bytes:
    values = {f.name: _jsonable(getattr(event, f.name)) for f in fields(event)}
    return (json.dumps({"time": at.isoformat(), "kind": event.kind, **values}, allow_nan=False) + "\n").encode()


def _jsonable(value: Any) -> Any:
    """JSON has no numbers that are not finite; everything unknown is told as text, because a log never refuses."""
    match value:
        case float():
            return float(value) if math.isfinite(value) else repr(float(value))
        case bool() | int() | str() | None:
            return value
        case dict():
            return {str(key): _jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [_jsonable(item) for item in value]
        case SupportsFloat():  # NumPy's and torch's scalars
            return _jsonable(float(value))
        case _:
            return str(value)
