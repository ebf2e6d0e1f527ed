"""A batch that is computed in parts teaches what the whole batch teaches, with every loss that Ultralytics has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from steadyolo.adapters.ultralytics.criterion import Criterion, split_batch
from steadyolo.data.randomness import seed_generators
from steadyolo.state.run_state import Cursor
from steadyolo.train.precision import Precision
from steadyolo.train.step import Stepper
from tests.unit.adapters.ultralytics.set_up import trainer_for

pytestmark = pytest.mark.slow

NUM_IMAGES = 7

# How far the gradient of parts may be from the whole batch's, as a share of its length: what fp32 rounds away.
EXACT = 1e-5
# Its log-likelihood term is a mean over visible keypoints, which nobody counts, and is cut at 0 for each part.
CLOSE = {("pose", "yolo26"): 0.05}
FAMILIES = {
    "detect": ("yolov8", "yolo11", "yolo26"),
    "segment": ("yolov8", "yolo26"),
    "pose": ("yolov8", "yolo26"),
    "obb": ("yolov8", "yolo26"),
    "classify": ("yolov8",),
}
CASES = [pytest.param(task, family, id=f"{task}-{family}") for task in FAMILIES for family in FAMILIES[task]]


class Prepared:
    """A model in fp32 whose BatchNorm layers take their stored statistics, and a batch."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.model: nn.Module = trainer.model.float().train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        seed_generators(1)
        self.batch = trainer.preprocess_batch(trainer.train_loader.batch(Cursor(epoch=0, batch=0)))
        self.criterion = Criterion(self.model)

    def gradient(self, num_images: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        self.model.zero_grad(set_to_none=True)
        overlap = bool(self.trainer.args.overlap_mask)
        stepper = Stepper(
            self.model,
            torch.optim.SGD(self.model.parameters(), lr=0.1),
            criterion=self.criterion,
            split=lambda batch: split_batch(batch, num_images, overlap_masks=overlap),
            precision=Precision("fp32", channels_last=False),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            branch_of=lambda name: "one2one" if ".one2one_" in name else "main",
        )
        outcome = stepper.accumulate(self.batch)
        found = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        return found, outcome.items, outcome.loss


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, boards: Callable[[str], Path], models: Callable[..., Path]
) -> Any:
    """Makes and keeps what `Prepared` is, by task and family."""
    with ExitStack() as stack:
        made: dict[tuple[str, str], Prepared] = {}

        def make(task: str, family: str) -> Prepared:
            if (task, family) not in made:
                folder = tmp_path_factory.mktemp("prepared")
                trainer = stack.enter_context(
                    trainer_for(task, folder, boards, models, family=family, batch=NUM_IMAGES, mosaic=1.0)
                )
                made[task, family] = Prepared(trainer)
            return made[task, family]

        yield make


def length(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors.values()]).norm())


@pytest.mark.parametrize("num_images", [1, 2, 3, 4])
@pytest.mark.parametrize(("task", "family"), CASES)
def test_parts_teach_what_the_whole_teaches(
    task: str, family: str, num_images: int, prepared: Callable[[str, str], Prepared]
) -> None:
    model = prepared(task, family)
    whole, items, loss = model.gradient(NUM_IMAGES)
    parts, items_of_parts, loss_of_parts = model.gradient(num_images)
    assert set(whole) == set(parts)
    assert length(whole) > 0.01, "nothing is learned from this batch"
    error = length({name: parts[name] - whole[name] for name in whole}) / length(whole)
    bound = CLOSE.get((task, family), EXACT)
    assert error < bound
    assert float(loss_of_parts) == pytest.approx(float(loss), rel=bound)
    for name, item in items.items():
        assert float(items_of_parts[name]) == pytest.approx(float(item), rel=2 * bound, abs=1e-5), name


@pytest.mark.parametrize(("task", "family"), [("detect", "yolov8"), ("obb", "yolov8")])
def test_a_common_normaliser_is_needed(task: str, family: str, prepared: Callable[[str, str], Prepared]) -> None:
    """Gradients of parts that are each normalised by themselves do not add up to the whole's."""
    model = prepared(task, family)
    whole, *_ = model.gradient(NUM_IMAGES)
    model.model.zero_grad(set_to_none=True)
    for part in split_batch(model.batch, 2):
        sum(branch.total for branch in model.criterion(model.model(part["img"]), part).branches.values()).backward()  # type: ignore[union-attr]
    added = {name: p.grad for name, p in model.model.named_parameters() if p.grad is not None}
    assert length({name: added[name] - whole[name] for name in whole}) / length(whole) > 0.05


@pytest.mark.parametrize(("task", "family"), CASES)
def test_the_whole_batch_gives_ultralytics_own_loss(
    task: str, family: str, prepared: Callable[[str, str], Prepared]
) -> None:
    model = prepared(task, family)
    whole, items, loss = model.gradient(NUM_IMAGES)
    model.model.zero_grad(set_to_none=True)
    theirs, their_items = model.model.loss(model.batch, model.model(model.batch["img"]))  # type: ignore[operator]
    theirs.sum().backward()
    gradients = {name: p.grad for name, p in model.model.named_parameters() if p.grad is not None}
    assert float(theirs.sum()) == pytest.approx(float(loss), rel=1e-6)
    assert length({name: gradients[name] - whole[name] for name in whole}) <= 1e-6 * length(whole)
    assert {name: pytest.approx(float(item)) for name, item in their_items.items()} == {
        name: float(item) for name, item in items.items()
    }


def test_parts_hold_their_images_own_instances(prepared: Callable[[str, str], Prepared]) -> None:
    batch = prepared("detect", "yolov8").batch
    parts = split_batch(batch, 3)
    sizes = [len(part["img"]) for part in parts]
    assert sum(sizes) == NUM_IMAGES
    assert max(sizes) <= 3
    assert max(sizes) - min(sizes) <= 1, "parts are not even"
    assert torch.equal(torch.cat([part["img"] for part in parts]), batch["img"])
    assert sum(len(part["cls"]) for part in parts) == len(batch["cls"])
    start = 0
    for size, part in zip(sizes, parts, strict=True):
        mine = (batch["batch_idx"] >= start) & (batch["batch_idx"] < start + size)
        assert torch.equal(part["bboxes"], batch["bboxes"][mine])
        assert torch.equal(part["batch_idx"], batch["batch_idx"][mine] - start)
        assert part["im_file"] == batch["im_file"][start : start + size]
        start += size
    assert split_batch(batch, NUM_IMAGES) == [batch]
