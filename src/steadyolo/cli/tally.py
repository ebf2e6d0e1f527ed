"""`Tally`: what the events of one process add up to."""

from __future__ import annotations

import shlex
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steadyolo.events import (
    BatchSkipped,
    CopyVerified,
    EpochClosed,
    Event,
    ImagesSkipped,
    MemoryMeasured,
    MemoryPlanned,
    Resumed,
    RunFinished,
    RunStarted,
    RunStopped,
    SaveCommitted,
    SaveFailed,
    SignalReceived,
    StepDone,
)

NUM_RECENT_STEPS = 50  # the speed that is shown is theirs
NUM_RATES_KEPT = 100_000  # bounds the memory of a run of weeks


@dataclass(kw_only=True)
class Tally:
    """What this process's events add up to. `observe` runs in the training loop, so it only adds and remembers."""

    monotonic: Callable[[], float] = time.monotonic
    began_at: float = 0.0
    epoch_began_at: float = 0.0
    saved_at: float = 0.0

    started: RunStarted | None = None
    resumed: Resumed | None = None
    step: StepDone | None = None  # None until the first batch of this attempt
    closed: EpochClosed | None = None
    saved: SaveCommitted | None = None
    signal: SignalReceived | None = None
    stopped: RunStopped | None = None
    finished: RunFinished | None = None

    planned: MemoryPlanned | None = None
    memory_peak_bytes: int = 0  # 0: not measured yet
    best_fitness: float | None = None
    best_epoch: int = 0
    num_epochs_closed: int = 0
    copied: dict[str, tuple[str, float]] = field(default_factory=dict)  # newest checkpoint and when, by tier
    num_saves: int = 0
    num_saves_failed: int = 0
    stall_seconds: float = 0.0
    num_images_skipped: int = 0
    num_batches_skipped: int = 0
    recent: deque[tuple[int, int, float]] = field(default_factory=lambda: deque(maxlen=NUM_RECENT_STEPS))
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_RATES_KEPT))
    epoch_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=5))

    def __post_init__(self) -> None:
        self.began_at = self.epoch_began_at = self.monotonic()

    def observe(self, event: Event) -> None:
        """Take one more event into account."""
        match event:
            case StepDone():
                self._observe_step(event)
            case EpochClosed():
                self._observe_closed(event)
            case SaveCommitted():
                self.saved, self.saved_at = event, self.monotonic()
                self.num_saves += 1
                self.stall_seconds += event.stall_seconds
            case SaveFailed():
                self.num_saves_failed += 1
            case Resumed():
                self._observe_resumed(event)
            case BatchSkipped():
                self.num_batches_skipped += 1
            case ImagesSkipped():
                self.num_images_skipped += event.count
            case _:
                self._observe_process(event)

    def _observe_process(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.started = event
            case SignalReceived():
                self.signal = event
            case RunFinished():
                self.finished = event
                self.best_fitness, self.best_epoch = event.best_fitness, event.best_epoch
            case RunStopped():
                self.stopped = event
            case MemoryPlanned():
                self.planned = event
            case MemoryMeasured():
                self.memory_peak_bytes = max(self.memory_peak_bytes, event.peak_bytes)
            case CopyVerified():
                newest, _ = self.copied.get(event.tier, ("", 0.0))
                self.copied[event.tier] = (max(newest, event.name), self.monotonic())

    def _observe_step(self, event: StepDone) -> None:
        done_before = self.num_batches_done if event.epoch == self.num_epochs_closed else 0
        num_batches = max(1, event.batch + 1 - done_before)
        self.step, self.num_epochs_closed = event, event.epoch  # fewer than before where the run went back
        if event.seconds > 0:
            self.recent.append((num_batches, event.num_images, event.seconds))
            self.rates.append(event.num_images / event.seconds)

    def _observe_closed(self, event: EpochClosed) -> None:
        self.closed, self.num_epochs_closed = event, event.epoch
        self.epoch_began_at = self.monotonic()
        self.epoch_seconds.append(event.seconds)
        if event.is_best:
            self.best_fitness, self.best_epoch = event.fitness, event.epoch

    def _observe_resumed(self, event: Resumed) -> None:
        self.resumed, self.step, self.num_epochs_closed = event, None, event.epoch
        self.epoch_began_at = self.monotonic()
        if event.best_fitness is not None:
            self.best_fitness, self.best_epoch = event.best_fitness, event.best_epoch

    @property
    def images_per_second(self) -> float | None:
        """Speed of the latest batches."""
        recent = self.recent.copy()
        return sum(images for _, images, _ in recent) / sum(seconds for *_, seconds in recent) if recent else None

    @property
    def seconds_per_batch(self) -> float | None:
        """Duration of the latest batches."""
        recent = self.recent.copy()
        return sum(seconds for *_, seconds in recent) / sum(batches for batches, *_ in recent) if recent else None

    @property
    def num_batches_done(self) -> int:
        """Batches of the current epoch that are consumed."""
        if self.step is not None:
            return self.step.batch + 1 if self.step.epoch == self.num_epochs_closed else 0
        return self.resumed.batch if self.resumed else 0

    @property
    def is_scoring(self) -> bool:
        """All batches of the epoch are trained and its score is awaited."""
        total = self.started.num_batches if self.started else None
        return total is not None and self.num_batches_done >= total

    @property
    def phase(self) -> str:
        if self.stopped is not None:
            return self.stopped.reason
        if self.signal is not None:
            return f"{self.signal.signal}: saving, then stopping"
        if self.is_scoring:
            return "validating"
        return "training" if self.step is not None else "starting"

    def epoch_left_s(self) -> float | None:
        """Predicted time until the epoch's last batch is trained."""
        total = self.started.num_batches if self.started else None
        each = self.seconds_per_batch
        return None if total is None or each is None else max(0, total - self.num_batches_done) * each

    def run_left_s(self) -> float | None:
        """Predicted time until the last epoch is closed; scoring counts once an epoch has shown what it costs."""
        epochs, total = (self.started.epochs, self.started.num_batches) if self.started else (None, None)
        each = self.seconds_per_batch
        if epochs is None or total is None or each is None:
            return None
        num_epochs_left = max(0, epochs - self.num_epochs_closed)
        if self.epoch_seconds:
            whole = statistics.median(self.epoch_seconds.copy()) * num_epochs_left
            return max(0.0, whole - (self.monotonic() - self.epoch_began_at))
        return max(0, num_epochs_left * total - self.num_batches_done) * each

    def summary(self, run: Path) -> dict[str, Any]:
        """What the closing summary says, as JSON values."""
        weights = {name: run / "weights" / f"{name}.pt" for name in ("best", "last")}
        over = self.stopped is not None and self.stopped.reason in ("finished", "early_stopping", "time")
        return {
            "run": str(run),
            "reason": self.stopped.reason if self.stopped else None,
            "exit_code": self.stopped.exit_code if self.stopped else None,
            "epochs": self.finished.epochs if self.finished else self.num_epochs_closed,
            "epochs_asked": self.started.epochs if self.started else None,
            "step": self.finished.step if self.finished else self.step.step if self.step else None,
            "seconds": round(self.monotonic() - self.began_at, 3),  # of this process
            "training_seconds": self.finished.seconds if self.finished else None,  # over all attempts
            "images_per_second": statistics.median(self.rates) if self.rates else None,
            "memory_peak_bytes": self.memory_peak_bytes or None,
            "memory_predicted_bytes": self.planned.predicted_bytes if self.planned else None,
            "best_fitness": self.best_fitness,
            "best_epoch": self.best_epoch or None,
            "saves": self.num_saves,
            "saves_failed": self.num_saves_failed,
            "stall_seconds": self.stall_seconds,
            "last_save": self.saved.name if self.saved else None,
            "copies": {tier: name for tier, (name, _) in sorted(self.copied.items())},
            "skipped_images": self.num_images_skipped,
            "skipped_batches": self.num_batches_skipped,
            "weights": {name: str(path) for name, path in weights.items() if path.exists()},
            "resume": None if over else f"steadyolo resume {shlex.quote(str(run))}",
        }
