"""Assignment in pieces gives upstream's targets, bit for bit, and holds little of what upstream holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, SegmentationModel
from ultralytics.utils import DEFAULT_CFG, tal

from steadyolo.adapters.ultralytics import assigner as bounded
from steadyolo.adapters.ultralytics import assignment
from steadyolo.adapters.ultralytics.assigner import bound_assigners
from steadyolo.adapters.ultralytics.criterion import Criterion, assigners_of
from steadyolo.testing.tensor_bytes import peak_bytes

KINDS = [
    tal.TaskAlignedAssigner,
    tal.RotatedTaskAlignedAssigner,
    tal.PoseTaskAlignedAssigner,
    tal.SegTaskAlignedAssigner,
]
TOPKS = [(10, None), (7, 1), (1, None)]  # plain heads; the one-to-one heads of YOLO26 and of YOLOv10
NUM_CLASSES, NUM_POINTS, NUM_FIRST = 3, 5, 3
NUM_PROTOTYPES = 32

USUAL_BYTES = bounded.LIMITS["cpu"].piece_bytes

Call = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """A batch for an assigner. `odd` names what is out of the ordinary in it."""

    kind: type = tal.TaskAlignedAssigner
    num_images: int = 2
    num_boxes: int = 20
    side_px: int = 128
    box_share: float = 0.3
    odd: frozenset[str] = frozenset()
    dtype: torch.dtype = torch.float32
    seed: int = 0
    num_classes: int = NUM_CLASSES
    spare_masks: int = 1  # behind those of the boxes

    def call(self) -> Call:
        draw = torch.Generator().manual_seed(self.seed)

        def rand(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=draw)

        b, n, side = self.num_images, self.num_boxes, self.side_px
        maps = [torch.empty(1, 1, side // s, side // s) for s in (8, 16, 32)]
        points, strides = tal.make_anchors(maps, [8, 16, 32])
        anchors, a = points * strides, len(points)
        scores = rand(b, a, self.num_classes) ** 3
        centres, sizes = anchors + rand(b, a, 2) * 16 - 8, rand(b, a, 2) * side * self.box_share + 2
        gt_centres, gt_sizes = rand(b, n, 2) * side, rand(b, n, 2) ** 2 * side * self.box_share
        if "same boxes" in self.odd:
            gt_centres[:], gt_sizes[:] = gt_centres[:, :1], gt_sizes[:, :1]
        if "nothing overlaps" in self.odd:
            centres = centres + 10 * side
        if "equal scores" in self.odd:
            scores[:] = 0.5
        if "no scores" in self.odd:
            scores[:] = 0.0
        used = torch.randint(0, n + 1, (b,), generator=draw)
        if "all full" in self.odd:
            used[:] = n
        if "all empty" in self.odd:
            used[:] = 0
        is_box = (torch.arange(n) < used[:, None]).float()[..., None]
        if "first box missing" in self.odd:
            is_box[:, :NUM_FIRST] = 0
        if "nan score" in self.odd:
            scores[rand(b, a, self.num_classes) < 0.01] = torch.nan
        if "nan prediction" in self.odd:
            sizes[rand(b, a, 2) < 0.01] = torch.nan
        if "infinite prediction" in self.odd:
            sizes[rand(b, a, 2) < 0.01] = torch.inf
        labels = torch.randint(0, self.num_classes, (b, n, 1), generator=draw) * is_box
        extra: dict[str, torch.Tensor] = {}
        if self.kind is tal.RotatedTaskAlignedAssigner:
            predicted = torch.cat((centres, sizes, rand(b, a, 1) * 3), -1)
            boxes = torch.cat((gt_centres, gt_sizes, rand(b, n, 1) * 3), -1)
        else:
            predicted = torch.cat((centres - sizes / 2, centres + sizes / 2), -1)
            boxes = torch.cat((gt_centres - gt_sizes / 2, gt_centres + gt_sizes / 2), -1).clamp(0, side)
        if self.kind is tal.PoseTaskAlignedAssigner:
            seen = (rand(b, n, NUM_POINTS, 1) > 0.4).float() * (rand(b, n, 1, 1) > 0.2)
            extra["pd_kpts"] = anchors[None, :, None] + rand(b, a, NUM_POINTS, 2) * 20 - 10
            extra["gt_kpts"] = torch.cat((gt_centres[:, :, None] + rand(b, n, NUM_POINTS, 2) * 20 - 10, seen), -1)
            extra["anc_strides"] = strides.view(-1)
        if self.kind is tal.SegTaskAlignedAssigner:
            height, width = side // 4, side // 4
            extra["pd_coef"] = rand(b, NUM_PROTOTYPES, a).permute(0, 2, 1) - 0.5
            extra["proto"] = rand(b, NUM_PROTOTYPES, height, width) - 0.5
            if "masks cancel" in self.odd:  # each of their pixels is what rounding leaves
                half = NUM_PROTOTYPES // 2
                extra["pd_coef"][..., half:] = extra["pd_coef"][..., :half]
                extra["proto"][:, half:] = -extra["proto"][:, :half]
            extra["gt_masks"] = rand(b, n + self.spare_masks, height, width) > 0.5
            extra["mask_scale"] = torch.tensor(0.25).expand(b, 1)
        scores = scores.to(self.dtype)
        if self.dtype is torch.float64:
            predicted, boxes = predicted.double(), boxes.double()
        return (scores, predicted, anchors, labels, boxes * is_box, is_box), extra

    def assigner(self, topk: int, topk2: int | None) -> Any:
        first = (torch.ones(NUM_POINTS) / NUM_POINTS,) if self.kind is tal.PoseTaskAlignedAssigner else ()
        return self.kind(
            *first, topk=topk, topk2=topk2, num_classes=self.num_classes, alpha=0.5, beta=6.0, stride=[8, 16, 32]
        )


class Holder:
    """What a criterion is to `bound_assigners`."""

    def __init__(self, assigner: Any) -> None:
        self.assigner = assigner


def in_pieces(assigner: Any) -> Any:
    bound_assigners(Holder(assigner))
    assert isinstance(assigner, bounded.BoundedAssigner)
    return assigner


def limit(patch: pytest.MonkeyPatch, piece_bytes: int = USUAL_BYTES) -> None:
    """Leave nothing to upstream, and make pieces of that size."""
    patch.setitem(bounded.LIMITS, "cpu", bounded.Limits(piece_bytes, 0))


def copied(call: Call) -> Call:
    return tuple(each.clone() for each in call[0]), {name: each.clone() for name, each in call[1].items()}


def differing(case: Case, topk: int, topk2: int | None) -> list[str]:
    """Outputs of the assigner in pieces that are not upstream's, bit for bit."""
    call = case.call()
    (args, more), (args_again, more_again) = copied(call), copied(call)
    theirs = case.assigner(topk, topk2)(*args, **more)
    ours = in_pieces(case.assigner(topk, topk2))(*args_again, **more_again)
    names = ("labels", "boxes", "scores", "fg_mask", "gt_idx")
    return [name for name, *both in zip(names, theirs, ours, strict=True) if not are_same(*both)]


def are_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and bool(((one == other) | (one.isnan() & other.isnan())).all())


cases = st.builds(
    Case,
    kind=st.sampled_from(KINDS),
    num_images=st.integers(1, 3),
    num_boxes=st.integers(1, 40),
    side_px=st.sampled_from([64, 96, 160]),
    box_share=st.sampled_from([0.02, 0.2, 1.0]),
    odd=st.frozensets(
        st.sampled_from(
            "same boxes|nothing overlaps|equal scores|no scores|all full|all empty|first box missing|nan score|"
            "nan prediction|infinite prediction".split("|")
        ),
        max_size=3,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    seed=st.integers(0, 2**16),
)


@settings(max_examples=200)
@given(
    case=cases,
    topks=st.sampled_from(TOPKS),
    piece_bytes=st.sampled_from([1, 40_000, 400_000, USUAL_BYTES]),
    num_threads=st.sampled_from([1, 2]),
)
def test_targets_are_upstreams(case: Case, topks: tuple[int, int | None], piece_bytes: int, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    with pytest.MonkeyPatch.context() as patch:
        limit(patch, piece_bytes)
        assert differing(case, *topks) == []


CROWDED = Case(num_images=3, num_boxes=220, side_px=256, box_share=0.8, odd=frozenset({"all full"}))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_lists_that_threads_share(kind: type, num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch)
    torch.set_num_threads(num_threads)
    case = replace(CROWDED, kind=kind)
    sizes: list[int] = []
    power = assignment._power

    def watched(values: torch.Tensor, exponent: float, piece: Any) -> torch.Tensor:
        sizes.append(piece.num_candidates)
        return power(values, exponent, piece)

    monkeypatch.setattr(assignment, "_power", watched)
    assert differing(case, 10, None) == []
    assert max(sizes) > assignment._DEALT_FROM, "nothing was shared out"


def test_a_powers_place_in_the_list_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing powers piece by piece, wherever the pieces begin and end, differs in a last bit somewhere."""
    limit(monkeypatch, 400_000)
    monkeypatch.setattr(assignment, "_power", lambda values, exponent, _: values.pow(exponent))
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor computes no powers in vectors")
    assert any(differing(replace(CROWDED, seed=seed), 10, None) for seed in range(5))


def test_the_first_of_equal_overlaps_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anchors that overlap nothing go to the first box of all, anchors in equal boxes to the first of these."""
    limit(monkeypatch, 1)
    case = Case(num_boxes=6, odd=frozenset({"same boxes", "all full"}), box_share=1.0)
    assert differing(case, 10, None) == []
    see = assignment._Best.see

    def see_last(best: Any, overlaps: torch.Tensor, chosen: torch.Tensor, first_box: int) -> None:
        best.overlap = best.overlap.nextafter(torch.tensor(-1.0))
        see(best, overlaps, chosen, first_box)

    monkeypatch.setattr(assignment._Best, "see", see_last)
    assert differing(case, 10, None)


def test_masks_are_rounded_as_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a pixel is what rounding leaves, it is still the same; the product of one row would round otherwise."""
    limit(monkeypatch, 400_000)
    case = Case(tal.SegTaskAlignedAssigner, num_boxes=12, box_share=0.8, odd=frozenset({"masks cancel", "all full"}))
    assert differing(case, 10, None) == []
    limit(monkeypatch, 1)  # one box at a time, and its pairs by twos: some are left alone
    assert differing(case, 10, None) == []
    whole = bounded.MaskBatch._mask_overlap

    def one_by_one(batch: Any, image: int, box: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        alone = torch.Tensor.repeat
        try:
            torch.Tensor.repeat = lambda each, _: each  # type: ignore[assignment,method-assign]
            return torch.cat([whole(batch, image, *pair) for pair in zip(box.split(1), anchor.split(1), strict=True)])
        finally:
            torch.Tensor.repeat = alone  # type: ignore[method-assign]

    monkeypatch.setattr(bounded.MaskBatch, "_mask_overlap", one_by_one)
    assert differing(case, 10, None), "this processor rounds one row as it rounds many"


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box_share", [0.03, 0.5])
def test_5000_boxes_in_an_image_take_a_twentieth(box_share: float) -> None:
    case = Case(num_images=1, num_boxes=5000, side_px=320, box_share=box_share, odd=frozenset({"all full"}))
    call = case.call()
    plain, ours = case.assigner(10, None), in_pieces(case.assigner(10, None))
    theirs_bytes = peak_bytes(lambda: plain(*call[0]))
    ours_bytes = peak_bytes(lambda: ours(*call[0]))
    assert theirs_bytes > 100 << 20, "this is no crowd"
    assert ours_bytes < theirs_bytes / 20
    assert ours_bytes < 16 << 20
    ours.most_pieces = 2
    assert peak_bytes(lambda: ours(*call[0])) == pytest.approx(ours_bytes, rel=0.1), "pieces differ in what they hold"


def test_5000_masks_in_an_image_take_a_twentieth() -> None:
    crowd = Case(num_images=1, num_boxes=5000, side_px=320, box_share=0.05, odd=frozenset({"all full"}))
    case = replace(crowd, kind=tal.SegTaskAlignedAssigner)
    args, extra = case.call()
    plain, ours = case.assigner(10, None), in_pieces(case.assigner(10, None))
    theirs_bytes = peak_bytes(lambda: plain(*args, **extra))
    ours_bytes = peak_bytes(lambda: ours(*args, **extra))
    assert theirs_bytes > 200 << 20, "this is no crowd"
    assert ours_bytes < theirs_bytes / 20
    ours.most_pieces = 2
    assert peak_bytes(lambda: ours(*args, **extra)) == pytest.approx(ours_bytes, rel=0.1), "pieces differ"


def test_one_crowded_image_costs_the_others_nothing() -> None:
    case = Case(num_images=8, num_boxes=1500, side_px=320, box_share=0.03)
    args, _ = case.call()
    is_box = args[5].clone()
    is_box[1:, 10:] = 0
    call = (*args[:4], args[4] * is_box, is_box)
    ours = in_pieces(case.assigner(10, None))
    assert peak_bytes(lambda: ours(*call)) < 16 << 20


# -- where it is used --------------------------------------------------------------------------------------------------


def test_every_assigner_of_upstreams_is_known() -> None:
    """One that is new has to be looked at: it may hold something else that grows with the boxes."""
    kinds = {kind for kind in vars(tal).values() if isinstance(kind, type) and kind.__module__ == tal.__name__}
    assert kinds == set(KINDS)


def test_a_small_batch_is_left_to_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded.Batch, "pieces", None)
    assert differing(Case(), 10, None) == []


@pytest.mark.parametrize(
    ("model", "yaml", "labels"),
    [
        (DetectionModel, "yolov8n.yaml", {}),
        (DetectionModel, "yolo26n.yaml", {}),
        (DetectionModel, "yolov10n.yaml", {}),
        (OBBModel, "yolo26n-obb.yaml", {"bboxes": torch.rand(60, 5) * 0.5 + 0.1}),
        (PoseModel, "yolo26n-pose.yaml", {"keypoints": torch.rand(60, 17, 3)}),
        (SegmentationModel, "yolov8n-seg.yaml", {"masks": torch.randint(0, 20, (3, 40, 40))}),
        (
            SegmentationModel,
            "yolo26n-seg.yaml",
            {"masks": torch.randint(0, 20, (3, 40, 40)), "sem_masks": torch.randint(0, 80, (3, 40, 40))},
        ),
    ],
)
def test_losses_are_upstreams(
    model: type, yaml: str, labels: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = model(yaml, verbose=False).train()
    network.args = DEFAULT_CFG
    images = torch.rand(3, 3, 160, 160)
    batch = {
        "img": images,
        "batch_idx": torch.arange(3.0).repeat_interleave(20),
        "cls": torch.randint(0, 80, (60, 1)).float() % network.yaml["nc"],
        "bboxes": torch.rand(60, 4) * 0.5 + 0.1,
        **labels,
    }
    total, items = network.init_criterion()(network(images), batch)

    limit(monkeypatch)
    criterion = Criterion(network)
    assigners = assigners_of(network.criterion)
    assert all(isinstance(assigner, bounded.BoundedAssigner) for assigner in assigners)
    ours = criterion(network(images), batch)
    assert {name: float(item) for name, item in ours.items.items()} == {n: float(item) for n, item in items.items()}
    assert float(sum(branch.total.detach() for branch in ours.branches.values())) == pytest.approx(
        float(total.detach().sum()), rel=1e-6
    )
    assert len(criterion._sums) == len(assigners), "the hooks that read normalisers are gone"
