"""A trace without memory against what torch's profiler counts while the same step is done for real."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from steadyolo.errors import UserError
from steadyolo.plan.fit import Fit
from steadyolo.plan.memory import MemoryEstimate, Workload
from steadyolo.plan.trace import Trace, cpu_estimate

pytestmark = pytest.mark.slow

MIB = 2**20
SMALL = Workload(
    model="yolov8n.yaml",
    task="detect",
    imgsz=320,
    fit=Fit(num_images=2),
    compute="fp32",
    device="cpu",
    optimizer="SGD",
    most_boxes=5,
    val_batch=4,
    val_boxes=5,
)


@pytest.fixture(scope="module")
def truth() -> ModuleType:
    """The bench that has all of it: its measurements are used here, on fewer and smaller cases."""
    folder = str(Path(__file__).parents[4] / "bench")
    sys.path.insert(0, folder)
    try:
        import memory_truth
    finally:
        sys.path.remove(folder)
    return memory_truth


@cache
def traced(**changes: Any) -> Trace:
    from steadyolo.adapters.ultralytics.tracing import trace

    return trace(replace(SMALL, **changes))


def estimated(**changes: Any) -> MemoryEstimate:
    return cpu_estimate(traced(**changes))


def request(model: str, task: str, compute: str, optimizer: str, **more: Any) -> dict[str, Any]:
    what = {"model": model, "task": task, "compute": compute, "optimizer": optimizer}
    return {**what, "imgsz": 128, "batch": 2, "most_boxes": 6, "num_classes": 20, "seed": 7, **more}


@pytest.mark.parametrize(
    ("model", "task", "compute", "optimizer"),
    [
        ("yolov8n.yaml", "detect", "fp32", "SGD"),
        ("yolo26n.yaml", "detect", "bf16", "AdamW"),
        ("yolo11n-seg.yaml", "segment", "fp32", "AdamW"),
        ("yolov8n-pose.yaml", "pose", "bf16", "SGD"),
        ("yolov8n-obb.yaml", "obb", "fp32", "MuSGD"),
        ("yolov8n-cls.yaml", "classify", "fp32", "SGD"),
    ],
)
def test_the_predicted_peak_is_the_measured_one(
    model: str, task: str, compute: str, optimizer: str, truth: ModuleType
) -> None:
    asked = request(model, task, compute, optimizer)
    predicted, measured = truth._predicted(asked)["bytes"], truth._real(asked)["bytes"]
    assert predicted == pytest.approx(measured, rel=0.03)
    bare = truth._bare(asked)["bytes"]  # the control: a trace of the network alone
    assert bare != pytest.approx(measured, rel=0.03)


def test_the_predicted_saving_of_recomputation_is_the_measured_one(truth: ModuleType) -> None:
    plain = request("yolov8n.yaml", "detect", "bf16", "SGD", imgsz=192)
    again = {**plain, "num_recomputed": 22}
    measured = truth._real(plain)["bytes"] - truth._real(again)["bytes"]
    predicted = truth._predicted(plain)["bytes"] - truth._predicted(again)["bytes"]
    assert measured > 5 * MIB
    assert predicted == pytest.approx(measured, rel=0.1)


def test_a_step_takes_the_same_whatever_the_batch_but_for_its_images() -> None:
    two, four, eight = (estimated(fit=Fit(num_images=n)).training.num_bytes for n in (2, 4, 8))
    assert eight == pytest.approx(four + 2 * (four - two), rel=1e-3)


def test_each_kind_is_there_and_what_is_resident_does_not_change() -> None:
    trace = traced()
    peak = cpu_estimate(trace).training
    assert {"weights", "optimizer", "ema", "input", "activations"} <= set(peak.by_kind)
    parameters = 4 * 3_157_200
    assert peak.by_kind["weights"] == pytest.approx(parameters, rel=0.01)  # and BatchNorm's statistics
    assert peak.by_kind["optimizer"] == pytest.approx(parameters, rel=0.01)  # momentum
    assert peak.by_kind["ema"] == peak.by_kind["weights"]
    left = sum(move.num_bytes for move in trace.training)
    resident = sum(peak.by_kind[kind] for kind in ("weights", "optimizer", "ema"))
    assert resident <= left <= resident + peak.by_kind["input"] + MIB  # the batch and its losses are still looked at


def test_every_storage_is_taken_once_and_given_back_at_most_once() -> None:
    trace = traced()
    for moves in (trace.training, trace.validation):
        held: dict[int, int] = {}
        for move in moves:
            if move.num_bytes >= 0:
                assert move.storage not in held
                held[move.storage] = move.num_bytes
            else:
                assert held[move.storage] == -move.num_bytes
                held[move.storage] = 0


def test_moments_are_told_in_words() -> None:
    told = {move.moment for move in traced().training}
    assert {"before", "batch", "forward, layer 0 (Conv)", "loss", "backward, layer 0 (Conv)", "update"} <= told


def test_gradients_that_stay_and_batches_in_parts_take_more() -> None:
    plain = estimated().training
    assert estimated(accumulates=True).training.num_bytes > plain.num_bytes
    parts = estimated(num_batch_images=16).training
    assert parts.by_kind["input"] > 4 * plain.by_kind["input"]
    assert parts.by_kind["activations"] < 2 * plain.by_kind["activations"]


def test_boxes_take_memory_in_losses_that_look_at_each() -> None:
    few, many = (estimated(model="yolov8n-seg.yaml", task="segment", most_boxes=n).training for n in (5, 40))
    assert many.num_bytes > few.num_bytes + 10 * MIB


def test_half_precision_on_cuda_takes_less_than_full() -> None:
    full, half = (estimated(device="cuda", compute=compute).training for compute in ("fp32", "fp16"))
    assert half.by_kind["activations"] < 0.7 * full.by_kind["activations"]
    assert half.by_kind["weights"] == full.by_kind["weights"]


@pytest.mark.parametrize(
    ("changes", "told"), [({"model": "nothing.yaml"}, "cannot be built"), ({"task": "dance"}, "task=dance")]
)
def test_what_cannot_be_traced_is_refused(changes: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        traced(**changes)
