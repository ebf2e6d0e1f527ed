"""`steadyolo runs`: which runs there are, how far they came, and what each of them keeps."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steadyolo.cli.display import peak_text
from steadyolo.cli.units import age_text
from steadyolo.errors import DataLoss, UserError
from steadyolo.events import (
    CopyVerified,
    EpochClosed,
    Event,
    MemoryMeasured,
    MemoryPlanned,
    Resumed,
    RunFinished,
    RunStarted,
    RunStopped,
    StepDone,
    read_events,
)
from steadyolo.spec.size import size_text
from steadyolo.state.run_state import RunState
from steadyolo.vault.checkpoints import STATE, Checkpoints
from steadyolo.vault.files import OURS_FOLDER

NUM_EVENTS_SHOWN = 10
NUM_RESULTS_SHOWN = 3
STATE_STYLES = {
    "taken_over": "yellow",
    "running": "cyan",
    "finished": "green",
    "interrupted": "yellow",
    "failed": "red",
    "killed": "red",
}

runs_app = typer.Typer(help="List runs and show what they hold.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@runs_app.command("ls")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where to look; every run below it is listed.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs below FOLDER: how far each came, whether it is running, its best score and newest checkpoint.

    Example: `steadyolo runs ls`

    Example: `steadyolo runs ls /data/runs --json`
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", remedy="name the folder that holds your runs: runs ls FOLDER")
    overviews = [overview(run, name=_name(run, folder)) for run in find_runs(folder)]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in overviews]))
    elif overviews:
        _console().print(_overview_table(overviews))
    else:
        typer.echo(f"no runs below {folder}; start one with: steadyolo train data=coco128.yaml model=yolo11n.pt")


@runs_app.command("show")
def show_run(
    run: Annotated[Path, typer.Argument(help="A run's folder, as `runs ls` lists it.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every checkpoint and compare its digests.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one run: what was asked, its checkpoints, its last results and what happened last.

    Example: `steadyolo runs show runs/detect/train`

    Example: `steadyolo runs show runs/detect/train --verify --json`
    """
    if not is_run(run):
        raise UserError(
            f"{run} is not a run of steadyolo",
            remedy="name a run folder; `steadyolo runs ls FOLDER` lists those there are",
        )
    console = _console()
    with console.status("reading the checkpoints") if verify and not as_json else nullcontext():
        checkpoints = list(describe_checkpoints(run, verify=verify))
    details = Details(
        overview=overview(run, name=run.resolve().name),
        spec=_read_spec(run),
        checkpoints=checkpoints,
        events=last_events(run),
        results=last_results(run),
        memory=read_memory(run),
    )
    if as_json:
        typer.echo(json.dumps(asdict(details)))
    else:
        _print_details(console, details)


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One run in one line. `state` is running, finished, interrupted, failed, killed or taken_over."""

    name: str
    path: str
    model: str | None
    data: str | None
    epochs_done: int
    epochs_asked: int | None
    state: str
    best_fitness: float | None
    best_epoch: int | None
    checkpoint: str | None  # the newest that is committed
    checkpoint_age_s: float | None
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One committed checkpoint. `epoch` and `batch` name the next batch, from 0; `verified` None: not looked at.

    `tiers` are the places beyond the run folder that confirmed a copy of it.
    """

    name: str
    step: int | None
    epoch: int | None
    batch: int | None
    age_s: float
    size_bytes: int
    verified: bool | None
    why: str | None = None  # it is not good
    tiers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Everything that `runs show` tells."""

    overview: Overview
    spec: dict[str, Any]
    checkpoints: list[Checkpoint]
    events: list[dict[str, Any]]
    results: list[dict[str, str]]
    memory: dict[str, int | None]  # predicted_bytes and peak_bytes; None where neither is known


@dataclass(kw_only=True)
class History:
    """What a run's events add up to, over all the processes that worked on it."""

    num_epochs_closed: int = 0
    num_epochs_asked: int | None = None
    scores: dict[int, float] = field(default_factory=dict)  # by epoch; only those that were best when they came
    ended: str = "killed"  # a process that could not say how it ended was killed

    @classmethod
    def read(cls, path: Path) -> History:
        history = cls()
        kinds = {kind.kind for kind in (RunStarted, Resumed, EpochClosed, RunFinished, RunStopped)}
        for event in read_events(path, kinds):
            with suppress(KeyError, TypeError, ValueError):  # written by another version: the rest still counts
                history.observe(event)
        return history

    def observe(self, event: Mapping[str, Any]) -> None:
        """Take one more event into account."""
        match event["kind"]:
            case RunStarted.kind:
                self.ended = "killed"
                self.num_epochs_asked = event["epochs"] or self.num_epochs_asked
            case Resumed.kind:  # epochs after the checkpoint are trained and scored again
                self.num_epochs_closed = event["epoch"]
                self.scores = {epoch: score for epoch, score in self.scores.items() if epoch <= event["epoch"]}
            case EpochClosed.kind:
                self.num_epochs_closed = event["epoch"]
                self.scores = {epoch: score for epoch, score in self.scores.items() if epoch < event["epoch"]}
                if event["is_best"]:
                    self.scores[event["epoch"]] = float(event["fitness"])
            case RunFinished.kind:
                self.num_epochs_closed = event["epochs"]
            case RunStopped.kind if self.ended == "killed":  # one that was refused before it started changes nothing
                known = ("interrupted", "failed", "taken_over")
                self.ended = event["reason"] if event["reason"] in known else "finished"


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run's: it says what was asked of it."""
    return (folder / OURS_FOLDER / "spec.json").is_file()


def find_runs(folder: Path) -> Iterator[Path]:
    """The runs at and below `folder`, sorted; a run's own folders are not searched."""
    for here, below, _ in os.walk(folder):
        if is_run(Path(here)):
            below.clear()
            yield Path(here)
        else:
            below[:] = sorted(name for name in below if not name.startswith("."))


def is_running(run: Path) -> bool:
    """Whether a process works on the run: it holds the lock, which the kernel frees whatever ends it."""
    try:
        descriptor = os.open(run / OURS_FOLDER / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not see each other
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)  # frees it at once
    return False


def overview(run: Path, *, name: str) -> Overview:
    """What one line says about a run. What cannot be read is left out, so that one broken run hides no other."""
    arguments = _read_spec(run).get("arguments", {})
    history = History.read(run / OURS_FOLDER / "events.jsonl")
    newest = next(reversed(_checkpoints(run).committed()), None)
    best_epoch = max(history.scores, default=None)
    return Overview(
        name=name,
        path=str(run.resolve()),
        model=_text(arguments.get("model")),
        data=_text(arguments.get("data")),
        epochs_done=history.num_epochs_closed,
        epochs_asked=history.num_epochs_asked or arguments.get("epochs"),
        state="running" if is_running(run) else history.ended,
        best_fitness=None if best_epoch is None else history.scores[best_epoch],
        best_epoch=best_epoch,
        checkpoint=newest,
        checkpoint_age_s=_age_s(_checkpoints(run).root / newest) if newest else None,
        size_bytes=size_on_disk(run),
    )


def describe_checkpoints(run: Path, *, verify: bool) -> Iterator[Checkpoint]:
    """The committed checkpoints, oldest first. With `verify` each is read and compared with its digests."""
    checkpoints = _checkpoints(run)
    copied: dict[str, set[str]] = {}
    for event in read_events(run / OURS_FOLDER / "events.jsonl", {CopyVerified.kind}):
        copied.setdefault(str(event.get("name")), set()).add(str(event.get("tier")))
    for name in checkpoints.committed():
        verified, why = None, None
        if verify:
            try:
                checkpoints.verify(name)
                verified = True
            except (DataLoss, UserError) as error:
                verified, why = False, error.message
        state = _read_state(checkpoints.root / name)
        yield Checkpoint(
            name=name,
            step=state.step if state else None,
            epoch=state.cursor.epoch if state else None,
            batch=state.cursor.batch if state else None,
            age_s=_age_s(checkpoints.root / name),
            size_bytes=size_on_disk(checkpoints.root / name),
            verified=verified,
            why=why,
            tiers=tuple(sorted(copied.get(name, ()))),
        )


def last_events(run: Path) -> list[dict[str, Any]]:
    """What happened last, oldest first, without the steps."""
    kinds = {event.kind for event in Event.__subclasses__()} - {StepDone.kind}
    return list(deque(read_events(run / OURS_FOLDER / "events.jsonl", kinds), maxlen=NUM_EVENTS_SHOWN))


def read_memory(run: Path) -> dict[str, int | None]:
    """What the run's memory was predicted to be, and the most that was measured, over all its processes."""
    predicted, peak = None, 0
    for event in read_events(run / OURS_FOLDER / "events.jsonl", {MemoryPlanned.kind, MemoryMeasured.kind}):
        if event["kind"] == MemoryPlanned.kind:
            predicted = event.get("predicted_bytes") or predicted
        else:
            peak = max(peak, event.get("reserved_peak_bytes") or event.get("process_peak_bytes") or 0)
    return {"predicted_bytes": predicted, "peak_bytes": peak or None}


def last_results(run: Path) -> list[dict[str, str]]:
    """The last rows of `results.csv`, as written."""
    try:
        with (run / "results.csv").open(newline="", encoding="utf-8", errors="replace") as file:
            rows = deque(csv.DictReader(file, skipinitialspace=True, restval=""), maxlen=NUM_RESULTS_SHOWN)
    except OSError:
        return []
    return [{name.strip(): value.strip() for name, value in row.items() if name} for row in rows]


def size_on_disk(folder: Path) -> int:
    """Bytes that the files below `folder` take; a file that vanishes meanwhile takes none."""
    num_bytes = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                num_bytes += os.lstat(os.path.join(here, name)).st_blocks * 512
    return num_bytes


def _checkpoints(run: Path) -> Checkpoints:
    return Checkpoints(run / OURS_FOLDER / "checkpoints", writer_id="reader")


def _read_spec(run: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        spec = json.loads((run / OURS_FOLDER / "spec.json").read_bytes())
        if isinstance(spec, dict) and isinstance(spec.get("arguments", {}), dict):
            return spec
    return {}


def _read_state(folder: Path) -> RunState | None:
    """The state in a checkpoint; None where it is damaged or another version's, which `verify` tells."""
    try:
        return RunState.from_dict(json.loads((folder / STATE).read_bytes())["state"])
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def _age_s(folder: Path) -> float:
    """Time since the last file of a checkpoint was given its place; 0 where it is gone again."""
    with suppress(OSError):
        return round(max(0.0, time.time() - folder.stat().st_mtime), 3)
    return 0.0


def _name(run: Path, folder: Path) -> str:
    return run.resolve().name if run == folder else str(run.relative_to(folder))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


# --- showing ---------------------------------------------------------------------------------------------------------


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=200)  # a file has no edge to wrap at


def _overview_table(overviews: Iterable[Overview]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "state", "epochs", "best", "newest checkpoint", "size", "model", "data"):
        table.add_column(column, overflow="fold")
    for one in overviews:
        row = _overview_texts(one)
        state = Text(one.state, style=STATE_STYLES[one.state])
        table.add_row(one.name, state, row["epochs"], row["best"], row["newest checkpoint"], row["size"], *_asked(one))
    return table


def _overview_texts(one: Overview) -> dict[str, str]:
    saved = "none"
    if one.checkpoint is not None:
        saved = f"{one.checkpoint}, {age_text(one.checkpoint_age_s or 0.0)} ago"
    return {
        "epochs": f"{one.epochs_done}/{one.epochs_asked or '?'}",
        "best": "none" if one.best_fitness is None else f"{one.best_fitness:.4f} (epoch {one.best_epoch})",
        "newest checkpoint": saved,
        "size": size_text(one.size_bytes),
    }


def _asked(one: Overview) -> tuple[str, str]:
    """Model and data without their folders."""
    return Path(one.model or "?").name, Path(one.data or "?").name


def _print_details(console: Console, details: Details) -> None:
    one = details.overview
    grid = Table.grid(padding=(0, 2))
    grid.add_row("state", Text(one.state, style=STATE_STYLES[one.state]))
    for name, text in _overview_texts(one).items():
        grid.add_row(name, text)
    if memory := peak_text(details.memory["peak_bytes"], details.memory["predicted_bytes"]):
        grid.add_row("memory", memory)
    for name, value in {**details.spec.get("arguments", {}), **details.spec.get("ours", {})}.items():
        grid.add_row(Text(name, style="dim"), Text(str(value)))
    console.print(Text(one.path, style="bold"), grid, sep="\n")
    if details.checkpoints:
        console.print("\n[bold]checkpoints", _checkpoint_table(details.checkpoints, one.epochs_asked), sep="\n")
    if details.results:
        console.print("\n[bold]last results", _results_table(details.results), sep="\n")
    if details.events:
        console.print("\n[bold]last events")
        for event in details.events:
            console.print(Text(_event_line(event)), soft_wrap=True, highlight=False)
    if one.state in ("interrupted", "failed", "killed") and details.checkpoints:
        console.print(Text(f"\ngo on with: steadyolo resume {shlex.quote(one.path)}", style="bold"), soft_wrap=True)


def _checkpoint_table(checkpoints: Iterable[Checkpoint], epochs_asked: int | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("name", "step", "next batch", "age", "size", "copies in", "verified"):
        table.add_column(column, overflow="fold")
    for one in checkpoints:
        verified = {None: Text("not looked at"), True: Text("good", style="green")}.get(one.verified)
        table.add_row(
            one.name,
            "?" if one.step is None else f"{one.step}",
            _next_batch(one, epochs_asked),
            age_text(one.age_s),
            size_text(one.size_bytes),
            ", ".join(one.tiers) or "none",
            verified or Text(f"BAD: {one.why}", style="bold red"),
        )
    return table


def _next_batch(one: Checkpoint, epochs_asked: int | None) -> str:
    if one.epoch is None or one.batch is None:
        return "?"
    if epochs_asked is not None and one.epoch >= epochs_asked:
        return "none, all is trained"
    return f"{one.batch + 1} of epoch {one.epoch + 1}"


def _results_table(results: list[dict[str, str]]) -> Table:
    """Epoch, training losses and scores: the columns of `results.csv` that people watch."""
    shown = [name for name in results[-1] if name == "epoch" or name.startswith(("train/", "metrics/"))]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in shown:
        table.add_column(name.removeprefix("metrics/").removeprefix("train/"), overflow="fold")
    for row in results:
        table.add_row(*(row.get(name, "") for name in shown))
    return table


def _event_line(event: Mapping[str, Any]) -> str:
    at = str(event.get("time", "?"))[:19].replace("T", " ")
    values = (f"{name}={value}" for name, value in event.items() if name not in ("time", "kind") and value is not None)
    return f"{at}  {event['kind']}  {' '.join(values)}"
