from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from steadyolo.cli.pace import measured_pace
from steadyolo.events import EpochClosed, EventLog, RunStarted, StepDone

ASKED = {"model": "yolo11n.pt", "imgsz": 640, "batch": 16}


STARTED = RunStarted(
    model="yolo11n.pt", task="detect", data="d", device="cpu", precision="bf16", threads=2,
    num_train_images=100, num_val_images=10,
)  # fmt: skip


def run_of(
    folder: Path,
    *,
    device: str = "cpu",
    rates: tuple[float, ...] = (10.0, 20.0, 40.0),
    epochs_s: tuple[float, ...] = (),
    **arguments: object,
) -> Path:
    own = folder / "steadyolo"
    own.mkdir(parents=True)
    (own / "spec.json").write_text(json.dumps({"arguments": {**ASKED, **arguments}, "ours": {}, "version": 1}))
    log = EventLog(own / "events.jsonl", step_every_s=0.0)
    log.emit(replace(STARTED, device=device))
    for rate in rates:
        log.emit(StepDone(epoch=0, batch=0, step=0, losses={}, num_images=16, seconds=16 / rate, learning_rate=0.1))
    for epoch, seconds in enumerate(epochs_s, start=1):
        log.emit(EpochClosed(epoch=epoch, metrics={}, fitness=None, is_best=False, seconds=seconds))
    log.close()
    return folder


def test_the_median_of_a_run_is_its_pace(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a")
    pace = measured_pace(tmp_path, ASKED, "cpu")
    assert pace is not None
    assert (pace.run, pace.images_per_second, pace.epoch_seconds) == (str(run), 20.0, None)
    assert pace.seconds_of_epoch(None) == 5.0
    assert pace.seconds_of_epoch(200) == 10.0


def test_epochs_with_their_scoring_count_where_there_are_any(tmp_path: Path) -> None:
    run_of(tmp_path / "a", epochs_s=(30.0, 8.0, 7.0))
    pace = measured_pace(tmp_path, ASKED, "cpu")
    assert pace is not None
    assert pace.seconds_of_epoch(50) == 4.0


@pytest.mark.parametrize(
    "change", [{"model": "yolo11s.pt"}, {"imgsz": 320}, {"batch": 8}, {"device": "cuda:0"}, {"rates": ()}]
)
def test_runs_of_something_else_tell_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    run_of(tmp_path / "a", **change)  # type: ignore[arg-type]
    assert measured_pace(tmp_path, ASKED, "cpu") is None


def test_what_was_left_out_means_the_usual(tmp_path: Path) -> None:
    run_of(tmp_path / "a")
    assert measured_pace(tmp_path, {"model": "elsewhere/yolo11n.pt"}, "cpu") is not None


def test_a_broken_run_hides_no_other(tmp_path: Path) -> None:
    run_of(tmp_path / "a")
    (run_of(tmp_path / "b") / "steadyolo" / "spec.json").write_text("{")
    pace = measured_pace(tmp_path, ASKED, "cpu")
    assert pace is not None and pace.run.endswith("a")


def test_no_folder_no_pace(tmp_path: Path) -> None:
    assert measured_pace(tmp_path / "nothing", ASKED, "cpu") is None
