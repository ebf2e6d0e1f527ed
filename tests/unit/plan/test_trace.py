"""The peak of a sequence of moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steadyolo.plan.fit import Fit
from steadyolo.plan.memory import Workload
from steadyolo.plan.trace import Move, Trace, cpu_estimate, peak_of

WORKLOAD = Workload(
    model="yolov8n.yaml",
    task="detect",
    imgsz=64,
    fit=Fit(num_images=1),
    compute="fp32",
    device="cpu",
    optimizer="SGD",
    most_boxes=1,
)


def test_the_peak_is_the_worst_moment_with_what_is_held_then() -> None:
    moves = [
        Move(1, 100, "weights", "before"),
        Move(2, 50, "activations", "forward"),
        Move(3, 30, "workspace", "forward"),
        Move(3, -30, "workspace", "forward"),
        Move(2, -50, "activations", "backward"),
        Move(4, 70, "gradients", "backward"),
    ]
    peak = peak_of(moves)
    assert peak.moment == "forward"
    assert peak.num_bytes == 180
    assert peak.by_kind == {"weights": 100, "activations": 50, "workspace": 30}


def test_nothing_moved_is_no_peak() -> None:
    assert peak_of([]).num_bytes == 0


@given(st.lists(st.tuples(st.integers(1, 1000), st.sampled_from(["weights", "loss", "ema"])), max_size=30))
def test_what_is_only_taken_adds_up(taken: list[tuple[int, str]]) -> None:
    moves = [Move(i, size, kind, "taking") for i, (size, kind) in enumerate(taken)]  # type: ignore[arg-type]
    given_back = [Move(m.storage, -m.num_bytes, m.kind, "giving back") for m in reversed(moves)]
    assert peak_of([*moves, *given_back]).num_bytes == sum(size for size, _ in taken)


def test_a_run_needs_the_larger_of_training_and_validation() -> None:
    trace = Trace(
        workload=WORKLOAD,
        training=(Move(1, 10, "weights", "forward"),),
        validation=(Move(1, 20, "ema", "validation"),),
    )
    assert cpu_estimate(trace).num_bytes == 20
