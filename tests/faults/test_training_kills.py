"""A run that is killed at any instant, any number of times, ends byte for byte as the one that was not.

`bench/resume_exact.py` does the same at scale; here are a handful of kills for each kind of run, and the controls.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.faults.runs import (
    Prepare,
    checkpoints,
    die_at,
    differing,
    digests,
    happened,
    on_event,
    state_of,
    table,
    without_sample_keys,
)
from tests.faults.uninterrupted import Reference


def kill_at_random(reference: Reference, run: Path, *, num_kills: int, seed: int, task: str, **changes: object) -> int:
    """Start a run, kill it at random instants and resume it, to its end. Returns how many kills struck."""
    rng = random.Random(seed)
    whole_s = reference.uninterrupted(task).seconds
    child, num_struck = reference.start(run, task=task, **changes), 0
    while num_struck < num_kills:
        child.wait_for(run / "steadyolo" / "lock")
        time.sleep(rng.uniform(0.05, 0.8) * whole_s)
        if not child.is_running:
            break
        child.send(signal.SIGKILL)
        struck = child.wait().exit_code == -signal.SIGKILL
        num_struck += struck
        if not struck or (run / "steadyolo" / "finished.json").exists():
            return num_struck
        started = (run / "steadyolo" / "spec.json").exists()
        child = reference.resume(run) if started else reference.start(run, task=task, exist_ok=True, **changes)
    child.wait().expect(0)
    return num_struck


@pytest.mark.parametrize(
    ("task", "workers", "num_kills"),
    [("detect", 0, 4), ("detect", 2, 4), ("segment", 0, 1), ("pose", 2, 1), ("obb", 0, 1), ("classify", 2, 1)],
)
def test_a_run_killed_at_random_instants_ends_as_if_it_had_not_been(
    task: str, workers: int, num_kills: int, reference: Reference, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    num_struck = kill_at_random(
        reference, run, num_kills=num_kills, seed=17, task=task, **({"workers": workers} if workers else {})
    )
    assert num_struck, "no kill struck, so this proves nothing"
    assert reference.differing(run, task) == []  # the reference has no workers: their number changes nothing


def test_with_as_many_threads_as_cores_too(reference: Reference, tmp_path: Path) -> None:
    changes = {"cpu__threads": 2, "epochs": 1}
    run = tmp_path / "killed"
    reference.start(run, prepare=(partial(die_at, "on_train_batch_end", 2),), **changes).wait().expect(-signal.SIGKILL)
    reference.resume(run).wait().expect(0)
    assert reference.differing(run, **changes) == []


# Where a kill hurts most, each reached for real: (callback, which call of it).
INSTANTS = {
    "before the first batch": ("on_train_start", 1),
    "between the batches of a step": ("on_train_batch_end", 6),
    "after an epoch's last batch": ("on_train_epoch_end", 2),
    "in validation": ("on_val_batch_start", 2),
    "between a row of results.csv and its checkpoint": ("on_fit_epoch_end", 2),
    "in the final evaluation": ("on_val_start", 4),
    "when everything is done but said": ("on_train_end", 1),
}


@pytest.mark.parametrize("where", INSTANTS)
def test_a_kill_at_this_instant_changes_nothing(where: str, reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    reference.start(run, prepare=(partial(die_at, *INSTANTS[where]),)).wait().expect(-signal.SIGKILL)
    assert checkpoints(run), "the first state is committed before the first batch"
    reference.resume(run).wait().expect(0)
    assert reference.differing(run) == []
    assert [row["epoch"] for row in table(run)] == ["1", "2", "3"]


def test_a_kill_between_the_last_batch_of_warm_up_and_its_score_changes_nothing(
    reference: Reference, tmp_path: Path
) -> None:
    """The row of that epoch tells the learning rates of its last batch, which the schedule alone does not know."""
    run, asked = tmp_path / "killed", {"warmup_epochs": 1, "epochs": 2}
    prepare = (pause_after_batches, partial(die_at, "on_val_start", 1))
    reference.start(run, prepare=prepare, **asked).wait().expect(-signal.SIGKILL)
    assert state_of(checkpoints(run)[-1])["cursor"] == {"epoch": 0, "batch": 4}, "saved between batch and score"
    reference.resume(run).wait().expect(0)
    assert reference.differing(run, **asked) == []


def pause_after_batches() -> None:
    """Let the writer come to rest after each batch, so that each of them is saved."""
    on_event("on_train_batch_end", lambda _: time.sleep(0.3))
    on_event("on_train_epoch_end", lambda _: time.sleep(1.0))


# Ways of training that carry state of their own from batch to batch.
WAYS: dict[str, dict[str, object]] = {
    "all augmentations, two workers": {
        "workers": 2,
        "mixup": 0.5,
        "cutmix": 0.5,
        "copy_paste": 0.5,
        "degrees": 10.0,
        "perspective": 0.0005,
        "flipud": 0.5,
        "multi_scale": 0.5,
    },
    "an end-to-end detector, whose loss changes with the epoch": {"family": "yolo26"},
    "micro-batches, SGD with momentum": {"memory__micro_batch": 3, "optimizer": "SGD", "momentum": 0.9},
    "an optimizer that Ultralytics chooses, a cosine schedule": {"optimizer": "auto", "cos_lr": True},
    "rectangles, a cache in memory, fp32": {"rect": True, "cache": "ram", "precision__compute": "fp32"},
    "frozen layers, one class": {"freeze": 10, "single_cls": True},
    "dropout": {"task": "classify", "dropout": 0.5},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training_is_exact(way: str, reference: Reference, tmp_path: Path) -> None:
    run, asked = tmp_path / "killed", {"task": "detect", "epochs": 2, **WAYS[way]}
    reference.start(run, prepare=(partial(die_at, "on_train_batch_end", 6),), **asked).wait().expect(-signal.SIGKILL)
    reference.resume(run).wait().expect(0)
    assert reference.differing(run, **asked) == []


def test_a_kill_between_the_batches_of_a_step_leaves_gradients_that_wait(reference: Reference, tmp_path: Path) -> None:
    """The checkpoint that is resumed holds gradients of half a step, and they are needed."""
    run = tmp_path / "killed"
    # Saves wait for the disk here, so that the newest one is from between the two batches of a step.
    slow = (partial(stop_between_batches, 6),)
    reference.start(run, prepare=slow).wait().expect(-signal.SIGKILL)
    newest = checkpoints(run)[-1]
    assert state_of(newest)["pending_batches"] == 1
    assert (newest / "gradients.safetensors").exists()

    without = tmp_path / "without"
    shutil.copytree(run, without)
    reference.resume(run).wait().expect(0)
    assert reference.differing(run) == []

    reference.resume(without, prepare=(without_waiting_gradients,)).wait().expect(0)
    assert "model.safetensors" in reference.differing(without), "gradients that wait make no difference here"


def stop_between_batches(num_batches: int) -> None:
    """SIGKILL once the state after `num_batches` batches is committed."""
    from steadyolo.adapters.ultralytics.run import UltralyticsRun

    save = UltralyticsRun.save

    def saving(run: UltralyticsRun, state: object, *, required: bool) -> None:
        save(run, state, required=required)  # type: ignore[arg-type]
        if state.tick(run._num_batches) >= num_batches + state.epochs_closed and state.pending_batches:  # type: ignore[attr-defined]
            run.drain()
            signal.raise_signal(signal.SIGKILL)

    UltralyticsRun.save = saving  # type: ignore[method-assign,assignment]


def without_waiting_gradients() -> None:
    import steadyolo.adapters.ultralytics.run as run

    run.restore_gradients = lambda parameters, tensors: None


@pytest.mark.parametrize("prepare", [(), (without_sample_keys,)], ids=["with keys", "without keys"])
def test_keys_of_draws_are_needed(prepare: tuple[Prepare, ...], reference: Reference, tmp_path: Path) -> None:
    """Two runs without a key for each sample are alike; one of them that was killed is not like the other."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference.start(whole, prepare=prepare, epochs=2).wait().expect(0)
    die = partial(die_at, "on_train_batch_end", 5)
    reference.start(killed, prepare=(*prepare, die), epochs=2).wait().expect(-signal.SIGKILL)
    reference.resume(killed, prepare=prepare).wait().expect(0)
    different = differing(digests(killed), digests(whole))
    assert ("model.safetensors" in different) == bool(prepare), different


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    reference.start(run, prepare=(partial(die_at, "on_train_batch_end", 7),)).wait().expect(-signal.SIGKILL)
    *_, older, newest = checkpoints(run)
    tensors = newest / "model.safetensors"
    data = bytearray(tensors.read_bytes())
    data[len(data) // 2] ^= 1
    tensors.write_bytes(data)

    outcome = reference.resume(run).wait().expect(0)
    rejected, resumed = happened(run, "checkpoint_rejected"), happened(run, "resumed")
    assert [event["name"] for event in rejected] == [newest.name]
    assert "model.safetensors" in rejected[0]["why"]
    assert [event["name"] for event in resumed] == [older.name]
    assert newest.name in outcome.output
    assert "model.safetensors" in outcome.output
    assert reference.differing(run) == []


def test_when_every_checkpoint_is_damaged_the_run_says_so(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    reference.start(run, prepare=(partial(die_at, "on_train_batch_end", 3),)).wait().expect(-signal.SIGKILL)
    for checkpoint in checkpoints(run):
        (checkpoint / "state.json").write_text(json.dumps({}))
    outcome = reference.resume(run).wait()
    outcome.expect(1)
    assert "no checkpoint" in outcome.output
    assert all(checkpoint.name in outcome.output for checkpoint in checkpoints(run))
    assert "remedy: " in outcome.output
    assert "Traceback" not in outcome.output
