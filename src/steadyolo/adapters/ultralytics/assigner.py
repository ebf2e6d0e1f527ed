"""Target assignment in pieces: the same targets, bit for bit, with memory that does not grow with the boxes.

Written against ultralytics 8.4.190, whose assigners hold several (images, boxes, anchors) tensors at once, with as many
rows for every image as the fullest one has boxes: gigabytes for one crowded mosaic. Here a few boxes of one image are
looked at at a time, twice. What the first look leaves behind is small: each box's best anchors, and each anchor's best
overlap so far. Everything that decides (candidates, overlaps, best anchors and their ties) is upstream's own code on
fewer rows. What crosses pieces keeps upstream's rules: the first of equal overlaps wins, and a value that is no number
spreads as it does there. Remove when upstream's own assignment is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.tal import (
    PoseTaskAlignedAssigner,
    RotatedTaskAlignedAssigner,
    SegTaskAlignedAssigner,
    TaskAlignedAssigner,
)

from steadyolo.adapters.ultralytics.assignment import PAIR_BYTES, Batch
from steadyolo.adapters.ultralytics.mask_assignment import MaskBatch


@dataclass(frozen=True, slots=True)
class Limits:
    """`piece_bytes`: what one piece may hold. `whole_bytes`: a batch of no more is left to upstream's own method."""

    piece_bytes: int
    whole_bytes: int


# A processor works fastest on what stays in its cache; an accelerator on few and large pieces.
LIMITS = {"cpu": Limits(8 << 20, 32 << 20)}
ACCELERATOR_LIMITS = Limits(32 << 20, 512 << 20)

_PLAIN_PIXEL_BYTES = 13  # by upstream, which compares so many pixels at once:
_PLAIN_PIXELS = 1 << 27

_NESTED = ("one2many", "one2one", "vp_criterion")  # where a criterion keeps others


def bound_assigners(criterion: Any) -> None:
    """Have all assigners of Ultralytics' own kinds in `criterion` work in pieces. Hooks and settings stay."""
    bounded = _BOUNDED.get(type(getattr(criterion, "assigner", None)))
    if bounded is not None:
        criterion.assigner.__class__ = bounded
    for name in _NESTED:
        if hasattr(criterion, name):
            bound_assigners(getattr(criterion, name))


class BoundedAssigner(TaskAlignedAssigner):
    """Overrides the one method that holds (images, boxes, anchors) tensors.

    `most_pieces` limits the pieces of an image, for who wants to know what memory it takes and not the targets: the
    later pieces find what the first ones found.
    """

    most_pieces: int | None = None
    limits: Limits | None = None  # None: as it is best on the device at hand

    def _forward(
        self,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
        **extra: Tensor,
    ) -> tuple[Tensor, ...]:
        limits = self.limits or LIMITS.get(anc_points.device.type, ACCELERATOR_LIMITS)
        if self._plain_bytes(len(anc_points), extra) <= limits.whole_bytes:
            return super()._forward(pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt, **extra)
        given = (pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt.bool(), extra)
        batch = self._parts(self, limits.piece_bytes, *given)
        columns = [batch.assign(pieces[: self.most_pieces]) for pieces in batch.pieces()]
        fg_mask = torch.stack([each.is_matched for each in columns])
        target_gt_idx = torch.stack([each.box for each in columns])
        labels, boxes, scores = self.get_targets(gt_labels, gt_bboxes, target_gt_idx, fg_mask)
        factors = torch.stack([each.score for each in columns])
        scores = scores.to(factors.dtype).mul_(factors.unsqueeze(-1))  # in one step, torch makes a second copy
        return labels, boxes, scores, fg_mask, target_gt_idx

    def _plain_bytes(self, num_anchors: int, extra: dict[str, Tensor]) -> int:
        """About what upstream's own method holds."""
        held: int = self.bs * self.n_max_boxes * num_anchors * PAIR_BYTES
        return held

    @property
    def _parts(self) -> type[Batch]:
        return Batch


class BoundedRotatedAssigner(BoundedAssigner, RotatedTaskAlignedAssigner):
    """Rotated boxes."""


class BoundedPoseAssigner(BoundedAssigner, PoseTaskAlignedAssigner):
    """Boxes with keypoints."""


class BoundedMaskAssigner(BoundedAssigner, SegTaskAlignedAssigner):
    """Boxes with masks."""

    def _plain_bytes(self, num_anchors: int, extra: dict[str, Tensor]) -> int:
        num_masks = self.bs * min(num_anchors, self.n_max_boxes * 3 * self.topk)
        num_pixels = min(num_masks * prod(extra["proto"].shape[-2:]), _PLAIN_PIXELS)
        return super()._plain_bytes(num_anchors, extra) + num_pixels * _PLAIN_PIXEL_BYTES

    @property
    def _parts(self) -> type[Batch]:
        return MaskBatch


_BOUNDED = {
    TaskAlignedAssigner: BoundedAssigner,
    RotatedTaskAlignedAssigner: BoundedRotatedAssigner,
    PoseTaskAlignedAssigner: BoundedPoseAssigner,
    SegTaskAlignedAssigner: BoundedMaskAssigner,
}
