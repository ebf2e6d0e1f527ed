"""`Display` shows a run on a terminal, in a file or as JSON, and is never in the way."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from steadyolo.cli.display import Display, memory_text, warning_text
from steadyolo.events import (
    CheckpointRejected,
    EpochClosed,
    Event,
    EventLog,
    ImagesSkipped,
    MemoryGrowing,
    MemoryMeasured,
    MemoryPlanned,
    NonFinite,
    OutOfMemory,
    Resumed,
    RunFinished,
    RunStarted,
    RunStopped,
    SaveCommitted,
    SaveFailed,
    SignalReceived,
    StepDone,
)

SAVE = "step-00000004.00000004"
METRICS = {"metrics/precision(B)": 0.5, "metrics/mAP50(B)": 0.7, "metrics/mAP50-95(B)": 0.4, "val/box_loss": 1.0}


def the_story(reason: str = "finished") -> Iterator[Event]:
    yield RunStarted(
        model="yolov8n.pt", task="detect", data="bccd.yaml", device="cpu", precision="bf16", threads=2,
        num_train_images=64, num_val_images=8, epochs=2, num_batches=4,
    )  # fmt: skip
    yield ImagesSkipped(count=2, listed={"a.jpg": "truncated"})
    for epoch in range(2):
        for batch in range(4):
            losses = {"box_loss": 1.25, "cls_loss": 0.5}
            yield StepDone(
                epoch=epoch, batch=batch, step=batch, losses=losses, num_images=16, seconds=0.5, learning_rate=0.01
            )
        yield EpochClosed(epoch=epoch + 1, metrics=METRICS, fitness=0.4, is_best=epoch == 0, seconds=3.0)
        yield SaveCommitted(name=SAVE, step=4, num_bytes=100, seconds=0.1, stall_seconds=0.01)
    if reason == "interrupted":
        yield SignalReceived(signal="SIGTERM")
        yield RunStopped(reason="interrupted", exit_code=75)
    else:
        yield RunFinished(epochs=2, step=8, seconds=6.0, best_fitness=0.4, best_epoch=1)
        yield RunStopped(reason="finished", exit_code=0)


def shown(events: Iterator[Event], *, as_json: bool = False, terminal: bool = False, width: int = 100) -> str:
    file = io.StringIO()
    log = EventLog(None)
    console = Console(file=file, force_terminal=terminal, color_system=None, width=width)
    with Display(log, Path("runs/detect/my train"), as_json=as_json, console=console):
        for event in events:
            log.emit(event)
    return file.getvalue()


def test_a_log_file_gets_one_line_per_epoch() -> None:
    lines = shown(the_story()).splitlines()
    assert lines[0] == "detect · yolov8n.pt · bccd.yaml (64 train, 8 val images) · cpu bf16, 2 threads"
    epochs = [line for line in lines if line.startswith("epoch ")]
    scores = "box 1.25  cls 0.5 · mAP50(B) 0.7000  mAP50-95(B) 0.4000 · fitness 0.4000"
    assert epochs == [
        f"epoch 1/2 · {scores} (best) · 32.0 images/s · 3.0 s",
        f"epoch 2/2 · {scores} · 32.0 images/s · 3.0 s",
    ]
    assert "\x1b" not in "".join(lines), "no terminal, no escape codes"
    assert "finished" in lines
    assert "  best: fitness 0.4000 at epoch 1" in lines
    assert "  saves: 2, training stood still 0.02 s for them" in lines


def test_the_plan_comes_first_and_memory_that_grows_is_warned_of() -> None:
    planned = MemoryPlanned(
        lines=("memory: 3.0 GiB predicted", "batch 16 in passes of 8"),
        predicted_bytes=3 * 2**30, budget_bytes=4 * 2**30, seconds=2.0,
    )  # fmt: skip
    growing = MemoryGrowing(
        what="cuda:0", held_bytes=2**30, step_bytes=2**20, limit_bytes=2**31, epochs_left=7
    )  # fmt: skip
    measured = MemoryMeasured(
        epoch=1, process_bytes=2**30, process_peak_bytes=2 * 2**30, workers_bytes=0, host_limit_bytes=2**40
    )
    lines = shown(iter([planned, *list(the_story())[:-2], measured, growing, *list(the_story())[-2:]])).splitlines()
    assert lines[:2] == list(planned.lines)
    assert lines[2].startswith("detect · yolov8n.pt")
    (warning,) = (line for line in lines if line.startswith("warning: memory of cuda:0"))
    assert "grows by 1.0 MiB an epoch" in warning and "reached in 7 epochs" in warning
    assert "  memory: peak 2.0 GiB, predicted 3.0 GiB (+50%)" in lines


def test_an_interrupted_run_says_how_to_go_on() -> None:
    text = shown(the_story("interrupted"))
    assert "warning: SIGTERM received: saving, then stopping" in text
    assert text.endswith("interrupted after saving; go on with: steadyolo resume 'runs/detect/my train'\n")


def test_a_failed_run_says_what_is_kept() -> None:
    events = [*list(the_story())[:-2], RunStopped(reason="failed", exit_code=1)]
    assert "the newest checkpoint is kept; go on with: steadyolo resume" in shown(iter(events))


def test_json_is_one_object_and_nothing_else() -> None:
    summary = json.loads(shown(the_story("interrupted"), as_json=True, terminal=True, width=40))
    assert (summary["reason"], summary["exit_code"], summary["epochs"]) == ("interrupted", 75, 2)


def test_an_error_on_its_way_up_is_left_to_whoever_tells_it() -> None:
    log, file = EventLog(None), io.StringIO()
    with pytest.raises(RuntimeError), Display(log, Path("run"), console=Console(file=file)):
        raise RuntimeError
    assert file.getvalue() == ""


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_live_view_shows_the_run(width: int) -> None:
    log = EventLog(None)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    display = Display(log, Path("run"), console=console)
    log.subscribe(display.observe)
    console.print(display.render())  # before anything is known
    for event in list(the_story())[:9]:
        log.emit(event)
    with console.capture() as capture:
        console.print(display.render())
    lines = capture.get().splitlines()
    assert len(lines) <= 4, "each line keeps to itself, or the view would jump"
    if width >= 80:
        assert "2/2" in lines[0]
        assert "left" in lines[0]
        assert "1/4" in lines[1]
        assert lines[2].startswith("box 1.25  cls 0.5 · lr 0.01 · 32.0 images/s · ")
        assert lines[3] == f"saved {SAVE} 0.0 s ago · best fitness 0.4000 (epoch 1)"


def test_a_terminal_shows_the_view_and_then_the_panel() -> None:
    text = shown(the_story("interrupted"), terminal=True)
    assert "╭" in text
    assert "interrupted" in text
    assert text.rstrip().endswith("steadyolo resume 'runs/detect/my train'")


def test_a_refresh_costs_little() -> None:
    log = EventLog(None)
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    display = Display(log, Path("run"), console=console)
    for event in list(the_story())[:9]:
        display.observe(event)
    console.print(display.render())
    begin = time.process_time()
    for _ in range(20):
        console.print(display.render())
    assert (time.process_time() - begin) / 20 < 0.02, "at two a second, 20 ms would be 4 % of one core"


def test_a_step_costs_the_loop_under_50_microseconds() -> None:
    log = EventLog(None)
    display = Display(log, Path("run"), console=Console(file=io.StringIO()))
    log.subscribe(display.observe)
    events = list(the_story())
    log.emit(events[0])
    cost_s = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(500):
            log.emit(events[2])
        cost_s.append((time.perf_counter() - begin) / 500)
    assert min(cost_s) < 50e-6


def test_warnings_name_the_thing_and_what_happens_next() -> None:
    told = [
        warning_text(event)
        for event in (
            SaveFailed(name=SAVE, error="[Errno 28] No space left on device"),
            CheckpointRejected(name=SAVE, why="model.safetensors: digest"),
            NonFinite(epoch=0, batch=3, what="box_loss", attempt=1, action="going back"),
            ImagesSkipped(count=12, listed={f"{n}.jpg": "empty" for n in range(12)}),
            OutOfMemory(where="backward", epoch=1, batch=2, attempt=2, action="doing it again", fit={"num_images": 4}),
            OutOfMemory(where="validation", epoch=1, batch=2, attempt=1, action="doing it again", fit={}),
        )
    ]
    assert told[0] == f"{SAVE} could not be saved, training goes on: [Errno 28] No space left on device"
    assert told[1] == f"{SAVE} is not used: model.safetensors: digest"
    assert told[2] == "box_loss is not finite at epoch 1, batch 4 (attempt 1): going back"
    assert told[3] is not None
    assert told[3].endswith("9.jpg: empty\n  and 2 more")
    assert told[4] == "out of memory in backward of epoch 2, batch 3 (attempt 2): doing it again"
    assert told[5] == "out of memory in validation of epoch 2 (attempt 1): doing it again"
    assert warning_text(Resumed(name=SAVE, step=1, epoch=0, batch=0)) is None


def test_text_from_outside_is_not_markup() -> None:
    events = [SaveFailed(name=SAVE, error="[bold]x[/oops]"), RunStopped(reason="failed", exit_code=1)]
    assert "[bold]x[/oops]" in shown(iter(events))


def test_memory_is_told_without_torch() -> None:
    assert memory_text("cpu").endswith("MiB memory") or memory_text("cpu").endswith("GiB memory")


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_display import the_story
from steadyolo.cli.display import Display
from steadyolo.events import EventLog
log = EventLog(Path(sys.argv[2]))
with Display(log, Path("run")):
    for event in the_story():
        log.emit(event)
sys.stderr.write("trained to the end")
"""


def child_command(events: Path) -> list[str]:
    return [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(events)]


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    child = subprocess.run(
        child_command(tmp_path / "e.jsonl"), stdout=write_end, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write_end)
    assert (child.returncode, child.stderr) == (0, "trained to the end")
    assert '"run_stopped"' in (tmp_path / "e.jsonl").read_text()


def test_a_build_server_that_forces_colours_gets_no_live_view(tmp_path: Path) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1"}
    child = subprocess.run(child_command(tmp_path / "e.jsonl"), capture_output=True, env=environment, check=True)
    assert b"\x1b[1m" in child.stdout
    assert b"\x1b[?25l" not in child.stdout


def test_on_a_real_terminal_the_view_is_live(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "110"}
    child = subprocess.Popen(child_command(tmp_path / "e.jsonl"), stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    received = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux answers EIO when the last writer is gone
            break
        if not chunk:
            break
        received += chunk
    os.close(ours)
    assert child.wait() == 0
    assert b"\x1b[?25l" in received, "the cursor is hidden while the view is live"
    assert received.rindex(b"\x1b[?25h") > received.rindex(b"\x1b[?25l"), "and shown again"
    assert b"epoch 1/2" in received
    assert "╭".encode() in received
