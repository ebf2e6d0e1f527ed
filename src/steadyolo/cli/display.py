"""`Display`: a run as it happens, on a terminal, in a log file or as one JSON object; and its closing summary."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from steadyolo.cli.tally import Tally
from steadyolo.cli.units import age_text
from steadyolo.events import (
    BatchSkipped,
    CheckpointRejected,
    CopyDropped,
    CopyFailed,
    CopyVerified,
    EpochClosed,
    Event,
    EventLog,
    ImagesSkipped,
    MemoryGrowing,
    MemoryMeasured,
    MemoryPlanned,
    NonFinite,
    OutOfMemory,
    PreemptionNotice,
    Resumed,
    RunStarted,
    SaveCommitted,
    SaveFailed,
    SignalReceived,
    StepDone,
    TakenOver,
)
from steadyolo.spec.size import size_text

REFRESHES_PER_SECOND = 2.0  # each costs about a millisecond of a core that trains


class Display:
    """Shows the run of `log` from entering the context to leaving it, and then sums it up.

    On a terminal: a live view under one line per epoch. Elsewhere: the lines only. With `as_json`: nothing but one JSON
    object at the end. A terminal that goes away silences the display and nothing else.
    """

    def __init__(
        self,
        log: EventLog,
        run: Path,
        *,
        as_json: bool = False,
        console: Console | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tally = Tally(monotonic=monotonic)
        self._log = log
        self._run = run
        self._as_json = as_json
        self._console = console or _standard_output()
        self._silent = as_json
        self._live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            auto_refresh=True,
        )

    def __enter__(self) -> Self:
        self._log.subscribe(self.observe)
        if self._console.is_interactive and not self._as_json:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.unsubscribe(self.observe)
        self._safely(self._live.stop)
        if self.tally.stopped is None:
            return  # an error is on its way up, and whoever catches it tells it
        if self._as_json:
            self._safely(lambda: self._console.out(json.dumps(self.tally.summary(self._run)), highlight=False))
        elif self.tally.started is not None:
            self._sum_up()

    def observe(self, event: Event) -> None:
        """Show `event`. Only epochs and warnings print; everything else waits for the next refresh."""
        self.tally.observe(event)
        match event:
            case StepDone() | SaveCommitted() | CopyVerified() | MemoryMeasured():
                pass
            case MemoryPlanned():
                for line in event.lines:
                    self.message(line)
            case RunStarted():
                self.message(headline(event), style="bold")
            case Resumed():
                self.message(f"going on from {event.name}: epoch {event.epoch + 1}, batch {event.batch + 1}")
            case EpochClosed():
                self.message(self._epoch_line(event))
            case _:
                warning = warning_text(event)
                if warning is not None:
                    self.message(f"warning: {warning}", style="yellow")

    def message(self, text: str, *, style: str = "") -> None:
        """Print a line above the live view."""
        if not self._silent:
            self._safely(lambda: self._console.print(Text(text, style=style), soft_wrap=True))

    def render(self) -> RenderableType:
        """The live view at this moment. Runs on rich's own thread, beside the loop."""
        tally = self.tally
        epochs, total = (tally.started.epochs, tally.started.num_batches) if tally.started else (None, None)
        done = tally.num_batches_done
        num_trained = tally.num_epochs_closed + (done / total if total else 0.0)
        bars = Table.grid(padding=(0, 1))
        for _ in range(4):
            bars.add_column(no_wrap=True, overflow="ellipsis")
        current = min(tally.num_epochs_closed + 1, epochs or sys.maxsize)
        left = f"{_eta(tally.run_left_s())} left"
        bars.add_row("epoch", f"{current}/{epochs or '?'}", _bar(num_trained, epochs), left)
        phase = tally.phase if tally.phase != "training" else f"{_eta(tally.epoch_left_s())} left"
        bars.add_row("batch", f"{done}/{total or '?'}", _bar(done, total, pulse=tally.is_scoring), phase)
        lines = [self._speed_line(), self._kept_line()]
        return Group(bars, *(Text(line, overflow="ellipsis", no_wrap=True) for line in lines))

    def _speed_line(self) -> str:
        tally = self.tally
        parts = []
        if tally.step is not None:
            parts.append(_losses(tally.step.losses))
            parts.append(f"lr {tally.step.learning_rate:.3g}")
        if tally.images_per_second is not None:
            parts.append(f"{tally.images_per_second:.1f} images/s")
        parts.append(memory_text(tally.started.device if tally.started else "cpu"))
        return " · ".join(parts)

    def _kept_line(self) -> str:
        tally = self.tally
        saved = "nothing saved yet"
        if tally.saved is not None:
            saved = f"saved {tally.saved.name} {age_text(tally.monotonic() - tally.saved_at)} ago"
        for tier, (name, at) in sorted(tally.copied.items()):
            is_same = tally.saved is not None and tally.saved.name == name
            saved += f" · in the {tier} {'too' if is_same else name} {age_text(tally.monotonic() - at)} ago"
        if tally.num_saves_failed:
            saved += f" ({tally.num_saves_failed} saves failed)"
        best = "no best yet"
        if tally.best_fitness is not None:
            best = f"best fitness {tally.best_fitness:.4f} (epoch {tally.best_epoch})"
        return f"{saved} · {best}"

    def _epoch_line(self, event: EpochClosed) -> str:
        epochs = self.tally.started.epochs if self.tally.started else None
        losses = _losses(self.tally.step.losses) if self.tally.step is not None else ""
        parts = [f"epoch {event.epoch}/{epochs or '?'}", losses, _metrics(event.metrics)]
        if event.fitness is not None:
            parts.append(f"fitness {event.fitness:.4f}{' (best)' if event.is_best else ''}")
        if self.tally.images_per_second is not None:
            parts.append(f"{self.tally.images_per_second:.1f} images/s")
        parts.append(f"{event.seconds:.1f} s")
        return " · ".join(part for part in parts if part)

    def _sum_up(self) -> None:
        summary = self.tally.summary(self._run)
        title, colour = {
            "finished": ("finished", "green"),
            "early_stopping": ("finished: no improvement, stopped early", "green"),
            "time": ("finished: the time is used up", "green"),
            "interrupted": ("interrupted", "yellow"),
        }.get(summary["reason"], ("failed", "red"))
        rows = summary_rows(summary)
        if self._console.is_terminal:
            grid = Table.grid(padding=(0, 2))
            for name, value in rows:
                grid.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
            panel = Panel(grid, title=title, border_style=colour, expand=False)
            self._safely(lambda: self._console.print(panel))
        else:
            self.message(title)
            for name, value in rows:
                self.message(f"  {name}: {value}")
        if summary["reason"] == "interrupted":
            self.message(f"interrupted after saving; go on with: {summary['resume']}", style="bold")
        elif summary["resume"] and (self.tally.saved or self.tally.resumed):
            self.message(f"the newest checkpoint is kept; go on with: {summary['resume']}", style="bold")

    def _safely(self, write: Callable[[], object]) -> None:
        """Write to the terminal; one that is gone silences the display."""
        try:
            write()
        except (OSError, ValueError, SystemExit):  # a closed file; rich's answer to a broken pipe
            self._silent = True


def _standard_output() -> Console:
    # FORCE_COLOR, which build servers set, makes a terminal of any file for rich: colours are welcome there, no view.
    return Console(force_interactive=None if sys.stdout.isatty() else False)


def headline(event: RunStarted) -> str:
    """One line that says what is trained, on what, and how."""
    images = f"{event.num_train_images} train, {event.num_val_images} val images"
    how = f"{event.device} {event.precision}, {event.threads} threads"
    return f"{event.task} · {event.model} · {event.data} ({images}) · {how}"


def warning_text(event: Event) -> str | None:
    """What the user should know about `event` at once; None where the live view is enough."""
    match event:
        case SaveFailed():
            return f"{event.name} could not be saved, training goes on: {event.error}"
        case CheckpointRejected():
            return f"{event.name} is not used: {event.why}"
        case ImagesSkipped():
            listed = "".join(f"\n  {path}: {why}" for path, why in list(event.listed.items())[:10])
            rest = event.count - min(10, len(event.listed))
            return f"{event.count} images are left out{listed}" + (f"\n  and {rest} more" if listed and rest else "")
        case SignalReceived():
            return f"{event.signal} received: saving, then stopping"
        case NonFinite() | OutOfMemory() | BatchSkipped():
            return _fault_warning(event)
    return _machine_warning(event) or _copy_warning(event)


def _machine_warning(event: Event) -> str | None:
    match event:
        case MemoryGrowing():
            return (
                f"memory of {event.what} grows by {size_text(event.step_bytes)} an epoch and holds "
                f"{size_text(event.held_bytes)}: at this pace the limit of {size_text(event.limit_bytes)} is reached "
                f"in {event.epochs_left} epochs"
            )
        case PreemptionNotice():
            when = "" if event.seconds_left is None else f" in {event.seconds_left:.0f} s"
            return f"{event.provider} announces {event.action}{when}"
    return None


def _fault_warning(event: NonFinite | OutOfMemory | BatchSkipped) -> str:
    match event:
        case NonFinite():
            where = f"epoch {event.epoch + 1}, batch {event.batch + 1}"
            return f"{event.what} is not finite at {where} (attempt {event.attempt}): {event.action}"
        case OutOfMemory():
            batch = "" if event.where == "validation" else f", batch {event.batch + 1}"
            where = f"{event.where} of epoch {event.epoch + 1}{batch}"
            return f"out of memory in {where} (attempt {event.attempt}): {event.action}"
        case BatchSkipped():
            why = f": {event.why}" if event.why else ""
            return f"batch {event.batch + 1} of epoch {event.epoch + 1} is left out{why}"


def _copy_warning(event: Event) -> str | None:
    match event:
        case CopyFailed():
            text = f"the {event.tier} cannot be written to, training goes on: {event.error}"
            return f"{text}\n  remedy: {event.remedy}" if event.remedy else text
        case CopyDropped():
            return f"{event.name} is not kept in the {event.tier}: {event.why}"
        case TakenOver():
            return f"{event.why}: saving, then stopping"
    return None


def summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The closing summary's lines: a name and a text each; what did not happen is left out."""
    asked = f" of {summary['epochs_asked']}" if summary["epochs_asked"] else ""
    rows = [("epochs", f"{summary['epochs']}{asked}")]
    if summary["step"] is not None:
        rows.append(("steps", f"{summary['step']}"))
    rows.append(("time", age_text(summary["seconds"])))
    if summary["training_seconds"] is not None:
        rows[-1] = ("time", f"{age_text(summary['seconds'])}, training {age_text(summary['training_seconds'])} in all")
    if summary["images_per_second"] is not None:
        rows.append(("speed", f"{summary['images_per_second']:.1f} images/s (median)"))
    if memory := peak_text(summary["memory_peak_bytes"], summary["memory_predicted_bytes"]):
        rows.append(("memory", memory))
    if summary["best_fitness"] is not None:
        rows.append(("best", f"fitness {summary['best_fitness']:.4f} at epoch {summary['best_epoch']}"))
    failed = f", {summary['saves_failed']} failed" if summary["saves_failed"] else ""
    stall = f"training stood still {summary['stall_seconds']:.2f} s for them"
    rows.append(("saves", f"{summary['saves']}{failed}, {stall}"))
    rows += [(f"copy in the {tier}", name) for tier, name in summary["copies"].items()]
    if summary["skipped_images"] or summary["skipped_batches"]:
        rows.append(("left out", f"{summary['skipped_images']} images, {summary['skipped_batches']} batches"))
    rows += [(f"{name} weights", path) for name, path in summary["weights"].items()]
    return [*rows, ("run", summary["run"])]


def peak_text(peak_bytes: int | None, predicted_bytes: int | None) -> str:
    """The measured peak beside the predicted one; empty where neither is known."""
    measured = f"peak {size_text(peak_bytes)}" if peak_bytes else ""
    predicted = f"predicted {size_text(predicted_bytes)}" if predicted_bytes else ""
    if peak_bytes and predicted_bytes:
        predicted += f" ({predicted_bytes / peak_bytes - 1:+.0%})"
    return ", ".join(part for part in (measured, predicted) if part)


def memory_text(device: str) -> str:
    """Memory in use: of this process on a CPU, reserved of the total on CUDA."""
    torch = sys.modules.get("torch")  # the display imports no torch: it asks the one that the run brought
    if torch is not None and device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        reserved = torch.cuda.memory_reserved(index)
        total = torch.cuda.get_device_properties(index).total_memory
        return f"{size_text(reserved)} of {size_text(total)} GPU memory"
    import psutil

    return f"{size_text(psutil.Process().memory_info().rss)} memory"


def _eta(seconds: float | None) -> str:
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _bar(done: float, total: int | None, *, pulse: bool = False) -> ProgressBar:
    return ProgressBar(total=total or 1, completed=min(done, total or 0), width=40, pulse=pulse)


def _losses(losses: dict[str, float]) -> str:
    return "  ".join(f"{name.removesuffix('_loss')} {value:.4g}" for name, value in losses.items())


def _metrics(metrics: dict[str, float]) -> str:
    """The scores that people compare; Ultralytics reports many more."""
    told = {name: value for name, value in metrics.items() if "mAP50" in name or "accuracy" in name}
    return "  ".join(f"{name.removeprefix('metrics/')} {value:.4f}" for name, value in told.items())
