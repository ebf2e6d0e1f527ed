"""A loss or gradient that is not finite is caught in its step, and the run goes on without the batch it came from."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.runs import (
    Prepare,
    checkpoints,
    die_at,
    differing,
    digests,
    happened,
    poison_gradients,
    poison_images,
    state_of,
    table,
    without_finite_checks,
)
from tests.faults.uninterrupted import Reference

AT = (1, 1)  # in the second epoch, the first batch of a step that is made of two
FAULTS: dict[str, Prepare] = {
    "an image": partial(poison_images, (AT,)),
    "a gradient": partial(poison_gradients, (AT,)),
}


def not_finite(run: Path) -> list[str]:
    """Tensors with a NaN or an infinity in any checkpoint of the run."""
    return [
        f"{checkpoint.name}/{file.stem}/{name}"
        for checkpoint in checkpoints(run)
        for file in checkpoint.glob("*.safetensors")
        for name, tensor in load_file(file).items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


@pytest.mark.parametrize("save_every", ["0.01s", "1h"], ids=["saved often", "saved rarely"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_nan_is_caught_and_its_batch_left_out(
    fault: str, save_every: str, reference: Reference, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = reference.start(run, prepare=(FAULTS[fault],), save__every=save_every).wait().expect(0)
    caught = happened(run, "non_finite")
    assert len(caught) == 1
    assert caught[0]["attempt"] == 1
    skipped = [(event["epoch"], event["batch"]) for event in happened(run, "batch_skipped")]
    assert AT in skipped
    assert (caught[0]["epoch"], caught[0]["batch"]) in skipped
    assert [(cursor["epoch"], cursor["batch"]) for cursor in state_of(checkpoints(run)[-1])["skipped"]] == skipped
    assert f"batch {AT[1] + 1} of epoch {AT[0] + 1} is left out" in outcome.output
    assert len(table(run)) == 3
    assert not_finite(run) == []
    assert reference.differing(run), "it learned the same without that batch"


@pytest.mark.parametrize("fault", FAULTS)
def test_where_it_was_saved_and_killed_makes_no_difference(fault: str, reference: Reference, tmp_path: Path) -> None:
    """Going back to a checkpoint right before the fault, or long before it, or being killed: all end the same."""
    often, rarely, killed = tmp_path / "often", tmp_path / "rarely", tmp_path / "killed"
    poison = FAULTS[fault]
    reference.start(often, prepare=(poison,)).wait().expect(0)
    reference.start(rarely, prepare=(poison,), save__every="1h").wait().expect(0)
    # Killed after it went back and trained on, before anything is saved; then again later.
    die = partial(die_at, "on_train_batch_end", 7)
    reference.start(killed, prepare=(poison, die), save__every="1h").wait().expect(-signal.SIGKILL)
    assert happened(killed, "non_finite"), "it was killed before the fault"
    die = partial(die_at, "on_train_batch_end", 6)
    reference.resume(killed, prepare=(poison, die)).wait().expect(-signal.SIGKILL)
    reference.resume(killed, prepare=(poison,)).wait().expect(0)
    assert differing(digests(rarely), digests(killed)) == []
    assert differing(digests(rarely), digests(often)) == []


def test_several_bad_batches_in_an_epoch_are_survived(reference: Reference, tmp_path: Path) -> None:
    """Each of them costs a try, none of them twice: what was left out stays left out, however far a run goes back."""
    run = tmp_path / "run"
    bad = ((1, 0), (1, 2), (2, 3))
    reference.start(run, prepare=(partial(poison_images, bad),), save__every="1h").wait().expect(0)
    assert [(event["epoch"], event["batch"]) for event in happened(run, "non_finite")] == list(bad)
    assert [(c["epoch"], c["batch"]) for c in state_of(checkpoints(run)[-1])["skipped"]] == list(bad)
    assert not_finite(run) == []


def test_an_epoch_whose_only_batch_is_bad_is_survived(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    reference.start(run, prepare=(partial(poison_images, ((1, 0),)),), batch=16, epochs=3).wait().expect(0)
    assert len(happened(run, "non_finite")) == 1
    assert [row["epoch"] for row in table(run)] == ["1", "2", "3"]
    assert not_finite(run) == []


def test_a_run_that_cannot_learn_gives_up_and_says_why(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = reference.start(run, prepare=(partial(poison_images, None),), recovery__tries=2).wait().expect(1)
    assert [event["attempt"] for event in happened(run, "non_finite")] == [1, 2, 3]
    assert happened(run, "non_finite")[-1]["action"] == "giving up"
    assert happened(run, "run_stopped")[-1]["reason"] == "failed"
    assert "error: training stopped at epoch 1: " in outcome.output
    assert "remedy: lower lr0" in outcome.output
    assert "Traceback" not in outcome.output
    assert checkpoints(run), "the newest good checkpoint is kept"
    assert not_finite(run) == []

    reference.resume(run).wait().expect(0)  # with the cause mended it goes on
    assert not_finite(run) == []


# --- controls ---


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_is_needed(fault: str, reference: Reference, tmp_path: Path) -> None:
    """Without it the weights, the optimizer and the EMA are NaN, and so is each later checkpoint."""
    run = tmp_path / "run"
    reference.start(run, prepare=(FAULTS[fault], without_finite_checks)).wait().expect(0)
    assert happened(run, "non_finite") == []
    groups = {name.split("/")[1] for name in not_finite(run)}
    assert {"model", "ema", "optimizer"} <= groups
