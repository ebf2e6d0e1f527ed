"""A stop signal in any phase ends with a committed checkpoint and exit code 75, in time, and costs nothing."""

from __future__ import annotations

import time
from functools import partial
from itertools import cycle
from pathlib import Path
from signal import SIGINT, SIGTERM, SIGUSR1, Signals

import pytest

from tests.faults.runs import Prepare, checkpoints, happened, pause_at, pause_in, state_of
from tests.faults.uninterrupted import Reference

EXIT_INTERRUPTED = 75
LIMIT_S = 25.0

# Each phase is reached for real: the run stays in it for a while, and says so in a file.
PHASES: dict[str, Prepare] = {
    "the model is being loaded": partial(pause_at, "on_pretrain_routine_start", 1),
    "labels are being read": partial(pause_in, "steadyolo.adapters.ultralytics.dataset:KeyedDataset.get_labels", 1),
    "everything is ready": partial(pause_at, "on_train_start", 1),
    "the first batch": partial(pause_at, "on_train_batch_start", 1),
    "a forward pass": partial(pause_in, "steadyolo.train.step:Stepper._loss", 3),
    "between the batches of a step": partial(pause_at, "on_train_batch_end", 6),
    "validation": partial(pause_at, "on_val_batch_start", 1),
    "a save is being written": partial(pause_in, "steadyolo.vault.checkpoints:Checkpoints._write_file", 8),
    "the final evaluation": partial(pause_at, "on_val_batch_start", 4),
}
SIGNALS = dict(zip(PHASES, cycle([(SIGTERM, SIGINT), (SIGINT, SIGUSR1), (SIGUSR1, SIGTERM)]), strict=False))


def interrupt(
    reference: Reference, run: Path, phase: Prepare, signals: tuple[Signals, Signals], **changes: object
) -> float:
    """Start a run, send it both signals when it is in `phase`, and see it end with 75. Returns how long that took."""
    flag = run.parent / "reached"
    child = reference.start(run, prepare=(partial(phase, flag, 0.8),), **changes)
    child.wait_for(flag)
    sent_s = time.monotonic()
    child.send(signals[0], to_group=True)  # loader workers are told too, as by Ctrl-C in a terminal
    time.sleep(0.2)
    assert child.is_running, "it was over before the second signal"
    child.send(signals[1], to_group=True)
    child.wait(LIMIT_S).expect(EXIT_INTERRUPTED)
    return time.monotonic() - sent_s


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_ends_a_run_in_time_and_costs_nothing(phase: str, reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    assert interrupt(reference, run, PHASES[phase], SIGNALS[phase]) < LIMIT_S
    assert checkpoints(run), "nothing is committed"
    assert not list((run / "steadyolo" / "checkpoints").glob("*.partial-*"))
    assert [event["signal"] for event in happened(run, "signal_received")] == [SIGNALS[phase][0].name]
    assert happened(run, "run_stopped")[-1]["reason"] == "interrupted"
    assert happened(run, "run_stopped")[-1]["exit_code"] == EXIT_INTERRUPTED

    reference.resume(run).wait().expect(0)
    assert reference.differing(run) == []


@pytest.mark.parametrize("number", [SIGTERM, SIGINT, SIGUSR1])
def test_each_signal_does_with_loader_workers_too(number: Signals, reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    phase = PHASES["between the batches of a step"]
    assert interrupt(reference, run, phase, (number, number), workers=2, epochs=2) < LIMIT_S
    assert state_of(checkpoints(run)[-1])["pending_batches"] == 1, (
        "the batch that was under way is not in the checkpoint"
    )
    reference.resume(run).wait().expect(0)
    assert reference.differing(run, epochs=2) == []


def test_a_signal_while_a_run_is_being_resumed(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    interrupt(reference, run, PHASES["a forward pass"], (SIGTERM, SIGTERM))
    for name in ("the model is being loaded", "labels are being read", "the first batch"):
        flag = tmp_path / name.replace(" ", "-")
        child = reference.resume(run, prepare=(partial(PHASES[name], flag, 0.5),))
        child.wait_for(flag)
        child.send(SIGTERM)
        child.wait(LIMIT_S).expect(EXIT_INTERRUPTED)
    reference.resume(run).wait().expect(0)
    assert reference.differing(run) == []


# --- what hangs ---


def test_a_step_that_hangs_is_given_up_in_time(reference: Reference, tmp_path: Path) -> None:
    run, flag = tmp_path / "stopped", tmp_path / "reached"
    hang = partial(pause_in, "steadyolo.train.step:Stepper._loss", 7, flag, 3600.0)
    child = reference.start(run, prepare=(hang,))
    child.wait_for(flag)
    sent_s = time.monotonic()
    child.send(SIGTERM)
    child.wait(LIMIT_S).expect(EXIT_INTERRUPTED)
    assert 15.0 < time.monotonic() - sent_s < LIMIT_S, "it ended by itself, so this proves nothing"
    assert checkpoints(run)
    reference.resume(run).wait().expect(0)
    assert reference.differing(run) == []


HANGING_LOADER = "steadyolo.adapters.ultralytics.dataset:KeyedDataset.__getitem__"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_hangs_is_given_up_in_time(workers: int, reference: Reference, tmp_path: Path) -> None:
    run, flag = tmp_path / "stopped", tmp_path / "reached"
    hang = partial(pause_in, HANGING_LOADER, 12 if workers == 0 else 6, flag, 60.0)
    child = reference.start(run, prepare=(hang, short_grace), workers=workers)
    child.wait_for(flag)
    child.send(SIGTERM)
    child.wait(LIMIT_S).expect(EXIT_INTERRUPTED)
    assert checkpoints(run)
    reference.resume(run).wait().expect(0)
    assert reference.differing(run) == []


def short_grace() -> None:
    """Give up after 2 s instead of 20."""
    import steadyolo.adapters.ultralytics.trainer as trainer

    trainer._GRACE_S = 2.0


# --- controls ---


def test_handlers_are_needed(reference: Reference, tmp_path: Path) -> None:
    """Without them a signal ends the process where it is, and what was not yet saved is lost."""
    run, flag = tmp_path / "stopped", tmp_path / "reached"
    phase = partial(PHASES["between the batches of a step"], flag, 5.0)
    child = reference.start(run, prepare=(phase, without_handlers), save__every="1h")
    child.wait_for(flag)
    child.send(SIGTERM)
    child.wait(LIMIT_S).expect(-SIGTERM)
    assert state_of(checkpoints(run)[-1])["cursor"] == {"epoch": 1, "batch": 0}, "a later state is there all the same"
    assert happened(run, "signal_received") == []


def without_handlers() -> None:
    import steadyolo.train.signals as signals

    signals.STOP_SIGNALS = ()


def test_giving_up_is_needed(reference: Reference, tmp_path: Path) -> None:
    """Without it a hanging step keeps the process past its time."""
    run, flag = tmp_path / "stopped", tmp_path / "reached"
    hang = partial(pause_in, "steadyolo.train.step:Stepper._loss", 3, flag, 3600.0)
    child = reference.start(run, prepare=(hang, short_grace, without_giving_up))
    child.wait_for(flag)
    child.send(SIGTERM)
    time.sleep(4.0)
    assert child.is_running
    child.send(Signals.SIGKILL)
    child.wait().expect(-Signals.SIGKILL)


def without_giving_up() -> None:
    import steadyolo.adapters.ultralytics.trainer as trainer

    trainer.exit_at_once = lambda: None
