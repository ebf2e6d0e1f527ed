"""`steadyolo demo`: the promises, shown on this machine in a few minutes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from steadyolo.errors import SteadyError, UserError
from steadyolo.vault.files import OURS_FOLDER

_NUM_TRAIN, _NUM_VAL, _SIDE_PX, _EPOCHS = 240, 16, 160, 18
_CONFIDENCE = 0.15  # after a minute of training a model is not sure of much yet
_NUM_LATER = 50
_KILLED_AT = (_EPOCHS // 2, 7)  # epoch and batch, counted from 0
# Few images and many small steps: what learns something visible in a minute.
_ARGUMENTS = (
    "model=yolov8n.yaml",
    f"imgsz={_SIDE_PX}",
    f"epochs={_EPOCHS}",
    "batch=8",
    "nbs=8",
    "optimizer=AdamW",
    "lr0=0.006",
    "warmup_epochs=1",
    "mosaic=0",
    "scale=0.2",
    "translate=0.05",
    "patience=0",
    "device=cpu",
    "verbose=False",
    "plots=False",
    "save.every=5s",
)


def demo(
    folder: Annotated[Path, typer.Option(help="where everything goes; a former demo there is replaced")] = Path("demo"),
) -> None:
    """Show everything on a built-in data set of circuit boards: train, kill, lose the disk, resume, compare, serve.

    Example: `steadyolo demo --folder /tmp/demo`
    """
    from steadyolo.data.boards import write_boards
    from steadyolo.vault.identity import run_identity

    console = Console()
    started_s = time.monotonic()
    folder = folder.absolute()
    _clear(folder)
    console.rule("1. circuit boards with six kinds of defects")
    data = write_boards(
        folder / "boards",
        num_train=_NUM_TRAIN,
        num_val=_NUM_VAL,
        size_px=(_SIDE_PX, _SIDE_PX),
        defects_per_board=(4, 8),
    )
    console.print(f"{_NUM_TRAIN} boards to learn from and {_NUM_VAL} to judge by, in {folder / 'boards'}")
    arguments = [f"data={data}", f"project={folder / 'runs'}", *_ARGUMENTS]

    console.rule("2. a run that nothing interrupts")
    _finish(_start("train", *arguments, "name=uninterrupted"))

    console.rule("3. the same run with copies in a store, killed in the middle of an epoch, its disk lost")
    killed = folder / "runs" / "killed"
    store = (folder / "store").as_uri()  # a folder here; s3://, gs:// and az:// are the same to it
    process = _start("train", *arguments, "name=killed", f"store.url={store}", own_group=True)
    at = _kill_at(process, killed / OURS_FOLDER / "events.jsonl")
    console.print(
        f"killed (SIGKILL) at epoch {at[0] + 1}, batch {at[1] + 1}: no handler ran, nothing was saved on the way"
    )
    shutil.rmtree(killed)
    console.print(f"deleted {killed}: all that is left is in {store}")

    console.rule("4. steadyolo resume, from the store")
    _finish(_start("resume", f"{store}/killed", f"project={folder / 'runs'}"))

    console.rule("5. are the two runs the same?")
    whole, resumed = run_identity(folder / "runs" / "uninterrupted"), run_identity(killed)
    table = Table("", "uninterrupted", "lost and resumed", "")
    for name in whole:
        same = whole[name] == resumed.get(name)
        table.add_row(name, whole[name][:22], resumed.get(name, "")[:22], "equal" if same else "DIFFERENT")
    console.print(table)
    if whole != resumed:
        raise SteadyError(
            "the resumed run is not the uninterrupted one", remedy=f"report this with the folder {folder}"
        )
    console.print("byte-identical: weights, EMA, optimizer and metrics")

    console.rule("6. what the weights find")
    board = sorted((folder / "boards" / "images" / "val").glob("*.jpg"))[0]
    _finish(_start("export", str(killed), f"imgsz={_SIDE_PX}"))
    drawn = folder / "detections"
    _finish(_start("detect", str(killed), str(board), "--conf", f"{_CONFIDENCE}", "--save", str(drawn)))

    console.rule("7. served: is the first request as fast as the later ones?")
    first_s, later_s, count = _served(killed, board)
    console.print(f"{count} defects found on {board.name}, drawn in {drawn}")
    console.print(
        f"first request after ready: {1000 * first_s:.1f} ms; median of the next {_NUM_LATER}: {1000 * later_s:.1f} ms"
    )
    console.print(f"done in {time.monotonic() - started_s:.0f} s; the runs are in {folder / 'runs'}")


def _clear(folder: Path) -> None:
    """Remove a former demo; refuse a folder that holds anything else."""
    mark = folder / ".steadyolo-demo"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise UserError(f"{folder} holds other things", remedy="give an empty or new folder: --folder PATH")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    mark.touch()


def _start(*words: str, own_group: bool = False) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "steadyolo.cli.main", *words], start_new_session=own_group)


def _finish(process: subprocess.Popen[bytes]) -> None:
    code = process.wait()
    if code:
        raise SteadyError(f"the run ended with exit code {code}", remedy="look at its last lines above")


def _served(run: Path, picture: Path) -> tuple[float, float, int]:
    """Serve the run, ask when it is warm, and end it: seconds of the first answer, of later ones, objects found."""
    command = [sys.executable, "-m", "steadyolo.cli.main", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url, is_ready = "", False
            for line in process.stdout or ():
                sys.stdout.write(line)
                url = url or line.partition("http://")[2].partition(",")[0]
                if is_ready := line.startswith("ready"):
                    break
            if not is_ready:
                raise SteadyError("the server ended before it was ready", remedy="look at its last lines above")
            question = f"http://{url}/v1/models/{run.name}/detect?conf={_CONFIDENCE}"
            urllib.request.urlopen(f"http://{url}/healthz", timeout=30).close()  # this side has its first time too
            asked = [_asked(question, picture.read_bytes()) for _ in range(1 + _NUM_LATER)]
        finally:
            process.terminate()
            process.wait()
    return asked[0][0], statistics.median(seconds for seconds, _ in asked[1:]), asked[0][1]


def _asked(url: str, picture: bytes) -> tuple[float, int]:
    """Seconds until the answer was there, and the number of objects in it."""
    request = urllib.request.Request(url, picture, {"Content-Type": "image/jpeg"})
    begun_s = time.perf_counter()
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer)["objects"]
    return time.perf_counter() - begun_s, len(found)


def _kill_at(process: subprocess.Popen[bytes], log: Path) -> tuple[int, int]:
    """Kill the process group once the run has passed the chosen batch; returns where it was."""
    try:
        while process.poll() is None:
            at = _newest_batch(log)
            if at is not None and at >= _KILLED_AT:
                return at
            time.sleep(0.05)
    finally:  # also when the demo itself is stopped: nothing of it stays behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    raise SteadyError("the run ended before it could be killed", remedy="look at its last lines above")


def _newest_batch(log: Path) -> tuple[int, int] | None:
    from steadyolo.events import read_events

    steps = list(read_events(log, kinds={"step_done"})) if log.is_file() else []
    return (int(steps[-1]["epoch"]), int(steps[-1]["batch"])) if steps else None
