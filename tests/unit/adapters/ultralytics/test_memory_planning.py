from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from steadyolo.adapters.ultralytics.memory_planning import (
    Training,
    _planned,
    num_recomputable,
    smaller_models,
    unchanged_randomness,
)
from steadyolo.adapters.ultralytics.request import devices_asked
from steadyolo.errors import UserError
from steadyolo.plan.memory import MemoryEstimate, Peak, Workload
from steadyolo.plan.memory_plan import MemoryPlan
from steadyolo.plan.room import DeviceMemory, MemoryUser, room_for
from steadyolo.spec.run_spec import make_spec

GIB = 2**30
TRAINING = Training(
    model="yolov8x.pt",
    task="detect",
    side_px=640,
    least_side_px=640,
    num_batch_images=16,
    nominal_images=64,
    computes=("fp16",),
    device="cuda:0",
    optimizer="AdamW",
    num_classes=3,
    most_boxes=80,
    mean_boxes=40.0,
    val_boxes=20,
    boxes_unmixed=20,
    num_train_images=500,
)


def a_gib_each(workload: Workload) -> MemoryEstimate:
    """One GiB that lasts, and one for each image of the asked size in the largest model."""
    small = 0.25 if workload.model != TRAINING.model else 1.0
    image = (workload.imgsz / 640) ** 2 * GIB * small
    training, validation = (
        Peak(by_kind={"weights": int(GIB * small), "activations": int(count * image)}, moment="forward")
        for count in (workload.fit.num_images, workload.val_batch / 8)
    )
    return MemoryEstimate(training=training, validation=validation)


def planned(free_bytes: int) -> MemoryPlan:
    used = 24 * GIB - free_bytes
    gpu = DeviceMemory(
        name="cuda:0", total_bytes=24 * GIB, free_bytes=free_bytes, limit="as NVML says",
        others=(MemoryUser(name="python (pid 4711)", num_bytes=used),),
    )  # fmt: skip
    return _planned(TRAINING, make_spec({}, {}), room_for(None, gpu), 20, a_gib_each)


def test_what_other_processes_leave_is_what_is_planned_for() -> None:
    found = planned(10 * GIB)
    assert (found.num_batch_images, found.workload.fit.num_images) == (16, 8)
    assert "python (pid 4711) holds 14.0 GiB" in found.lines[0]
    assert found.fits


def test_a_gpu_that_others_fill_is_refused_with_who_and_what_would_fit() -> None:
    with pytest.raises(UserError) as error:
        planned(int(1.2 * GIB))
    assert "1.2 GiB of 24.0 GiB are free on cuda:0" in error.value.message
    assert "python (pid 4711) holds 22.8 GiB" in error.value.message
    assert "model=yolov8l.pt" in error.value.message
    assert error.value.remedy.startswith("free 2.2 GiB for it, or use ")


def test_a_prediction_slightly_above_what_is_free_is_tried() -> None:
    found = planned(int(1.8 * GIB))
    assert found.workload.fit.num_images == 1
    assert not found.fits
    assert "predictions may be too high" in found.reasons[0]


@pytest.mark.parametrize(
    ("model", "smaller"),
    [
        ("yolov8l.pt", ["yolov8m.pt", "yolov8s.pt", "yolov8n.pt"]),
        ("yolo11s-seg.yaml", ["yolo11n-seg.yaml"]),
        ("yolo11n.pt", []),
        ("mine.pt", []),
        ("there/yolo11s.pt", []),
    ],
)
def test_smaller_models_of_the_same_family(model: str, smaller: list[str]) -> None:
    assert smaller_models(model) == smaller


@pytest.mark.parametrize(
    ("device", "devices"),
    [("cpu", ["cpu"]), (0, ["cuda:0"]), ("cuda", ["cuda:0"]), ("cuda:1", ["cuda:1"]), ((0, 1), ["cuda:0", "cuda:1"])],
)
def test_devices_need_not_be_here(device: object, devices: list[str]) -> None:
    assert devices_asked(device) == devices


def test_planning_draws_nothing_from_generators() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with unchanged_randomness():
        torch.rand(3)
    assert num_recomputable("yolo11n.yaml", "detect", 3) > 10
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_plans_nothing_imports_no_compiler() -> None:
    program = "import sys, steadyolo.adapters.ultralytics.trainer; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split()[-1] == "False"
