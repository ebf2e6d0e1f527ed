"""Several processes train as one: the same samples in each step, and the same weights up to the order of summation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from steadyolo.data.boards import write_boards
from tests.faults.ranked import NUM_RANKS, RankedRun, note_bytes, note_samples, samples
from tests.faults.runs import Child, checkpoints, happened, small, state_of, table

TOLERANCE_SHARE = 1e-5  # of a tensor's length
ASKED = {"precision.compute": "fp32", "epochs": 2, "warmup_epochs": 0.0, "save.every": "1h"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Batches of four, two for each process; the detection set's last one is a lone picture, which only one has."""
    folder = tmp_path_factory.mktemp("boards")

    def made(task: str) -> Path:
        size_px = (48, 48) if task == "classify" else (96, 96)
        num_train = 13 if task == "detect" else 16
        return write_boards(folder / task, task=task, num_train=num_train, num_val=4, size_px=size_px, seed=3)

    return made


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Everything that was learned, in the newest checkpoint of `run`: parameters, and the optimizer's moments."""
    last = checkpoints(run)[-1]
    model, optimizer = (load_file(last / f"{name}.safetensors") for name in ("model", "optimizer"))
    learned = {name.rpartition("/")[0] for name in optimizer}
    return {name: value for name, value in {**model, **optimizer}.items() if name in learned or "/exp_avg" in name}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest distance between tensors of the same name, as a share of their length."""
    assert one.keys() == other.keys()
    assert one
    return max(
        float((one[name] - other[name]).norm() / (one[name].norm() + 1e-12)) for name in one if one[name].norm() > 0
    )


@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
def test_two_processes_learn_what_one_learns(
    task: str, data: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path
) -> None:
    """One process takes each batch in halves, two take a half each: nothing but the order of summation differs."""
    alone, several = tmp_path / "alone", tmp_path / "several"
    asked = {**ASKED, "val": False}
    words = small(data(task), models(task), alone, **asked, memory__micro_batch=2)
    one = Child(words, log=tmp_path / "alone.log", prepare=(partial(note_samples, tmp_path / "alone.samples"),))
    one.wait().expect(0)
    notes = {rank: tmp_path / f"{rank}.samples" for rank in range(NUM_RANKS)}
    both = RankedRun(
        small(data(task), models(task), several, **asked),
        log=tmp_path / "several.log",
        prepare={rank: (partial(note_samples, path), partial(note_bytes, path)) for rank, path in notes.items()},
    )
    both.expect(0)

    mine = [samples(path) for path in notes.values()]
    for cursor, indices in samples(tmp_path / "alone.samples").items():
        shares = [noted[cursor] for noted in mine]
        if len(indices) == 1:
            assert shares == [indices] * NUM_RANKS  # one computes along
            continue
        assert [index for share in shares for index in share] == indices, f"other samples in batch {cursor}"
        assert {len(share) for share in shares} == {2}
    held = [path.with_suffix(".bytes").read_text().splitlines() for path in notes.values()]
    assert held[0] == held[1], "the processes do not hold the same"
    assert len(set(held[0])) == len(held[0]) == len(samples(tmp_path / "alone.samples"))
    assert state_of(checkpoints(several)[-1])["step"] == state_of(checkpoints(alone)[-1])["step"] > 2
    assert distance(weights(alone), weights(several)) < TOLERANCE_SHARE
    for row, other in zip(table(alone), table(several), strict=True):
        losses = [name for name in row if "loss" in name and "train" in name]
        assert [math.isclose(float(row[n]), float(other[n]), rel_tol=1e-4) for n in losses] == [True] * len(losses)


def test_a_run_goes_on_in_any_number_of_processes(
    data: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path
) -> None:
    """Begun in two and ended in one, and the other way round: what was learned is the same."""
    words = partial(small, data("detect"), models("detect"), **{**ASKED, "epochs": 1, "save.every": "0.01s"})
    whole, narrowing, widening = tmp_path / "whole", tmp_path / "narrowing", tmp_path / "widening"
    Child(words(whole, memory__micro_batch=2), log=tmp_path / "whole.log").wait().expect(0)
    stop = partial(stop_after, 3)
    RankedRun(words(narrowing), log=tmp_path / "a.log", prepare={0: (stop,)}).expect(75)
    assert state_of(checkpoints(narrowing)[-1])["cursor"] == {"epoch": 0, "batch": 3}
    Child(["resume", narrowing], log=tmp_path / "b.log").wait().expect(0)
    Child(words(widening, memory__micro_batch=2), log=tmp_path / "c.log", prepare=(stop,)).wait().expect(75)
    RankedRun(["resume", widening], log=tmp_path / "d.log").expect(0)
    assert "trained by 2 processes, and goes on in 1" in (tmp_path / "b.log").read_text()
    for run in (narrowing, widening):
        assert distance(weights(whole), weights(run)) < TOLERANCE_SHARE
    assert len(table(narrowing)) == len(table(whole)) == len(table(widening)) == 1
    for run in (narrowing, widening):
        assert [event["exit_code"] for event in happened(run, "run_stopped")] == [75, 0]


def stop_after(num_batches: int) -> None:
    """A signal to this process alone, at the end of a batch."""
    import os
    import signal

    from tests.faults.runs import _Nth, on_event

    on_event("on_train_batch_end", _Nth(num_batches, lambda _: os.kill(os.getpid(), signal.SIGUSR1)))
