from __future__ import annotations

import pytest

from steadyolo.plan.fit import Fit
from steadyolo.plan.host import HostSide, rough_step_bytes
from steadyolo.plan.memory import MemoryEstimate, Peak, Workload

MIB = 2**20
WORKLOAD = Workload(
    model="yolov8n.yaml", task="detect", imgsz=640, fit=Fit(num_images=8), compute="bf16", device="cpu",
    optimizer="AdamW", most_boxes=100, num_batch_images=16,
)  # fmt: skip
TENSORS = Peak(
    by_kind={"weights": 10 * MIB, "ema": 10 * MIB, "optimizer": 20 * MIB, "activations": 100 * MIB}, moment="loss"
)
SIDE = HostSide(libraries_bytes=700 * MIB, num_samples=1000, num_workers=0, num_window_images=100)


def test_a_process_is_more_than_its_tensors() -> None:
    found = SIDE.added_to(MemoryEstimate(training=TENSORS, validation=TENSORS), WORKLOAD).training
    assert found.by_kind["context"] == 700 * MIB
    assert found.by_kind["input"] == (100 + 16) * 3 * 640**2
    assert found.by_kind["overhead"] == (40 + 60) * MIB  # what a save copies, and gaps in the heap
    assert found.by_kind["activations"] == 100 * MIB
    assert found.moment == "loss"


def test_workers_keep_batches_and_a_small_data_set_has_few_images() -> None:
    side = HostSide(libraries_bytes=0, num_samples=10, num_workers=2, num_window_images=100)
    found = side.added_to(MemoryEstimate(training=TENSORS, validation=TENSORS), WORKLOAD)
    assert found.training.by_kind["input"] == (10 + 2 * 3 * 16) * 3 * 640**2


@pytest.mark.parametrize(
    ("num_weights", "num_images", "side_px", "measured_mib"),
    [(3_011_043, 8, 640, 2350), (3_011_043, 16, 320, 1564), (3_011_043, 16, 640, 4036)],
)
def test_what_a_step_surely_does_not_exceed(num_weights: int, num_images: int, side_px: int, measured_mib: int) -> None:
    rough = rough_step_bytes(num_weights=num_weights, num_images=num_images, side_px=side_px)
    assert measured_mib * MIB < rough < 5 * measured_mib * MIB
