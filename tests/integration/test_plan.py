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

GIB = 2**30


@pytest.fixture
def plan(boards: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Plan a small training; returns what `--json` prints."""

    def made(task: str = "detect", **changes: object) -> dict[str, Any]:
        given = {"data": boards(task), "model": models(task), "imgsz": 64, "batch": 4, "nbs": 8, "device": "cpu"}
        given |= {name.replace("__", "."): value for name, value in changes.items()}
        words = [f"{name}={value}" for name, value in given.items() if value is not None]
        outcome = steadyolo("plan", *words, "--json", log=tmp_path / "log").expect(0)
        found: dict[str, Any] = json.loads(outcome.output.splitlines()[-1])
        return found

    return made


@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
def test_a_plan_names_each_kind_of_memory_and_a_reason(task: str, plan: Callable[..., dict[str, Any]]) -> None:
    found = plan(task, memory__budget="24GiB")
    assert (found["version"], found["task"], found["device"]) == (1, task, "cpu")
    assert (found["batch"], found["micro_batch"], found["recomputed_layers"], found["fits"]) == (4, 4, 0, True)
    for phase in ("training", "validation"):
        peak = found["predicted"][phase]
        assert {"weights", "optimizer", "ema", "activations", "input"} <= peak["by_kind"].keys()
        assert peak["bytes"] == sum(peak["by_kind"].values()) <= found["predicted"]["bytes"]
    assert found["predicted"]["bytes"] < found["budget_bytes"] == 24 * GIB
    assert found["reasons"] == ["the whole batch of 4 goes through in one pass"]
    assert found["pace"] is None


def test_the_largest_batch_fits_and_twice_as_many_images_would_not(plan: Callable[..., dict[str, Any]]) -> None:
    found = plan(model="yolo11n.yaml", batch="auto", imgsz=640, memory__budget="1500MiB")
    peak = found["predicted"]["training"]
    moving = sum(peak["by_kind"][kind] for kind in ("activations", "loss"))
    assert 1 < found["micro_batch"] == found["batch"] < 14
    assert peak["bytes"] <= found["budget_bytes"] < peak["bytes"] + moving


def test_boxes_that_labels_do_not_tell_are_given(plan: Callable[..., dict[str, Any]]) -> None:
    assert plan(data=None, memory__boxes=10)["most_boxes"] == 10


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"memory.budget": "24GiBs"}, ["memory.budget: '24GiBs' is not a size", "24GiB"]),
        ({"memory.budget": "24"}, ["24 bytes", "24GiB"]),
        ({"memory.budget": "200%"}, ["not a share of memory", "80%"]),
        ({"memory.budget": "80%", "device": 7}, ["80% of a device that is not here", "memory.budget=24GiB"]),
        ({"memory.budgte": "8GiB"}, ["unknown argument 'memory.budgte'", "memory.budget"]),
        ({"memory.recompute": "some"}, ["memory.recompute is 'some'", "auto or off or all"]),
        ({"memory.micro_batch": "many"}, ["memory.micro_batch is 'many'", "auto"]),
        ({"batch": "auto", "device": 7}, ["batch=auto needs to know how much memory", "memory.budget=24GiB"]),
        ({"batch": "auto", "memory.micro_batch": 2}, ["batch=auto and memory.micro_batch contradict each other"]),
        ({"batch": 0.7}, ["batch=0.7 leaves the number of images open", "batch=auto memory.budget=70%"]),
        ({"batch": 0}, ["batch=0 is no number of images"]),
        ({"device": "gpu"}, ["device=gpu cannot be planned for", "device=0"]),
        ({"model": None}, ["no model is given"]),
        ({"model": "yolo11q.yaml"}, ["yolo11q.yaml"]),
        ({"data": None}, ["no data is given", "memory.boxes=N"]),
        ({"data": "nothing.yaml"}, ["nothing.yaml"]),
        ({"data": "s3://bucket/pcb"}, ["are not here", "memory.boxes=N"]),
        ({"memory.budget": "8MiB", "model": "yolo11n.yaml"}, ["weights and what lasts beside them", "memory.budget="]),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said_with_what_works(
    changes: dict[str, object], parts: list[str], boards: Callable[[str], Path], models: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    given = {"data": boards("detect"), "model": models("detect"), "imgsz": 64, "batch": 4, "device": "cpu", **changes}
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
    words = ["model=yolo11s.yaml", "imgsz=640", "batch=1", f"data={boards('detect')}", "device=cpu"]
    pinned = ["precision.compute=fp32", "memory.recompute=off", "memory.budget=1GiB"]
    output = steadyolo("plan", *words, *pinned, log=tmp_path / "log").expect(2).output
    refused(output, "what would fit, with its predicted peak", "imgsz=", "model=yolo11n.yaml")


# --- in a run ---

BUDGETED = {"epochs": 1, "batch": 12, "imgsz": 448, "precision__compute": "fp32"}


@pytest.fixture
def trained(boards: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def made(name: str, **changes: object) -> Path:
        run = tmp_path / name
        words = small(boards("detect"), models("detect"), run, **{"epochs": 2, **changes})
        (tmp_path / f"{name}.log").write_text(steadyolo(*words, log=tmp_path / "log").expect(0).output)
        return run

    return made


def test_a_run_begins_with_what_was_planned_and_tells_how_true_it_was(
    trained: Callable[..., Path], plan: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    plain = trained("whole", **BUDGETED, memory__budget="24GiB")
    whole = json.loads((plain / "steadyolo" / "plan.json").read_text())["memory"]["predicted"]["training"]
    budget = whole["bytes"] - whole["by_kind"]["activations"] // 2
    run = trained("planned", **BUDGETED, memory__budget=int(budget / 0.95))
    decided = json.loads((run / "steadyolo" / "plan.json").read_text())["memory"]
    micro = decided["micro_batch"]
    assert decided["batch"] == 12 > micro
    assert decided["predicted"]["bytes"] <= budget
    told = (tmp_path / "planned.log").read_text()
    assert told.index(f"batch 12 in passes of {micro}") < told.index("epoch 1/1")

    pinned = trained("pinned", **BUDGETED, memory__micro_batch=micro)
    assert not differing(digests(run), digests(pinned)), "the fit that was planned is not the one that trained"
    assert differing(digests(run), digests(plain)), "parts change nothing, so this proves nothing"

    (planned,) = happened(run, "memory_planned")
    measured = happened(run, "memory_measured")
    assert [event["epoch"] for event in measured] == [1]
    peak = max(event["process_peak_bytes"] for event in measured)
    assert planned["predicted_bytes"] == decided["predicted"]["bytes"]
    assert "memory: peak" in told
    shown = json.loads(steadyolo("runs", "show", run, "--json", log=tmp_path / "log").expect(0).output)
    assert shown["memory"] == {"predicted_bytes": planned["predicted_bytes"], "peak_bytes": peak}

    (unplanned,) = happened(pinned, "memory_planned")
    assert unplanned["predicted_bytes"] is None, "nothing was short"
    assert unplanned["seconds"] < 0.3, "so it costs the start nothing"

    pace = plan(**BUDGETED, project=tmp_path, memory__budget="24GiB")["pace"]
    assert pace["measured_in"] == str(pinned), "the newest run of the same"
    assert 0 < pace["seconds_per_epoch"] < 60


def test_a_budget_that_is_too_small_is_refused_before_the_first_batch(
    boards: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path
) -> None:
    words = small(boards("detect"), models("detect"), tmp_path / "run", batch=1, memory__budget="64MiB")
    output = steadyolo(*words, log=tmp_path / "log").expect(2).output
    refused(output, "does not fit", "64.0 MiB", "memory.budget=")
    assert not checkpoints(tmp_path / "run")


def test_the_largest_batch_is_found_once_and_kept(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained("auto", batch="auto", memory__budget="16GiB", epochs=1)
    batch = json.loads((run / "steadyolo" / "plan.json").read_text())["batch"]
    assert batch == 14, "the data set has no more"
    steadyolo("resume", run, "epochs=2", log=tmp_path / "log").expect(0)
    assert json.loads((run / "steadyolo" / "plan.json").read_text())["batch"] == batch
    fixed = trained("fixed", batch=batch, epochs=1)
    steadyolo("resume", fixed, "epochs=2", log=tmp_path / "log").expect(0)
    assert not differing(digests(run), digests(fixed))
