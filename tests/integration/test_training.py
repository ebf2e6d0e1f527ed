"""Both ways in, for every task, give what an Ultralytics user and its tools expect."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import TASKS
from tests.faults.runs import checkpoints, differing, digests, happened, in_child, steadyolo, table
from tests.faults.uninterrupted import Reference
from tests.integration.ways_in import train_in_python, use_weights

EPOCHS = 2


class Python:
    """Small runs through `YOLO(...).train(...)`, each made once: with Ultralytics' trainer or with ours."""

    def __init__(self, folder: Path, reference: Reference) -> None:
        self._folder, self._reference = folder, reference
        self._made = cache(self._make)

    def run(self, task: str, *, steady: bool, **changes: object) -> tuple[Path, dict[str, Any]]:
        """The run's folder, and what was seen on the way."""
        return self._made(task, steady, tuple(sorted(changes.items())))

    def _make(self, task: str, steady: bool, changes: tuple[tuple[str, object], ...]) -> tuple[Path, dict[str, Any]]:
        run = self._folder / "-".join([task, "ours" if steady else "theirs", *(f"{k}{v}" for k, v in changes)])
        words = self._reference.words(run, task=task, **{"epochs": EPOCHS, **dict(changes)})
        told, log = run.with_name(f"{run.name}.json"), run.with_name(f"{run.name}.log")
        in_child(partial(train_in_python, words, steady=steady, told=told), log=log).expect(0)
        return run, json.loads(told.read_text())


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, reference: Reference) -> Python:
    return Python(tmp_path_factory.mktemp("python"), reference)


# --- every task ---


@pytest.mark.parametrize("task", TASKS)
def test_the_command_and_the_trainer_class_are_one_loop(task: str, python: Python, reference: Reference) -> None:
    """What `YOLO(yaml).train(trainer=SteadyTrainer)` ends with is byte for byte what the command ends with."""
    run, _ = python.run(task, steady=True)
    assert differing(digests(run), reference.uninterrupted(task, epochs=EPOCHS).digests) == []


@pytest.mark.parametrize("task", TASKS)
def test_results_have_the_columns_of_ultralytics(task: str, python: Python) -> None:
    ours, theirs = (python.run(task, steady=steady)[0] / "results.csv" for steady in (True, False))
    header, *rows = ours.read_text().splitlines()
    assert header == theirs.read_text().splitlines()[0]
    assert len(rows) == EPOCHS
    for row in rows:
        assert len(row.split(",")) == len(header.split(","))
        assert all(float(value) == float(value) for value in row.split(",")), "a number is missing"


@pytest.mark.parametrize("task", TASKS)
def test_rates_and_sizes_of_losses_are_those_of_ultralytics(task: str, python: Python) -> None:
    """Learning rates are equal; losses come from the same distribution, so they are alike."""
    ours, theirs = (table(python.run(task, steady=steady)[0]) for steady in (True, False))
    for mine, other in zip(ours, theirs, strict=True):
        for name in (name for name in mine if name.startswith("lr/")):
            assert float(mine[name]) == pytest.approx(float(other[name]), rel=1e-3), name
        for name in (name for name in mine if "cls_loss" in name or name == "train/loss"):
            assert float(mine[name]) == pytest.approx(float(other[name]), rel=0.5), name


@pytest.mark.parametrize("task", TASKS)
def test_arguments_are_written_as_ultralytics_writes_them(task: str, python: Python) -> None:
    ours, theirs = (
        yaml.safe_load((python.run(task, steady=steady)[0] / "args.yaml").read_text()) for steady in (True, False)
    )
    assert set(ours) == set(theirs)
    own = {"name", "save_dir"}  # the two runs lie in different folders
    different = {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name] and name not in own}
    assert different == {}


@pytest.mark.parametrize("task", TASKS)
def test_weights_are_used_by_plain_ultralytics(
    task: str, python: Python, boards: Callable[[str], Path], tmp_path: Path
) -> None:
    run, seen = python.run(task, steady=True)
    data = boards(task)
    image = next(path for path in sorted((data if data.is_dir() else data.parent).rglob("*.jpg")) if "val" in str(path))
    scores = {}
    for name in ("best", "last"):
        told = tmp_path / f"{name}.json"
        act = partial(use_weights, run / "weights" / f"{name}.pt", data, image, told)
        in_child(act, log=tmp_path / f"{name}.log").expect(0)
        found = json.loads(told.read_text())
        assert found["task"] == task
        assert found["results"] == 1
        assert found["names"] == seen["names"]
        scores[name] = found["metrics"]
    key = "metrics/accuracy_top1" if task == "classify" else "metrics/mAP50-95(B)"
    best = max(float(row[key]) for row in table(run))
    assert scores["best"][key] == pytest.approx(best, abs=0.02)  # exported in fp16, and scored in larger batches
    assert scores["last"][key] == pytest.approx(float(table(run)[-1][key]), abs=0.02)


@pytest.mark.parametrize("task", TASKS)
def test_files_of_a_run_are_those_of_ultralytics(task: str, python: Python) -> None:
    ours, theirs = (python.run(task, steady=steady)[0] for steady in (True, False))

    def names(run: Path) -> set[str]:
        return {
            str(path.relative_to(run))
            for path in run.rglob("*")
            if path.is_file() and run / "steadyolo" not in path.parents
        }

    assert names(ours) == names(theirs)


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_plots_come_out(task: str, python: Python) -> None:
    ours, theirs = (python.run(task, steady=steady, plots=True, epochs=1)[0] for steady in (True, False))
    assert {path.name for path in theirs.glob("*.png")} <= {path.name for path in ours.glob("*.png")}
    assert {path.name for path in theirs.glob("*.jpg")} <= {path.name for path in ours.glob("*.jpg")}
    assert all(path.stat().st_size > 1000 for path in (*ours.glob("*.png"), *ours.glob("*.jpg")))


# --- callbacks ---


def without_scores(names: list[str]) -> list[str]:
    return [
        name for name in names if name not in {"on_val_start", "on_val_batch_start", "on_val_batch_end", "on_val_end"}
    ]


@pytest.mark.parametrize("task", TASKS)
def test_callbacks_fire_where_ultralytics_fires_them(task: str, python: Python) -> None:
    ours, theirs = ([name for name, _ in python.run(task, steady=steady)[1]["events"]] for steady in (True, False))
    assert ours == theirs


@pytest.mark.parametrize("task", TASKS)
def test_callbacks_find_the_attributes_that_ultralytics_has(task: str, python: Python) -> None:
    ours, theirs = (python.run(task, steady=steady)[1]["events"] for steady in (True, False))
    missing: dict[str, set[str]] = {}
    mine = {name: set(attributes) for name, attributes in ours}
    for name, attributes in theirs:
        lacking = {a for a in attributes if not a.startswith("_")} - mine.get(name, set())
        if lacking:
            missing[name] = missing.get(name, set()) | lacking
    assert missing == {}


def test_the_model_object_is_what_it_is_after_ultralytics_own_training(python: Python) -> None:
    (ours, mine), (_, other) = python.run("detect", steady=True), python.run("detect", steady=False)
    assert mine["names"] == other["names"]
    assert mine["metrics"] == other["metrics"]
    assert mine["trained"] == other["trained"]
    assert Path(mine["best"]) == ours / "weights" / "best.pt"


def test_a_callback_that_stops_ends_the_epoch_where_it_is_which_is_scored(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    reference.start(run, prepare=(stop_in_second_epoch,)).wait().expect(0)
    assert [row["epoch"] for row in table(run)] == ["1", "2"]
    assert happened(run, "run_stopped")[-1]["exit_code"] == 0


def stop_in_second_epoch() -> None:
    from ultralytics.utils.callbacks import default_callbacks

    def stop(trainer: Any) -> None:
        trainer.stop = trainer.epoch == 1

    default_callbacks["on_train_batch_end"].append(stop)


# --- a start from weights ---


@pytest.mark.parametrize("word", ["model", "pretrained"])
def test_training_starts_from_given_weights(
    word: str, reference: Reference, python: Python, models: Callable[..., Path], tmp_path: Path
) -> None:
    weights = python.run("detect", steady=False)[0] / "weights" / "best.pt"
    run = tmp_path / "run"
    words = list(reference.words(run, epochs=1, lr0=0.0, optimizer="SGD", warmup_epochs=0.0))
    words = [f"model={weights}" if word == "model" and w.startswith("model=") else w for w in words]
    if word == "pretrained":
        words.append(f"pretrained={weights}")
    steadyolo(*words, log=tmp_path / "log").expect(0)
    before = torch.load(weights, weights_only=False)["model"].float().state_dict()
    first = load_file(checkpoints(run)[0] / "model.safetensors")
    same = [name for name in first if name.endswith("conv.weight") and torch.equal(first[name], before[name])]
    assert len(same) == len([name for name in first if name.endswith("conv.weight")])
