"""The choice is a pure function of an estimate, which is affine in images and layers here: nearly as memory is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyolo.plan.choosing import (
    RESERVE_SHARE,
    Asked,
    Choice,
    TooLarge,
    choose,
    largest_batch,
    part_sizes,
)
from steadyolo.plan.fit import Fit
from steadyolo.plan.memory import MemoryEstimate, Peak, Workload
from steadyolo.plan.proposals import Alternatives, propose, refusal
from steadyolo.plan.room import Room

MIB = 2**20
LAYERS = 20
HELD = 1000  # MiB of weights and what goes with them
WHOLE = Workload(
    model="yolov5xu.yaml",
    task="detect",
    imgsz=1280,
    fit=Fit(num_images=32),
    compute="fp16",
    device="cuda",
    optimizer="SGD",
    most_boxes=100,
    val_batch=64,
    val_boxes=50,
)


class Affine:
    """An estimate that counts how often it is asked."""

    def __init__(self, *, image: int = 1000, kept_share: float = 0.4, val_image: int = 50, bend: float = 0.0) -> None:
        self.asked: list[Workload] = []
        self._image, self._kept_share, self._val_image, self._bend = image, kept_share, val_image, bend

    def __call__(self, workload: Workload) -> MemoryEstimate:
        self.asked.append(workload)
        side = (workload.imgsz / 1280) ** 2
        wide = {"yolov5xu.yaml": 1.0, "yolov5lu.yaml": 0.6, "yolov5mu.yaml": 0.3}[workload.model]
        arithmetic = {"fp32": 2.0, "fp16": 1.0, "bf16": 1.0}[workload.compute]
        layers = workload.fit.num_recomputed / LAYERS
        kept = 1 - (1 - self._kept_share) * layers ** (1 + self._bend)
        images = workload.fit.num_images * self._image * side * arithmetic * wide * kept
        held = round(HELD * wide) * MIB
        return MemoryEstimate(
            training=Peak(
                by_kind={"weights": held, "activations": round(images * MIB), "loss": workload.most_boxes * MIB},
                moment="backward",
            ),
            validation=Peak(
                by_kind={
                    "weights": held,
                    "activations": round(workload.val_batch * self._val_image * side * wide * MIB),
                },
                moment="forward",
            ),
        )


def asked(budget_mib: int, **changes: object) -> Asked:
    values = {
        "workload": WHOLE,
        "budget_bytes": int(budget_mib * MIB / (1 - RESERVE_SHARE)) + 1,
        "computes": ("fp16",),
        "num_layers": LAYERS,
    }
    return Asked(**{**values, **changes})  # type: ignore[arg-type]


def chosen(request: Asked, estimate: Callable[[Workload], MemoryEstimate]) -> Choice:
    choice = choose(request, estimate)
    assert isinstance(choice, Choice), choice
    return choice


def test_nothing_is_given_up_where_all_fits() -> None:
    estimate = Affine()
    choice = chosen(asked(40_000), estimate)
    assert choice.workload == WHOLE
    assert len(estimate.asked) == 1
    assert choice.reasons == ("the whole batch of 32 goes through in one pass",)


@pytest.mark.parametrize(
    ("budget_mib", "fit"),
    [
        (33_100, Fit(num_images=32)),
        (33_099, Fit(num_images=16)),
        (12_100, Fit(num_images=11)),
        (5_100, Fit(num_images=4)),
        (5_099, Fit(num_images=4, num_recomputed=1)),
        (3_500, Fit(num_images=4, num_recomputed=14)),
        (2_700, Fit(num_images=4, num_recomputed=20)),
        (2_699, Fit(num_images=3, num_recomputed=20)),
        (1_500, Fit(num_images=1, num_recomputed=20)),
    ],
)
def test_as_little_is_given_up_as_has_to_be(budget_mib: int, fit: Fit) -> None:
    choice = chosen(asked(budget_mib, workload=replace(WHOLE, val_batch=1)), Affine())
    assert choice.workload.fit == fit
    assert choice.workload.accumulates == (fit.num_images < 32)


def test_what_is_kept_is_what_was_asked() -> None:
    choice = chosen(asked(3_000), Affine())
    kept = replace(WHOLE, fit=choice.workload.fit, accumulates=True, val_batch=choice.workload.val_batch)
    assert choice.workload == kept


def test_a_pinned_micro_batch_is_kept_and_layers_make_up_for_it() -> None:
    choice = chosen(asked(8_000, num_pinned_images=8), Affine())
    assert choice.workload.fit == Fit(num_images=8, num_recomputed=5)
    assert "micro-batch 8 of 32: as asked" in choice.reasons


@pytest.mark.parametrize(("layers", "images"), [(0, 4), (20, 11), (999, 11)])
def test_pinned_layers_are_kept_and_images_make_up_for_it(layers: int, images: int) -> None:
    choice = chosen(asked(6_000, num_pinned_layers=layers), Affine())
    assert choice.workload.fit == Fit(num_images=images, num_recomputed=min(layers, LAYERS))


@pytest.mark.parametrize(("budget_mib", "compute"), [(1_900, "fp32"), (1_899, "bf16")])
def test_other_arithmetic_comes_last(budget_mib: int, compute: str) -> None:
    choice = chosen(asked(budget_mib, computes=("fp32", "bf16")), Affine(val_image=0))
    assert choice.workload.fit == Fit(num_images=1, num_recomputed=20)
    assert choice.workload.compute == compute
    assert any("bf16 instead of fp32" in reason for reason in choice.reasons) == (compute == "bf16")


def test_validation_takes_fewer_images_where_it_has_to() -> None:
    choice = chosen(asked(3_000), Affine())
    assert choice.workload.val_batch == 32
    assert any("validation takes 32 images at once instead of 64" in reason for reason in choice.reasons)


def test_validation_that_does_not_fit_is_too_large() -> None:
    found = choose(asked(3_000), Affine(val_image=4_000))
    assert isinstance(found, TooLarge)
    assert "validation of a single image needs 4.9 GiB" in found.why


@settings(max_examples=300)
@given(
    image=st.integers(1, 3_000),
    share=st.floats(0.05, 0.95),
    bend=st.floats(-0.5, 2.0),
    budget=st.integers(1_200, 60_000),
    whole=st.integers(1, 200),
)
def test_a_choice_fits_was_estimated_itself_and_a_smaller_sacrifice_does_not_fit(
    image: int, share: float, bend: float, budget: int, whole: int
) -> None:
    estimate = Affine(image=image, kept_share=share, val_image=0, bend=bend)
    request = asked(budget, workload=replace(WHOLE, fit=Fit(num_images=whole)))
    choice = choose(request, estimate)
    if isinstance(choice, TooLarge):
        assert choice.closest.fit == Fit(num_images=1, num_recomputed=LAYERS)
        assert choice.estimate.num_bytes > request.usable_bytes
        return
    assert choice.workload in estimate.asked
    assert choice.estimate == estimate(choice.workload)
    assert choice.estimate.num_bytes <= request.usable_bytes
    fit = choice.workload.fit
    if fit.num_recomputed and fit.num_images >= 4:
        less = Fit(num_images=fit.num_images, num_recomputed=fit.num_recomputed - 1)
    else:
        larger = [size for size in part_sizes(whole) if size > fit.num_images]
        less = replace(fit, num_images=larger[-1]) if larger else fit
    if less != fit:
        assert estimate(replace(choice.workload, fit=less)).training.num_bytes > request.usable_bytes


def test_few_estimates_suffice_for_the_largest_part() -> None:
    estimate = Affine(val_image=0)
    chosen(asked(9_300, workload=replace(WHOLE, fit=Fit(num_images=512))), estimate)
    assert len(set(estimate.asked)) == len(estimate.asked) <= 6


def test_a_bend_far_away_does_not_make_parts_smaller() -> None:
    """An allocator's rounding makes a whole batch dearer than its images are in parts."""

    class Bent(Affine):
        def __call__(self, workload: Workload) -> MemoryEstimate:
            found = super().__call__(workload)
            extra = 50_000 * MIB if workload.fit.num_images > 16 else 0
            by_kind = {**found.training.by_kind, "overhead": extra}
            return replace(found, training=replace(found.training, by_kind=by_kind))

    choice = chosen(asked(9_300, workload=replace(WHOLE, val_batch=1)), Bent())
    assert choice.workload.fit == Fit(num_images=8)


def batch_of(num_images: int) -> Workload:
    return replace(WHOLE, fit=Fit(num_images=num_images), val_batch=2 * num_images)


@pytest.mark.parametrize(("budget_mib", "num_images"), [(9_100, 8), (2_100, 1), (900_000, 500)])
def test_the_largest_batch(budget_mib: int, num_images: int) -> None:
    found = largest_batch(asked(budget_mib), batch_of, Affine(val_image=0), num_most=500)
    assert isinstance(found, Choice)
    assert found.workload.fit == Fit(num_images=num_images)
    assert found.reasons[0].startswith(f"batch {num_images} is the largest")


def test_no_batch_is_small_enough() -> None:
    found = largest_batch(asked(1_500), batch_of, Affine(), num_most=500)
    assert isinstance(found, TooLarge)
    assert found.closest.fit == Fit(num_images=1)


# --- when nothing fits ---

OTHERS = Alternatives(
    sizes_px=tuple(range(1248, 31, -32)), models=("yolov5lu.yaml", "yolov5mu.yaml"), num_boxes_unmixed=25
)
ROOM = Room(num_bytes=1, told="as asked", is_given=True)


def too_large(request: Asked, estimate: Affine) -> TooLarge:
    found = choose(request, estimate)
    assert isinstance(found, TooLarge)
    return found


def test_what_would_fit_is_proposed_with_its_peak_and_not_taken() -> None:
    request, estimate = asked(1_450), Affine()
    found = too_large(request, estimate)
    proposals = list(propose(found, request, OTHERS, estimate))
    assert [one.change for one in proposals] == ["mosaic=0 mixup=0 cutmix=0", "imgsz=1184", "model=yolov5lu.yaml"]
    for one in proposals:
        assert one.num_bytes == estimate(one.workload).num_bytes <= request.usable_bytes
    error = refusal(found, proposals, ROOM)
    assert "imgsz=1184" in error.message
    assert "memory.budget=1.6GiB" in error.remedy


def test_a_proposal_that_would_not_fit_either_is_not_made() -> None:
    request, estimate = asked(1_050), Affine()
    proposals = list(propose(too_large(request, estimate), request, OTHERS, estimate))
    assert [one.change for one in proposals] == ["model=yolov5lu.yaml"]


def test_the_budget_that_a_refusal_names_is_enough() -> None:
    request, estimate = asked(1_050, workload=replace(WHOLE, val_batch=1)), Affine()
    error = refusal(too_large(request, estimate), [], ROOM)
    named = float(error.remedy.partition("memory.budget=")[2].partition("GiB")[0])
    assert isinstance(choose(replace(request, budget_bytes=int(named * 2**30)), estimate), Choice)


def test_a_budget_below_the_weights_is_told_as_such_and_costs_few_estimates() -> None:
    request, estimate = asked(600), Affine()
    found = too_large(request, estimate)
    assert "take 1000.0 MiB already" in found.why
    proposals = list(propose(found, request, OTHERS, estimate))
    assert [one.change for one in proposals] == ["model=yolov5mu.yaml"], "smaller images would not help"
    assert len(estimate.asked) <= 5
