"""Target assignment of one batch where masks are compared beside boxes, as YOLO26's segmentation does.

Written against ultralytics 8.4.190, which compares the masks of all boxes with those of all their anchors, up to 134
million pixels at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor
from ultralytics.utils.ops import crop_mask
from ultralytics.utils.tal import TaskAlignedAssigner

from steadyolo.adapters.ultralytics.assignment import Batch, Piece

_PIXEL_BYTES = 9  # held for a pixel of a mask that is compared


@dataclass(frozen=True, slots=True)
class MaskBatch(Batch):
    """A batch whose overlaps are the means of boxes' and masks'.

    Masks are compared of each box's best anchors only, pair by pair where upstream compares all with all: `compared`
    keeps row, anchor and overlap of those, by image and first box of a piece.
    """

    compared: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def _overlap(self, piece: Piece, candidates: Tensor, pairs: tuple[Tensor, ...], score: Tensor) -> Tensor:
        overlap = TaskAlignedAssigner.pair_overlaps(self.assigner, pairs, self.gt_bboxes, self.pd_bboxes)
        row, anchor = pairs[1] - piece.boxes.start, pairs[2]
        dense = overlap.new_zeros(candidates.shape)
        key = piece.image, piece.boxes.start
        if key not in self.compared:
            dense[row, anchor] = self._align(piece, score, overlap) + self.assigner.eps
            self.compared[key] = self._compare(piece, candidates, dense)
            dense.zero_()
        of_row, of_anchor, mask_overlap = self.compared[key]
        dense[of_row, of_anchor] = mask_overlap
        mean: Tensor = (overlap + dense[row, anchor]) / 2
        return mean

    def _compare(self, piece: Piece, candidates: Tensor, metric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and anchors whose masks are compared, and how much these overlap."""
        best = metric.topk(min(3 * self.assigner.topk, metric.shape[-1]), dim=-1).indices
        places = torch.arange(best.shape[-1], device=best.device)
        row, place = (places < candidates.sum(-1, keepdim=True)).nonzero(as_tuple=True)  # candidates come first
        anchor = best[row, place]
        num_pixels = prod(self.extra["proto"].shape[-2:])
        step = max(2, self.piece_bytes // (_PIXEL_BYTES * num_pixels))
        overlap = metric.new_zeros(len(row))
        for start in range(0, len(row), step)[: self.assigner.most_pieces]:
            some = slice(start, start + step)
            overlap[some] = self._mask_overlap(piece.image, row[some] + piece.boxes.start, anchor[some])
        return row, anchor, overlap

    def _mask_overlap(self, image: int, box: Tensor, anchor: Tensor) -> Tensor:
        """As upstream's `pair_overlaps`. Areas are sums of ones, so that nothing is rounded but a mask's values."""
        several = anchor if len(anchor) > 1 else anchor.repeat(2)  # the product of one row would be rounded otherwise
        proto = self.extra["proto"][image]
        mask = (self.extra["pd_coef"][image, several] @ proto.flatten(1))[: len(anchor)].gt_(0)
        boxes = self.pd_bboxes[image, anchor] * self.extra["mask_scale"][image]
        mask = crop_mask(mask.view(-1, *proto.shape[-2:]), boxes).flatten(1)
        true = self.extra["gt_masks"][image, box].flatten(1).to(mask.dtype)
        areas = mask.sum(-1, dtype=torch.float) + true.sum(-1, dtype=torch.float)
        shared = mask.mul_(true).sum(-1, dtype=torch.float)
        return shared / (areas - shared).clamp(min=1)
