"""The mask loss that keeps little is upstream's, gradients included, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ultralytics.nn.tasks import SegmentationModel
from ultralytics.utils import DEFAULT_CFG

from steadyolo.adapters.ultralytics.mask_loss import bound_mask_losses
from steadyolo.testing.tensor_bytes import peak_bytes

NUM_IMAGES, NUM_BOXES, SIDE_PX, MASK_PX = 3, 12, 160, 40


def batch_for(network: Any, overlap: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    total = NUM_IMAGES * NUM_BOXES
    masks = torch.randint(0, NUM_BOXES + 1, (NUM_IMAGES, MASK_PX, MASK_PX), dtype=torch.uint8)
    return {
        "img": torch.rand(NUM_IMAGES, 3, SIDE_PX, SIDE_PX),
        "batch_idx": torch.arange(float(NUM_IMAGES)).repeat_interleave(NUM_BOXES),
        "cls": torch.randint(0, 80, (total, 1)).float(),
        "bboxes": torch.rand(total, 4) * 0.4 + 0.1,
        "masks": masks if overlap else torch.randint(0, 2, (total, MASK_PX, MASK_PX), dtype=torch.uint8),
        "sem_masks": torch.randint(0, 80, (NUM_IMAGES, MASK_PX, MASK_PX)),
    }


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("name", ["yolov8n-seg", "yolo26n-seg"])
def test_loss_and_gradients_are_upstreams(name: str, overlap: bool) -> None:
    torch.manual_seed(0)
    network = SegmentationModel(f"{name}.yaml", verbose=False).train()
    network.args = DEFAULT_CFG
    batch = batch_for(network, overlap)
    found = []
    for is_bounded in (False, True):
        criterion = network.init_criterion()
        for head in (criterion.one2many, criterion.one2one) if hasattr(criterion, "one2one") else (criterion,):
            head.overlap = overlap
        if is_bounded:
            bound_mask_losses(criterion)
        network.zero_grad()
        loss, items = criterion(network(batch["img"]), batch)
        loss.sum().backward()
        found.append((items, [None if p.grad is None else p.grad.clone() for p in network.parameters()]))
    (items, gradients), (our_items, our_gradients) = found
    assert float(items["seg_loss"]) > 0, "no mask was compared"
    assert all(torch.equal(items[key], our_items[key]) for key in items)
    assert all(
        (one is None and other is None) or torch.equal(one, other)
        for one, other in zip(gradients, our_gradients, strict=True)
    )


def test_less_is_kept_until_the_backward_pass() -> None:
    network = SegmentationModel("yolov8n-seg.yaml", verbose=False)
    network.args = DEFAULT_CFG
    plain, ours = network.init_criterion(), network.init_criterion()
    bound_mask_losses(ours)
    num_matched, side_px, num_images = 100, 80, 8
    proto = torch.rand(32, side_px, side_px, requires_grad=True)
    coefficients = torch.rand(num_matched, 32, requires_grad=True)
    box, area = torch.tensor([[5.0, 5, 60, 60]]).repeat(num_matched, 1), torch.full((num_matched,), 0.3)

    def train(criterion: Any) -> None:
        losses = [
            criterion.single_mask_loss(
                (torch.rand(num_matched, side_px, side_px) > 0.5).float(), coefficients, proto, box, area
            )
            for _ in range(num_images)
        ]
        torch.stack(losses).sum().backward()

    picture_bytes = 4 * num_matched * side_px**2
    assert peak_bytes(lambda: train(plain)) > 2 * num_images * picture_bytes
    assert peak_bytes(lambda: train(ours)) < (num_images / 4 + 6) * picture_bytes
