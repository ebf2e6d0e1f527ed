"""One of several processes is killed, hangs, is told to stop or meets a NaN: all end or go back together, in time."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from steadyolo.plan.fit import Fit
from tests.faults.memory import run_short, with_fits
from tests.faults.ranked import NUM_RANKS, Each, RankedRun, short_limit
from tests.faults.runs import (
    Child,
    Prepare,
    _Nth,
    checkpoints,
    die_at,
    differing,
    digests,
    happened,
    on_event,
    pause_at,
    poison_gradients,
    state_of,
)
from tests.faults.uninterrupted import Reference
from tests.integration.ways_in import train_in_python

NOTICED_S = 20.0  # by which everybody knows that one is gone
ASKED: dict[str, object] = {"epochs": 2}


def start(reference: Reference, run: Path, prepare: Each | None = None, **changes: object) -> RankedRun:
    words: list[object] = [*reference.words(run, **{**ASKED, **changes})]
    return RankedRun(words, log=run.parent / f"{run.name}.log", prepare=prepare)


def resume(run: Path, prepare: Each | None = None) -> RankedRun:
    return RankedRun(["resume", run], log=run.parent / f"{run.name}.resume.log", prepare=prepare)


@pytest.fixture(scope="module")
def undisturbed(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What two processes come to when nothing happens to them."""
    run = tmp_path_factory.mktemp("ranks") / "undisturbed"
    start(reference, run).expect(0)
    return digests(run)


@pytest.mark.parametrize("rank", range(NUM_RANKS))
def test_a_killed_process_ends_the_others_in_time_and_costs_nothing(
    rank: int, reference: Reference, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """In the middle of an optimizer step, with gradients that wait for their update."""
    run = tmp_path / "run"
    both = start(reference, run, {rank: (partial(die_at, "on_train_batch_end", 5),)})
    both.ranks[rank].wait().expect(-signal.SIGKILL)
    died_s = time.monotonic()
    survivor = both.ranks[1 - rank].wait(NOTICED_S).expect(1)
    assert time.monotonic() - died_s < NOTICED_S
    assert "another one of this run ended without a word" in survivor.output
    assert "steadyolo resume" in survivor.output
    assert "Traceback" not in survivor.output
    if rank == 0:
        return
    assert happened(run, "run_stopped")[-1]["exit_code"] == 1  # rank 0 could still write its last event
    resume(run).expect(0)
    assert differing(digests(run), undisturbed) == []


def test_a_process_that_hangs_is_given_up(reference: Reference, tmp_path: Path) -> None:
    """One that is stopped says nothing, and its connections stay open."""
    run, flag = tmp_path / "run", tmp_path / "reached"
    limits = partial(short_limit, 4.0)
    hang = partial(on_event, "on_train_batch_end", _Nth(3, partial(stand_still, flag)))
    both = start(reference, run, {0: (limits,), 1: (limits, hang)})
    both.ranks[1].wait_for(flag)
    hung_s = time.monotonic()
    outcome = both.ranks[0].wait(NOTICED_S).expect(1)
    assert time.monotonic() - hung_s > 3.0, "it did not wait for it at all"
    assert "has not answered in time" in outcome.output
    both.ranks[1].send(signal.SIGKILL)
    both.ranks[1].wait()


def stand_still(flag: Path, _: object) -> None:
    flag.touch()
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_signal_to_one_stops_all_at_the_same_batch(
    reference: Reference, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start(reference, run, {1: (signalled_at(3),)}).expect(75)
    assert state_of(checkpoints(run)[-1])["cursor"] == {"epoch": 0, "batch": 3}
    assert [event["signal"] for event in happened(run, "signal_received")] == ["another rank's signal"]
    assert happened(run, "run_stopped")[-1]["reason"] == "interrupted"
    resume(run).expect(0)
    assert differing(digests(run), undisturbed) == []


def signalled_at(nth_batch: int) -> Prepare:
    return partial(on_event, "on_train_batch_end", _Nth(nth_batch, signal_self))


def signal_self(_: object) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_to_one_that_waits_cuts_the_scoring(reference: Reference, tmp_path: Path) -> None:
    """While rank 0 scores, for longer than anybody may say nothing, the other one is told to stop."""
    run, flag = tmp_path / "run", tmp_path / "reached"
    limits = partial(short_limit, 3.0)
    both = start(reference, run, {0: (limits, partial(pause_at, "on_val_start", 1, flag, 5.0)), 1: (limits,)})
    both.ranks[0].wait_for(flag)
    time.sleep(3.5)
    assert all(rank.is_running for rank in both.ranks), "nobody waited for the scores"
    both.ranks[1].send(signal.SIGTERM)
    both.expect(75)
    last = state_of(checkpoints(run)[-1])
    assert (last["epochs_closed"], last["cursor"]) == (0, {"epoch": 0, "batch": 4}), "the epoch's batches are not kept"


def test_a_nan_in_one_sends_all_back(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome, _ = start(reference, run, {1: (partial(poison_gradients, ((1, 1),)),)}).expect(0)
    assert [(event["epoch"], event["batch"]) for event in happened(run, "non_finite")] == [(1, 1)]
    skipped = [(c["epoch"], c["batch"]) for c in state_of(checkpoints(run)[-1])["skipped"]]
    assert (1, 1) in skipped
    assert "batch 2 of epoch 2 is left out" in outcome.output


def test_memory_that_runs_out_in_one_is_missed_by_all(reference: Reference, tmp_path: Path) -> None:
    """In a backward pass, which is done again, and in an update, from which all go back: they end as they would have
    with smaller passes from there on.
    """
    run, smaller = tmp_path / "run", tmp_path / "smaller"
    short = (partial(run_short, "backward", (1, 0), 2), partial(run_short, "update", (1, 2), 1))
    start(reference, run, {1: short}).expect(0)
    told = [(event["epoch"], event["batch"], event["action"]) for event in happened(run, "out_of_memory")]
    assert [place for *place, _ in told] == [[1, 0], [1, 0], [1, 2]]
    planned = partial(with_fits, ((1, 0, Fit(num_images=1)),))
    start(reference, smaller, dict.fromkeys(range(NUM_RANKS), (planned,))).expect(0)
    assert differing(digests(run), digests(smaller)) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "Adamm"}, "optimizer=Adamm is unknown"),
        ({"batch": 1}, "a batch of 1 images leaves some of the 2"),
    ],
    ids=["seen at the door", "seen later"],
)
def test_what_is_wrong_is_told_once(
    wrong: dict[str, object], message: str, reference: Reference, tmp_path: Path
) -> None:
    """Rank 0 says it, and both end with its exit code."""
    outcome, other = start(reference, tmp_path / "run", **wrong).expect(2)
    assert f"error: {message}" in outcome.output
    assert "error" not in other.output


# --- what starts them by itself ---


def test_a_signal_to_the_process_that_started_them_costs_nothing(
    reference: Reference, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """Started and resumed from a script, for which Ultralytics' own trainer would have made a temporary file."""
    run = tmp_path / "run"
    words = reference.words(run, **ASKED, launch__ranks=NUM_RANKS)
    script = partial(train_in_python, words, steady=True, told=tmp_path / "told")
    launcher = Child(script, log=tmp_path / "log")
    while len(checkpoints(run)) < 2 and launcher.is_running:
        time.sleep(0.002)
    launcher.send(signal.SIGTERM)
    launcher.send(signal.SIGTERM)  # another one changes nothing
    assert "callbacks that were added here do not reach" in launcher.wait(25.0).expect(75).output
    assert happened(run, "run_stopped")[-1]["reason"] == "interrupted"
    assert happened(run, "run_finished") == [], "it was over before the signal"
    again = partial(train_in_python, words, steady=True, told=tmp_path / "told", through_resume=run)
    Child(again, log=tmp_path / "resume.log").wait().expect(0)  # in as many as it was asked for
    assert differing(digests(run), undisturbed) == []
    told = json.loads((tmp_path / "told").read_text())
    assert told["best"] == str(run / "weights" / "best.pt")
    assert told["trained"][:2] == ["DetectionModel", True], "the model object does not hold the best weights"


# --- controls ---


def test_agreeing_is_needed(reference: Reference, tmp_path: Path) -> None:
    """Without it one process stops by itself, and where it stopped is not where the run is saved."""
    run = tmp_path / "run"
    alike = (each_for_itself, short_grace)
    start(reference, run, {0: alike, 1: (*alike, signalled_at(3))}).wait()
    assert state_of(checkpoints(run)[-1])["cursor"] != {"epoch": 0, "batch": 3}


def each_for_itself() -> None:
    from steadyolo.train.together import Together

    Together.is_stopping = lambda self: self._run.is_stopping()  # type: ignore[method-assign]


def short_grace() -> None:
    """Give up after 2 s instead of 20."""
    import steadyolo.adapters.ultralytics.trainer as trainer

    trainer._GRACE_S = 2.0


def test_summing_gradients_is_needed(reference: Reference, undisturbed: dict[str, object], tmp_path: Path) -> None:
    """Without it each process learns from its own share only."""
    run = tmp_path / "run"
    start(reference, run, dict.fromkeys(range(NUM_RANKS), (without_sums,))).expect(0)
    assert {"model.safetensors", "ema.safetensors"} <= set(differing(digests(run), undisturbed))


def without_sums() -> None:
    from steadyolo.train.step import Stepper

    Stepper._sum_gradients = lambda self: None  # type: ignore[method-assign]
