"""The mask loss with less kept for the backward pass: the same loss and gradients, bit for bit.

Written against ultralytics 8.4.190, whose mask loss keeps two fp32 pictures for each matched anchor of the batch until
the backward pass: 16 images with 300 matches each at 640 pixels make 1 GB. Here one byte a pixel is kept, and an
image's pictures are made again when their turn comes. Remove when upstream keeps as little.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint
from ultralytics.utils.loss import E2ELoss, v8SegmentationLoss


def bound_mask_losses(criterion: Any) -> None:
    """Have the mask losses in `criterion` keep little."""
    for head in (criterion.one2many, criterion.one2one) if isinstance(criterion, E2ELoss) else (criterion,):
        if isinstance(head, v8SegmentationLoss):
            head.single_mask_loss = partial(_made_again, is_binary=bool(head.overlap))


def _made_again(gt_mask: Tensor, *others: Tensor, is_binary: bool) -> Tensor:
    """Upstream's `single_mask_loss`. `is_binary`: true masks are 0 and 1, so a byte holds what they hold."""
    kept = gt_mask.bool() if is_binary else gt_mask
    return checkpoint(_mask_loss, kept, *others, use_reentrant=False, preserve_rng_state=False)


def _mask_loss(gt_mask: Tensor, pred: Tensor, proto: Tensor, xyxy: Tensor, area: Tensor) -> Tensor:
    return v8SegmentationLoss.single_mask_loss(gt_mask.to(pred.dtype), pred, proto, xyxy, area)
