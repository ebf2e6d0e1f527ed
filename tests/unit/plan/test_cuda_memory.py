"""What steps take of a CUDA device, by kind."""

from __future__ import annotations

from steadyolo.plan.cuda_allocator import MIB
from steadyolo.plan.cuda_memory import CONTEXT_BYTES, CUBLAS_BYTES, MARGIN_SHARE, cuda_estimate, reserved_bytes
from steadyolo.plan.fit import Fit
from steadyolo.plan.memory import Workload
from steadyolo.plan.trace import BEFORE, Move, Trace

WORKLOAD = Workload(
    model="yolov8n.yaml",
    task="detect",
    imgsz=64,
    fit=Fit(num_images=1),
    compute="fp16",
    device="cuda",
    optimizer="SGD",
    most_boxes=1,
)
STEP = (
    Move(1, 30 * MIB, "weights", BEFORE),
    Move(2, 12 * MIB, "gradients", BEFORE),
    Move(3, 50 * MIB, "activations", "forward"),
    Move(4, 11 * MIB, "loss", "loss"),
    Move(4, -11 * MIB, "loss", "backward"),
    Move(3, -50 * MIB, "activations", "backward"),
    Move(2, -12 * MIB, "gradients", "update"),
)
CUBLAS = sum(CUBLAS_BYTES)


def test_what_lasts_is_taken_once_and_a_step_reuses_what_the_one_before_gave_back() -> None:
    once = CUBLAS + (30 + 12 + 50 + 12) * MIB  # 11 MiB take a segment of 12
    assert reserved_bytes([STEP]) == once
    assert reserved_bytes([STEP] * 5) == once


def test_steps_of_growing_size_leave_fragments() -> None:
    grown = [
        [Move(3, size * MIB, "activations", "forward"), Move(3, -size * MIB, "activations", "backward")]
        for size in (20, 30, 40)
    ]
    assert reserved_bytes(grown) == CUBLAS + 90 * MIB
    assert reserved_bytes(list(reversed(grown))) == CUBLAS + 40 * MIB


def test_what_was_given_back_before_is_there_for_the_step() -> None:
    assert reserved_bytes([STEP], given_back=[200 * MIB]) == CUBLAS + 200 * MIB
    assert reserved_bytes([STEP], given_back=[20 * MIB]) < reserved_bytes([STEP]) + 20 * MIB


def test_what_a_step_leaves_behind_is_gone_with_the_next() -> None:
    leaving = (*STEP, Move(5, 24 * MIB, "input", "batch"))
    assert reserved_bytes([leaving] * 9) == reserved_bytes([leaving])


def test_kinds_add_up_to_what_is_reserved_the_margin_and_the_context() -> None:
    found = cuda_estimate(Trace(workload=WORKLOAD, training=STEP, validation=()))
    kinds = found.training.by_kind
    assert found.training.moment == "loss"
    assert (kinds["weights"], kinds["activations"], kinds["loss"]) == (30 * MIB, 50 * MIB, 11 * MIB)
    assert kinds["workspace"] == CUBLAS
    assert kinds["context"] == CONTEXT_BYTES
    assert kinds["overhead"] >= 1 * MIB, "the rest of the segment"
    assert found.training.num_bytes == round(reserved_bytes([STEP]) * (1 + MARGIN_SHARE)) + CONTEXT_BYTES
    assert found.validation.num_bytes == 0
