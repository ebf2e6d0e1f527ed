"""`steadyolo plan` and the plan that a run begins with, through the real command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import checkpoints, differing, digests, happened, small, steadyolo
from tests.integration.test_bad_input import refused

MIB, GIB = 2**20, 2**30


@pytest.fixture
def plan(boards: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Plan a small training; returns what `--json` prints."""

    def made(task: str = "detect", **changes: object) -> dict[str, Any]:
        given = {"data": boards(task), "model": models(task), "imgsz": 64, "batch": 4, "nbs": 8, "device": 0}
        given |= {name.replace("__", "."): value for name, value in changes.items()}
        words = [f"{name}={value}" for name, value in given.items() if value is not None]
        outcome = steadyolo("plan", *words, "--json", log=tmp_path / "log").expect(0)
        found: dict[str, Any] = json.loads(outcome.output.splitlines()[-1])
        return found

    return made


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_a_plan_for_each_task_on_a_device_that_is_not_here(task: str, plan: Callable[..., dict[str, Any]]) -> None:
    found = plan(task, memory__budget="24GiB")
    assert (found["version"], found["task"], found["device"], found["compute"]) == (1, task, "cuda", "fp16")
    assert (found["batch"], found["micro_batch"], found["recomputed_layers"], found["fits"]) == (4, 4, 0, True)
    for phase in ("training", "validation"):
        peak = found["predicted"][phase]
        assert peak["bytes"] == sum(peak["by_kind"].values()) <= found["predicted"]["bytes"]
    assert found["predicted"]["bytes"] < found["budget_bytes"] == 24 * GIB
    assert found["reasons"]
    assert found["pace"] is None


def test_without_any_memory_named_nothing_is_chosen(plan: Callable[..., dict[str, Any]]) -> None:
    found = plan()
    assert (found["budget_bytes"], found["fits"]) == (None, None)
    assert found["predicted"]["bytes"] > 0


def test_a_smaller_budget_gives_smaller_parts_of_the_same_batch(plan: Callable[..., dict[str, Any]]) -> None:
    whole = plan(batch=64, imgsz=256, memory__budget="24GiB")
    least = plan(batch=64, imgsz=256, memory__budget="24GiB", memory__micro_batch=4)
    between = (whole["predicted"]["training"]["bytes"] + least["predicted"]["training"]["bytes"]) // 2
    found = plan(batch=64, imgsz=256, memory__budget=between)
    assert 4 <= found["micro_batch"] < 64
    assert found["predicted"]["bytes"] <= between
    kept = ("batch", "imgsz", "model", "compute", "optimizer")
    assert [found[name] for name in kept] == [whole[name] for name in kept]


def test_the_largest_batch_is_larger_in_more_memory(plan: Callable[..., dict[str, Any]]) -> None:
    few = plan(batch="auto", imgsz=640, memory__budget="800MiB")
    many = plan(batch=-1, imgsz=640, memory__budget="1200MiB")
    assert 0 < few["batch"] < many["batch"] <= 14
    assert few["micro_batch"] == few["batch"]


def test_boxes_that_labels_do_not_tell_are_given(plan: Callable[..., dict[str, Any]]) -> None:
    few, many = (plan(data=None, memory__boxes=boxes) for boxes in (10, 5000))
    assert few["most_boxes"] == 10
    assert few["predicted"]["training"]["bytes"] <= many["predicted"]["training"]["bytes"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"memory.budget": "24GiBs"}, ["memory.budget: '24GiBs' is not a size", "24GiB"]),
        ({"memory.budget": "24"}, ["24 bytes", "24GiB"]),
        ({"memory.budget": "200%"}, ["not a share of memory", "80%"]),
        ({"memory.budget": "80%"}, ["80% of a device that is not here", "memory.budget=24GiB"]),
        ({"memory.budgte": "8GiB"}, ["unknown argument 'memory.budgte'", "memory.budget"]),
        ({"memory.recompute": "some"}, ["memory.recompute is 'some'", "auto or off or all"]),
        ({"memory.micro_batch": "many"}, ["memory.micro_batch is 'many'", "auto"]),
        ({"batch": "auto"}, ["batch=auto needs to know how much memory", "memory.budget=24GiB"]),
        ({"batch": "auto", "memory.micro_batch": 2}, ["batch=auto and memory.micro_batch contradict each other"]),
        ({"batch": 0.7}, ["batch=0.7 leaves the number of images open", "batch=auto memory.budget=70%"]),
        ({"batch": 0}, ["batch=0 is no number of images"]),
        ({"device": "gpu"}, ["device=gpu cannot be planned for", "device=0"]),
        ({"model": None}, ["no model is given"]),
        ({"model": "yolo11q.yaml"}, ["yolo11q.yaml"]),
        ({"data": "nothing.yaml"}, ["nothing.yaml"]),
        ({"data": "s3://bucket/pcb"}, ["are not here", "memory.boxes=N"]),
        ({"memory.budget": "8MiB", "model": "yolo11n.yaml"}, ["less than weights", "memory.budget="]),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said_with_what_works(
    changes: dict[str, object], parts: list[str], boards: Callable[[str], Path], models: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    given = {"data": boards("detect"), "model": models("detect"), "imgsz": 64, "batch": 4, "device": 0, **changes}
    words = [f"{name}={value}" for name, value in given.items() if value is not None]
    refused(steadyolo("plan", *words, log=tmp_path / "log").expect(2).output, *parts)


def test_a_model_that_does_not_build(
    models: Callable[..., Path], boards: Callable[[str], Path], tmp_path: Path
) -> None:
    broken = tmp_path / "yolov8n.yaml"
    broken.write_text(models("detect").read_text().replace("SPPF", "SPPPF"))
    output = steadyolo("plan", f"model={broken}", f"data={boards('detect')}", log=tmp_path / "log").expect(2).output
    refused(output, broken, "cannot be built", "SPPPF")


def test_nothing_is_promised_without_labels(
    models: Callable[..., Path], boards: Callable[[str], Path], tmp_path: Path
) -> None:
    source = boards("detect").parent
    copy = Path(shutil.copytree(source, tmp_path / "data", ignore=shutil.ignore_patterns("*.cache")))
    (copy / "data.yaml").write_text((copy / "data.yaml").read_text().replace(str(source), str(copy)))
    shutil.rmtree(copy / "labels")
    words = [f"model={models('detect')}", f"data={copy / 'data.yaml'}"]
    refused(steadyolo("plan", *words, log=tmp_path / "log").expect(2).output, "has labels", "memory.boxes=N")


def test_what_would_fit_is_proposed_and_not_taken(boards: Callable[[str], Path], tmp_path: Path) -> None:
    words = ["model=yolov8x.yaml", f"data={boards('detect')}", "imgsz=1280", "device=0", "memory.budget=2.2GiB"]
    output = steadyolo("plan", *words, log=tmp_path / "log").expect(2).output
    refused(output, "what would fit, with its predicted peak", "imgsz=", "model=yolov8l.yaml")


# --- in a run ---


@pytest.fixture
def trained(boards: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def made(name: str, **changes: object) -> Path:
        run = tmp_path / name
        words = small(boards("detect"), models("detect"), run, epochs=2, **changes)
        (tmp_path / f"{name}.log").write_text(steadyolo(*words, log=tmp_path / "log").expect(0).output)
        return run

    return made


def test_a_run_begins_with_what_was_planned_for_its_budget(
    trained: Callable[..., Path], plan: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    sizes = {"batch": 8, "imgsz": 320, "device": "cpu", "precision__compute": "fp32", "optimizer": "AdamW"}
    whole = plan(**sizes, memory__budget="24GiB")
    halves = plan(**sizes, memory__budget="24GiB", memory__micro_batch=4)
    budget = (whole["predicted"]["bytes"] + halves["predicted"]["bytes"]) // 2
    run = trained("planned", **sizes, memory__budget=int(budget / 0.95))
    decided = json.loads((run / "steadyolo" / "plan.json").read_text())["memory"]
    assert decided["batch"] == 8
    assert decided["micro_batch"] == 4
    assert decided["reasons"][0].startswith("micro-batch 4 of 8")
    told = (tmp_path / "planned.log").read_text()
    assert told.index("batch 8 in passes of 4") < told.index("epoch 1/2")
    pinned = trained("pinned", **sizes, memory__micro_batch=4)
    assert not differing(digests(run), digests(pinned)), "the fit that was planned is not the one that trained"
    assert differing(digests(run), digests(trained("whole", **sizes))), "parts change nothing, so this proves nothing"


def test_a_run_that_nothing_is_short_for_is_not_planned(trained: Callable[..., Path]) -> None:
    run = trained("plain")
    assert json.loads((run / "steadyolo" / "plan.json").read_text())["memory"] is None
    (planned,) = happened(run, "memory_planned")
    assert planned["seconds"] < 0.3
    assert planned["predicted_bytes"] is None


def test_a_budget_that_is_too_small_is_refused_before_the_first_batch(
    boards: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path
) -> None:
    words = small(boards("detect"), models("detect"), tmp_path / "run", memory__budget="64MiB")
    output = steadyolo(*words, log=tmp_path / "log").expect(2).output
    refused(output, "does not fit", "64.0 MiB", "memory.budget=")
    assert not checkpoints(tmp_path / "run")


def test_the_largest_batch_is_found_once_and_kept(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained("auto", batch="auto", memory__budget="16GiB")
    batch = json.loads((run / "steadyolo" / "plan.json").read_text())["batch"]
    assert batch == 14, "the data set has no more"
    steadyolo("resume", run, "epochs=3", log=tmp_path / "log").expect(0)
    assert json.loads((run / "steadyolo" / "plan.json").read_text())["batch"] == batch
    assert not differing(digests(run), digests(_lengthened(trained("fixed", batch=batch), tmp_path)))


def _lengthened(run: Path, tmp_path: Path) -> Path:
    steadyolo("resume", run, "epochs=3", log=tmp_path / "log").expect(0)
    return run


def test_memory_is_told_at_each_epoch_and_in_the_end(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained("watched", memory__budget="16GiB")
    measured = happened(run, "memory_measured")
    assert [event["epoch"] for event in measured] == [1, 2]
    assert all(event["process_peak_bytes"] >= event["process_bytes"] * 0.9 > 50 * MIB for event in measured)
    (planned,) = happened(run, "memory_planned")
    assert planned["predicted_bytes"] > 0
    assert "memory: peak" in (tmp_path / "watched.log").read_text()
    shown = json.loads(steadyolo("runs", "show", run, "--json", log=tmp_path / "log").expect(0).output)
    peak = max(event["process_peak_bytes"] for event in measured)
    assert shown["memory"] == {"predicted_bytes": planned["predicted_bytes"], "peak_bytes": peak}


def test_time_is_predicted_from_a_run_that_was_measured(
    trained: Callable[..., Path], plan: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run = trained("measured")
    pace = plan(device="cpu", project=tmp_path)["pace"]
    assert pace["measured_in"] == str(run)
    assert 0 < pace["seconds_per_epoch"] < 60
    assert plan(device=0, project=tmp_path)["pace"] is None
