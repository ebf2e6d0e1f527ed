"""`steadyolo runs` tells which runs there are and what they hold, whatever state they are in."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from steadyolo.cli import runs
from steadyolo.cli.runs import History, describe_checkpoints, find_runs, is_running, last_results, overview
from steadyolo.errors import UserError
from steadyolo.events import EpochClosed, Event, EventLog, Resumed, RunFinished, RunStarted, RunStopped, StepDone
from steadyolo.state.run_state import Cursor, RunState
from steadyolo.state.snapshot import Snapshot, checkpoint_name
from steadyolo.vault.checkpoints import Checkpoints
from steadyolo.vault.lock import RunLock

APP = "from steadyolo.cli.runs import runs_app; runs_app()"


def started(epochs: int | None = 10) -> RunStarted:
    return RunStarted(
        model="yolov8n.pt", task="detect", data="bccd.yaml", device="cpu", precision="bf16", threads=2,
        num_train_images=64, num_val_images=8, epochs=epochs, num_batches=4,
    )  # fmt: skip


def closed(epoch: int, fitness: float, *, is_best: bool) -> EpochClosed:
    return EpochClosed(epoch=epoch, metrics={"metrics/mAP50(B)": 0.5}, fitness=fitness, is_best=is_best, seconds=3.0)


def make_run(folder: Path, *events: Event, saves: int = 0) -> Path:
    """A run's folder as training leaves it, with `saves` real checkpoints."""
    ours = folder / "steadyolo"
    ours.mkdir(parents=True)
    spec = {"version": 1, "arguments": {"model": "yolov8n.pt", "data": "sets/bccd.yaml", "epochs": 5}, "ours": {}}
    (ours / "spec.json").write_text(json.dumps(spec))
    log = EventLog(ours / "events.jsonl")
    for event in events:
        log.emit(event)
    log.close()
    checkpoints = Checkpoints(ours / "checkpoints", writer_id="test")
    for step in range(1, saves + 1):
        state = replace(RunState.fresh(), step=step, cursor=Cursor(epoch=1, batch=step))
        name = checkpoint_name(step=step, tick=step)
        files = {"results.csv": b"epoch\n" * 500}
        checkpoints.commit(Snapshot(name=name, state=state, tensors={}, made_from={}, files=files), parent=None)
    return folder


STOPPED = RunStopped(reason="interrupted", exit_code=75)


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "killed"),
        ([started()], "killed"),
        ([started(), STOPPED], "interrupted"),
        ([started(), STOPPED, started()], "killed"),
        ([started(), STOPPED, RunStopped(reason="failed", exit_code=2)], "interrupted"),  # a resume that was refused
        ([RunStopped(reason="failed", exit_code=2)], "failed"),
        ([started(), RunStopped(reason="failed", exit_code=1)], "failed"),
        ([started(), RunStopped(reason="finished", exit_code=0)], "finished"),
        ([started(), RunStopped(reason="early_stopping", exit_code=0)], "finished"),
        ([started(), RunStopped(reason="time", exit_code=0)], "finished"),
    ],
)
def test_the_state_is_how_the_last_process_ended(tmp_path: Path, events: list[Event], state: str) -> None:
    run = make_run(tmp_path / "run", *events)
    assert overview(run, name="run").state == state


def test_a_run_whose_lock_is_held_is_running(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", started(), STOPPED)
    assert not is_running(run)
    with RunLock(run / "steadyolo"):
        assert is_running(run)
        assert is_running(run), "looking takes nothing away"
        assert overview(run, name="run").state == "running"
    assert not is_running(run)
    with RunLock(run / "steadyolo"):
        pass  # nobody who looked holds it still


def test_a_killed_holder_is_not_running(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", started())
    code = (
        "import sys, time; from pathlib import Path; from steadyolo.vault.lock import RunLock\n"
        "RunLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(run / "steadyolo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert is_running(run)
        child.kill()
    assert not is_running(run)
    assert overview(run, name="run").state == "killed"


def test_epochs_that_are_trained_again_count_once(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run",
        started(),
        closed(1, 0.3, is_best=True),
        closed(2, 0.5, is_best=True),
        closed(3, 0.6, is_best=True),
        started(epochs=20),
        Resumed(name="s", step=8, epoch=2, batch=1),
    )
    history = History.read(run / "steadyolo" / "events.jsonl")
    assert (history.num_epochs_closed, history.num_epochs_asked, history.scores) == (2, 20, {1: 0.3, 2: 0.5})
    one = overview(run, name="run")
    assert (one.best_fitness, one.best_epoch, one.epochs_done, one.epochs_asked) == (0.5, 2, 2, 20)


def test_a_finished_run_tells_its_epochs(tmp_path: Path) -> None:
    finished = RunFinished(epochs=7, step=28, seconds=9.0, best_fitness=0.5, best_epoch=2)
    run = make_run(tmp_path / "run", started(None), finished, RunStopped(reason="early_stopping", exit_code=0))
    one = overview(run, name="run")
    assert (one.epochs_done, one.epochs_asked, one.state) == (7, 5, "finished")


def test_runs_are_found_at_any_depth_and_not_inside_each_other(tmp_path: Path) -> None:
    make_run(tmp_path / "detect" / "train")
    make_run(tmp_path / "detect" / "train2")
    make_run(tmp_path / "detect" / "train2" / "weights" / "odd")
    make_run(tmp_path / ".trash" / "train")
    (tmp_path / "detect" / "theirs" / "weights").mkdir(parents=True)
    assert [str(run.relative_to(tmp_path)) for run in find_runs(tmp_path)] == ["detect/train", "detect/train2"]
    assert list(find_runs(tmp_path / "detect" / "train")) == [tmp_path / "detect" / "train"]


def test_checkpoints_are_described_and_verified(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", started(), saves=3)
    (run / "steadyolo" / "checkpoints" / "step-00000009.00000009.partial-x").mkdir()
    told = list(describe_checkpoints(run, verify=False))
    assert [(c.name, c.step, c.epoch, c.batch, c.verified) for c in told] == [
        (checkpoint_name(step=n, tick=n), n, 1, n, None) for n in (1, 2, 3)
    ]
    assert all(c.size_bytes >= 3000 for c in told)
    assert overview(run, name="run").checkpoint == checkpoint_name(step=3, tick=3)

    torn = run / "steadyolo" / "checkpoints" / checkpoint_name(step=2, tick=2) / "results.csv"
    torn.write_bytes(torn.read_bytes()[:-1])
    state = run / "steadyolo" / "checkpoints" / checkpoint_name(step=3, tick=3) / "state.json"
    state.write_bytes(b"{")
    told = list(describe_checkpoints(run, verify=True))
    assert [c.verified for c in told] == [True, False, False]
    assert "results.csv" in (told[1].why or "")
    assert told[2].step is None


def test_results_are_the_last_rows_as_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert last_results(run) == []
    rows = "".join(f"  {n},   0.{n}\n" for n in range(1, 6))
    (run / "results.csv").write_text(f"   epoch,  metrics/mAP50(B)\n{rows}")
    assert last_results(run) == [{"epoch": f"{n}", "metrics/mAP50(B)": f"0.{n}"} for n in (3, 4, 5)]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version": 1, "arguments": 3}', b"\xff"])
def test_a_damaged_run_hides_no_other(tmp_path: Path, damage: bytes) -> None:
    run = make_run(tmp_path / "bad", started())
    make_run(tmp_path / "good", started(), STOPPED)
    (run / "steadyolo" / "spec.json").write_bytes(damage)
    with (run / "steadyolo" / "events.jsonl").open("ab") as file:
        file.write(b'{"time": "x", "kind": "epoch_closed"}\n{"kind": "run_started"}\n{"kind": "run_st')
    told = json.loads(run_app("ls", str(tmp_path), "--json").stdout)
    assert [(one["name"], one["model"]) for one in told] == [("bad", None), ("good", "yolov8n.pt")]
    assert run_app("show", str(run)).returncode == 0


def test_what_is_asked_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        runs.list_runs(tmp_path / "none")
    with pytest.raises(UserError, match="is not a run"):
        runs.show_run(tmp_path)


def run_app(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", APP, *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=60
    )


@pytest.fixture
def three_runs(tmp_path: Path) -> Iterator[Path]:
    make_run(tmp_path / "detect" / "train", started(), closed(1, 0.25, is_best=True), STOPPED, saves=1)
    make_run(tmp_path / "detect" / "train2", started())
    with RunLock(make_run(tmp_path / "segment" / "train", started()) / "steadyolo"):
        yield tmp_path


def test_ls_prints_a_line_per_run(three_runs: Path) -> None:
    done = run_app("ls", str(three_runs))
    assert done.returncode == 0, done.stderr
    head, *lines = (line.split() for line in done.stdout.splitlines())
    assert head[:3] == ["run", "state", "epochs"]
    assert [line[:3] for line in lines] == [
        ["detect/train", "interrupted", "1/10"],
        ["detect/train2", "killed", "0/10"],
        ["segment/train", "running", "0/10"],
    ]
    assert "0.2500 (epoch 1)" in done.stdout
    assert lines[0][-2:] == ["yolov8n.pt", "bccd.yaml"]


def test_ls_says_where_there_is_none(tmp_path: Path) -> None:
    assert run_app("ls", str(tmp_path)).stdout.startswith(f"no runs below {tmp_path}")
    assert run_app("ls", str(tmp_path), "--json").stdout == "[]\n"


def test_show_tells_everything(three_runs: Path) -> None:
    run = three_runs / "detect" / "train"
    (run / "results.csv").write_text("epoch,time,train/box_loss,metrics/mAP50(B)\n1,3.0,1.25,0.5\n")
    text = run_app("show", str(run), "--verify").stdout
    for wanted in ("interrupted", "sets/bccd.yaml", "step-00000001.00000001", "good", "box_loss", "run_stopped"):
        assert wanted in text
    assert text.endswith(f"go on with: steadyolo resume {run}\n")

    told = json.loads(run_app("show", str(run), "--json").stdout)
    assert told["overview"]["best_fitness"] == 0.25
    assert told["spec"]["arguments"]["epochs"] == 5
    assert told["checkpoints"][0]["verified"] is None
    assert [event["kind"] for event in told["events"]] == ["run_started", "epoch_closed", "run_stopped"]
    assert told["results"][-1]["metrics/mAP50(B)"] == "0.5"


@pytest.mark.parametrize(("epochs", "wanted"), [(2, "2 of epoch 2"), (1, "none, all is trained")])
def test_show_tells_which_batch_comes_next(epochs: int, wanted: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", started(epochs=epochs), STOPPED, saves=1)
    assert wanted in run_app("show", str(run)).stdout


def test_ls_is_quick_and_brings_neither_torch_nor_ultralytics(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", started(), closed(1, 0.5, is_best=True))
    log = EventLog(run / "steadyolo" / "events.jsonl", step_every_s=0)
    losses = {"box_loss": 1.0, "cls_loss": 1.0, "dfl_loss": 1.0}
    for batch in range(20_000):  # half a day of steps
        step = StepDone(epoch=0, batch=batch, step=batch, losses=losses, num_images=16, seconds=0.4, learning_rate=0.01)
        log.emit(step)
    code = (
        "import sys\nfrom steadyolo.cli.runs import runs_app\nruns_app(standalone_mode=False)\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'ultralytics', 'numpy')))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code, "ls", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # not the wait for a busy core
    assert processor_s < 0.5


@pytest.mark.parametrize("command", ["ls", "show"])
def test_help_has_an_example(command: str) -> None:
    assert f"Example: `steadyolo runs {command}" in run_app(command, "--help").stdout
