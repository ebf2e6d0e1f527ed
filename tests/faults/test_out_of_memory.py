"""Memory runs out in the middle of a run, which goes on with the same samples in each step."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from steadyolo.plan.fit import Fit, FitSchedule
from tests.faults.memory import (
    Place,
    limit_to,
    note_growth,
    note_samples,
    run_short,
    run_short_in_validation,
    samples,
    with_fits,
    without_going_back,
    without_restore,
)
from tests.faults.runs import Child, checkpoints, die_at, differing, digests, happened, state_of, table
from tests.faults.uninterrupted import Reference

NUM_IMAGES = 88
NUM_LAYERS = 22  # that can be recomputed: all but the head


PLACES = ("forward", "update", "backward", "ema")
SIZES: dict[int, tuple[Place, ...]] = {  # batches at which memory runs out there; a step is taken after 2nd and 4th
    64: ((0, 0), (0, 1), (1, 0), (1, 1)),  # with nbs=64: steps of one batch
    48: ((0, 0), (0, 1), (1, 0), (1, 1)),
    40: ((0, 0), (0, 1), (0, 2), (1, 0)),  # of two
    24: ((0, 1), (0, 2), (0, 3), (1, 1)),  # of three
}
FIRST, LATER = (0, 2), (1, 1)  # after which a step is taken, with batches of 24
SMALLER = ((*FIRST, Fit(num_images=12)), (*LATER, Fit(num_images=12, num_recomputed=NUM_LAYERS)))

Change = tuple[Any, ...]  # a function of tests.faults.memory, and what it is called with


class Runs:
    """Small runs with large batches, each made once."""

    def __init__(self, folder: Path, data: Path, models: Callable[..., Path]) -> None:
        self._folder = folder
        self._reference = Reference(folder, lambda _: data, models)
        self._made: dict[tuple[object, ...], Path] = {}
        self._num_started = 0

    def start(self, run: Path, size: int, *changes: Change, **given: object) -> Child:
        words = {"nbs": 64, "epochs": 2, "warmup_epochs": 0, "save__every": "1h", "batch": size, **given}
        prepare = (partial(note_samples, run.with_suffix(".samples")), *(partial(*change) for change in changes))
        return self._reference.start(run, prepare=prepare, **words)

    def resume(self, run: Path, *changes: Change) -> Child:
        return self._reference.resume(run, prepare=tuple(partial(*change) for change in changes))

    def made(self, size: int, *changes: Change, **given: object) -> Path:
        """The folder of a run that came to its end."""
        key = size, changes, tuple(given.items())
        if key not in self._made:
            self._num_started += 1
            run = self._folder / f"run{self._num_started}"
            self.start(run, size, *changes, **given).wait().expect(0)
            self._made[key] = run
        return self._made[key]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, models: Callable[..., Path]) -> Runs:
    from steadyolo.data.boards import write_boards

    folder = tmp_path_factory.mktemp("memory")
    data = write_boards(folder / "boards", task="detect", num_train=NUM_IMAGES, num_val=30, size_px=(96, 96), seed=3)
    return Runs(folder, data, models)


def faults(run: Path) -> list[tuple[str, Place, int]]:
    """Where memory ran out, at which batch, and for which time there."""
    told = happened(run, "out_of_memory")
    assert all("can't allocate memory" in event["error"] for event in told)
    return [(event["where"], (event["epoch"], event["batch"]), event["attempt"]) for event in told]


def schedule(run: Path, name: str = "fits") -> FitSchedule:
    """What the run's plan knows of what fits."""
    return FitSchedule.from_list(json.loads((run / "steadyolo" / "plan.json").read_text())[name])


def noted(run: Path) -> dict[Place, tuple[list[str], list[int]]]:
    return samples(run.with_suffix(".samples"))


@pytest.mark.parametrize("size", SIZES)
def test_a_step_is_done_again_with_the_same_samples(size: int, runs: Runs) -> None:
    """In all places, in the first epoch and later: a first failure frees memory, a second changes the fit."""
    struck = list(zip(PLACES, SIZES[size], strict=True))
    run, undisturbed = runs.made(size, *((run_short, *each, 2) for each in struck)), runs.made(size)
    assert faults(run) == [(*each, attempt) for each in struck for attempt in (1, 2)]
    planned, *changes = schedule(run).to_list()
    assert [(change["epoch"], change["batch"]) for change in changes] == list(SIZES[size])
    half = {"num_images": size // 2, "num_recomputed": 0}
    assert [planned, changes[0]] == [{**planned, "num_images": size}, {**changes[0], **half}]
    assert changes[1]["num_recomputed"] == NUM_LAYERS
    assert noted(run) == noted(undisturbed), "samples and steps are others"
    for epoch in (0, 1):
        used = [file for (e, _), (files, _) in noted(run).items() if e == epoch for file in files]
        assert len(used) == len(set(used)) == NUM_IMAGES
    without_fault = runs.made(size, (with_fits, schedule(run).changes))
    assert faults(without_fault) == []
    assert differing(digests(run), digests(without_fault)) == []
    assert differing(digests(run), digests(undisturbed)), "the fit makes no difference, so this shows little"


def test_where_freeing_is_enough_nothing_changes(runs: Runs) -> None:
    run = runs.made(24, (run_short, "clipping", FIRST, 1), (run_short, "backward", LATER, 1))
    assert faults(run) == [("update", FIRST, 1), ("backward", LATER, 1)]
    assert differing(digests(run), digests(runs.made(24))) == []


def test_a_step_that_is_half_done_is_undone_for_any_optimizer(runs: Runs) -> None:
    given = {"optimizer": "MuSGD", "epochs": 1}  # one that is not fused
    run = runs.made(64, (run_short, "update by MuSGD", (0, 1), 1), **given)
    assert faults(run) == [("update", (0, 1), 1)]
    assert differing(digests(run), digests(runs.made(64, **given))) == []


def test_a_validation_is_done_again_and_gives_the_same_scores(runs: Runs) -> None:
    run, undisturbed = runs.made(24, (run_short_in_validation, 0, 2)), runs.made(24)
    assert [(where, attempt) for where, _, attempt in faults(run)] == [("validation", 1), ("validation", 2)]
    assert schedule(run, "val_fits").changes == ((0, 0, Fit(num_images=15)),)
    assert set(differing(digests(run), digests(undisturbed))) <= {"results.csv", "state"}
    for row, whole in zip(table(run), table(undisturbed), strict=True):
        for name, value in row.items():
            assert float(value) == pytest.approx(float(whole[name]), rel=1e-3, abs=2e-5), name


def test_a_run_that_is_killed_after_the_fault_ends_the_same(runs: Runs, tmp_path: Path) -> None:
    """Nothing is saved between the fault and the kill: the plan alone knows of it."""
    run = tmp_path / "run"
    short = [(run_short, "backward", FIRST, 2), (run_short, "update", LATER, 2)]
    runs.start(run, 24, *short, (die_at, "on_train_batch_end", 4)).wait().expect(-signal.SIGKILL)
    assert len(faults(run)) == 2, "it was killed before the first fault"
    assert state_of(checkpoints(run)[-1])["cursor"] == {"epoch": 0, "batch": 0}
    runs.resume(run, short[1], (die_at, "on_train_batch_end", 7)).wait().expect(-signal.SIGKILL)
    assert len(faults(run)) == 4, "it was killed before the second fault"
    runs.resume(run).wait().expect(0)
    assert schedule(run).changes == SMALLER
    assert differing(digests(run), digests(runs.made(24, (with_fits, SMALLER)))) == []


def test_a_batch_that_never_fits_ends_the_run_after_a_save(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = runs.start(run, 24, (run_short, "forward", LATER, 99)).wait().expect(1)
    assert [event["fit"]["num_images"] for event in happened(run, "out_of_memory")] == [24, 12, 12, 6, 3, 2, 1, 1]
    assert happened(run, "out_of_memory")[-1]["action"] == "giving up"
    assert "out of memory in forward of epoch 2, batch 2 (attempt 2): doing it again with 12 images" in outcome.output
    assert "error: there is not enough memory (forward) for " in outcome.output
    assert "remedy: use imgsz=32, a smaller model" in outcome.output
    assert "Traceback" not in outcome.output
    assert state_of(checkpoints(run)[-1])["cursor"] == {"epoch": LATER[0], "batch": LATER[1]}
    runs.resume(run).wait().expect(0)  # where there is more memory
    assert differing(digests(run), digests(runs.made(24))) == []


def test_a_validation_that_never_fits_ends_the_run_after_a_save(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = runs.start(run, 64, (run_short_in_validation, 0, 99), epochs=1).wait().expect(1)
    assert "error: there is not enough memory (validation) for " in outcome.output
    assert state_of(checkpoints(run)[-1])["cursor"] == {"epoch": 0, "batch": 2}
    runs.resume(run).wait().expect(0)
    assert [row["epoch"] for row in table(run)] == ["1"]


def test_a_run_whose_plan_is_too_large_for_a_real_limit_finishes(runs: Runs, tmp_path: Path) -> None:
    """The system's own limit on the process, between what half a batch needs and what the whole one does."""
    given = {"imgsz": 256, "epochs": 1, "close_mosaic": 0}
    growth = tmp_path / "growth"
    unlimited = runs.made(NUM_IMAGES, (limit_to, 2**40), (note_growth, growth), **given)
    assert schedule(unlimited).changes == ()
    start_bytes, most_bytes = map(int, growth.read_text().split())
    run = runs.made(NUM_IMAGES, (limit_to, start_bytes + int(0.85 * (most_bytes - start_bytes))), **given)
    told = happened(run, "out_of_memory")
    assert {"forward", "backward"} & {event["where"] for event in told}, "there was no shortage"
    assert schedule(run).changes
    assert noted(run) == noted(unlimited)
    assert len(table(run)) == 1


# --- controls ---


@pytest.mark.parametrize(
    ("where", "without"), [("backward", without_restore), ("update", without_going_back)], ids=["restore", "going back"]
)
def test_putting_the_start_of_a_step_back_is_needed(where: str, without: Any, runs: Runs) -> None:
    run = runs.made(24, (run_short, where, LATER, 1), (without,))
    assert len(faults(run)) == 1
    assert {"model.safetensors", "ema.safetensors"} <= set(differing(digests(run), digests(runs.made(24))))


def test_the_plan_is_needed(runs: Runs, tmp_path: Path) -> None:
    """Without what it knows, a run that was killed after the fault computes the batch in another way than before."""
    run = tmp_path / "run"
    short = (run_short, "backward", FIRST, 2)
    runs.start(run, 24, short, (die_at, "on_train_batch_end", 4)).wait().expect(-signal.SIGKILL)
    (run / "steadyolo" / "plan.json").unlink()
    runs.resume(run, (run_short, "update", LATER, 2)).wait().expect(0)
    assert "model.safetensors" in differing(digests(run), digests(runs.made(24, (with_fits, SMALLER))))
