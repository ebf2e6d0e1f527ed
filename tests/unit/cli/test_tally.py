"""`Tally` adds events up the way a person would."""

from __future__ import annotations

from pathlib import Path

import pytest

from steadyolo.cli.tally import Tally
from steadyolo.events import (
    BatchSkipped,
    EpochClosed,
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

STARTED = RunStarted(
    model="yolov8n.pt", task="detect", data="bccd.yaml", device="cpu", precision="bf16", threads=2,
    num_train_images=64, num_val_images=8, epochs=10, num_batches=4,
)  # fmt: skip


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def step(epoch: int, batch: int, *, seconds: float = 0.5) -> StepDone:
    return StepDone(
        epoch=epoch, batch=batch, step=0, losses={"box": 1.0}, num_images=16, seconds=seconds, learning_rate=0.01
    )


def closed(epoch: int, *, fitness: float = 0.5, is_best: bool = True) -> EpochClosed:
    return EpochClosed(epoch=epoch, metrics={}, fitness=fitness, is_best=is_best, seconds=3.0)


def tally_of(*events: object, clock: Clock | None = None) -> Tally:
    tally = Tally(monotonic=clock or Clock())
    for event in events:
        tally.observe(event)  # type: ignore[arg-type]
    return tally


def test_going_back_opens_closed_epochs_again() -> None:
    tally = tally_of(STARTED, step(0, 3), closed(1), step(1, 3), closed(2))
    assert tally.num_epochs_closed == 2
    tally.observe(step(1, 1))
    assert (tally.num_epochs_closed, tally.num_batches_done) == (1, 2)


def test_one_event_may_stand_for_several_batches() -> None:
    tally = tally_of(STARTED, step(0, 1, seconds=1.0), step(0, 3, seconds=1.0), closed(1), step(1, 1, seconds=1.0))
    assert tally.seconds_per_batch == pytest.approx(0.5)
    assert tally.epoch_left_s() == pytest.approx(1.0)


def test_the_phase_follows_the_run() -> None:
    tally = tally_of(STARTED)
    assert tally.phase == "starting"
    for batch in range(3):
        tally.observe(step(0, batch))
    assert (tally.phase, tally.num_batches_done) == ("training", 3)
    tally.observe(step(0, 3))
    assert tally.phase == "validating"
    tally.observe(closed(1))
    assert (tally.phase, tally.num_batches_done) == ("training", 0)
    tally.observe(SignalReceived(signal="SIGTERM"))
    assert tally.phase == "SIGTERM: saving, then stopping"
    tally.observe(RunStopped(reason="interrupted", exit_code=75))
    assert tally.phase == "interrupted"


def test_a_run_that_resumes_at_an_unscored_epoch_is_validating() -> None:
    assert tally_of(STARTED, Resumed(name="s", step=4, epoch=0, batch=4)).phase == "validating"


def test_the_time_left_comes_from_batches_first_and_epochs_later() -> None:
    clock = Clock()
    tally = tally_of(STARTED, clock=clock)
    assert tally.run_left_s() is None
    tally.observe(step(0, 0))
    assert tally.epoch_left_s() == pytest.approx(3 * 0.5)
    assert tally.run_left_s() == pytest.approx(39 * 0.5)
    tally.observe(closed(1))
    clock.seconds += 1.0
    assert tally.run_left_s() == pytest.approx(9 * 3.0 - 1.0), "an epoch costs its scoring too"


def test_what_nobody_said_is_unknown() -> None:
    tally = tally_of(step(0, 0))
    assert (tally.run_left_s(), tally.epoch_left_s(), tally.is_scoring) == (None, None, False)


def test_the_speed_is_that_of_the_latest_batches() -> None:
    tally = tally_of(*(step(0, n, seconds=100.0) for n in range(5)), *(step(0, n, seconds=0.5) for n in range(50)))
    assert tally.images_per_second == pytest.approx(32.0)


def test_the_summary_adds_up(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "best.pt").touch()
    clock = Clock()
    tally = tally_of(
        STARTED,
        ImagesSkipped(count=3),
        *(step(0, n) for n in range(4)),
        BatchSkipped(epoch=0, batch=2),
        closed(1, fitness=0.6),
        closed(2, fitness=0.4, is_best=False),
        SaveCommitted(name="step-00000004.00000005", step=4, num_bytes=10, seconds=0.1, stall_seconds=0.25),
        SaveCommitted(name="step-00000008.00000010", step=8, num_bytes=10, seconds=0.1, stall_seconds=0.25),
        SaveFailed(name="step-00000006.00000007", error="full"),
        RunStopped(reason="interrupted", exit_code=75),
        clock=clock,
    )
    clock.seconds += 60
    assert tally.summary(run) == {
        "run": str(run),
        "reason": "interrupted",
        "exit_code": 75,
        "epochs": 2,
        "epochs_asked": 10,
        "step": 0,
        "seconds": 60.0,
        "training_seconds": None,
        "images_per_second": 32.0,
        "memory_peak_bytes": None,
        "memory_predicted_bytes": None,
        "best_fitness": 0.6,
        "best_epoch": 1,
        "saves": 2,
        "saves_failed": 1,
        "stall_seconds": 0.5,
        "last_save": "step-00000008.00000010",
        "copies": {},
        "skipped_images": 3,
        "skipped_batches": 1,
        "weights": {"best": str(run / "weights" / "best.pt")},
        "resume": f"steadyolo resume '{run}'",
    }


def test_a_finished_run_is_not_resumed(tmp_path: Path) -> None:
    finished = RunFinished(epochs=10, step=40, seconds=99.0, best_fitness=0.7, best_epoch=8)
    summary = tally_of(STARTED, finished, RunStopped(reason="early_stopping", exit_code=0)).summary(tmp_path)
    assert summary["resume"] is None
    assert (summary["epochs"], summary["best_epoch"], summary["training_seconds"]) == (10, 8, 99.0)


def test_the_best_of_earlier_attempts_is_known_after_a_resume() -> None:
    tally = tally_of(Resumed(name="s", step=4, epoch=3, batch=0, best_fitness=0.8, best_epoch=2))
    tally.observe(closed(4, fitness=0.5, is_best=False))
    assert (tally.best_fitness, tally.best_epoch) == (0.8, 2)


def test_memory_is_the_highest_peak_beside_what_was_predicted(tmp_path: Path) -> None:
    planned = MemoryPlanned(lines=("fits",), predicted_bytes=900, budget_bytes=1000, seconds=1.0)
    measured = [
        MemoryMeasured(epoch=i, process_bytes=1, process_peak_bytes=peak, workers_bytes=0, host_limit_bytes=9)
        for i, peak in enumerate((700, 800, 750))
    ]
    summary = tally_of(STARTED, planned, *measured).summary(tmp_path)
    assert (summary["memory_peak_bytes"], summary["memory_predicted_bytes"]) == (800, 900)


def test_on_an_accelerator_the_peak_is_what_torch_reserved(tmp_path: Path) -> None:
    measured = MemoryMeasured(
        epoch=1, process_bytes=1, process_peak_bytes=5, workers_bytes=0, host_limit_bytes=9, reserved_peak_bytes=77
    )
    assert tally_of(STARTED, measured).summary(tmp_path)["memory_peak_bytes"] == 77
