"""Target assignment in pieces: the same targets, bit for bit, with memory that does not grow with the boxes.

Written against ultralytics 8.4.190, whose assigners hold several (images, boxes, anchors) tensors at once, with as many
rows for every image as the fullest one has boxes: gigabytes for one crowded mosaic. Here a few boxes of one image are
looked at at a time, twice. What the first look leaves behind is small: each box's best anchors, and each anchor's best
overlap so far. Everything that decides (candidates, overlaps, best anchors and their ties) is upstream's own code on
fewer rows. What crosses pieces keeps upstream's rules: the first of equal overlaps wins, and a value that is no number
spreads as it does there. Remove when upstream's own assignment is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from ultralytics.utils.ops import crop_mask
from ultralytics.utils.tal import (
    PoseTaskAlignedAssigner,
    RotatedTaskAlignedAssigner,
    SegTaskAlignedAssigner,
    TaskAlignedAssigner,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """`piece_bytes`: what one piece may hold. `whole_bytes`: a batch of no more is left to upstream's own method."""

    piece_bytes: int
    whole_bytes: int


# A processor works fastest on what stays in its cache; an accelerator on few and large pieces.
LIMITS = {"cpu": Limits(8 << 20, 32 << 20)}
ACCELERATOR_LIMITS = Limits(32 << 20, 512 << 20)

_PAIR_BYTES = 24  # held for a box and an anchor, at the worst moment
_CANDIDATE_BYTES = 256  # held for an anchor inside a box, at the worst moment; more where there are keypoints
_POINT_BYTES = 64
_PIXEL_BYTES = 9  # held for a pixel of a mask that is compared
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
        held: int = self.bs * self.n_max_boxes * num_anchors * _PAIR_BYTES
        return held

    @property
    def _parts(self) -> type[_Batch]:
        return _Batch


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
    def _parts(self) -> type[_Batch]:
        return _MaskBatch


_BOUNDED = {
    TaskAlignedAssigner: BoundedAssigner,
    RotatedTaskAlignedAssigner: BoundedRotatedAssigner,
    PoseTaskAlignedAssigner: BoundedPoseAssigner,
    SegTaskAlignedAssigner: BoundedMaskAssigner,
}


@dataclass(frozen=True, slots=True)
class _Piece:
    """Boxes of one image that are looked at together, and where their candidates stand in the whole batch's list."""

    image: int
    boxes: slice
    first_candidate: int
    num_candidates: int  # of the batch


@dataclass(frozen=True, slots=True)
class _Columns:
    """One image's anchors: whether each is matched, its box (0 without one), and the factor of its target score."""

    is_matched: Tensor
    box: Tensor
    score: Tensor


@dataclass(slots=True)
class _Best:
    """By anchor, over the boxes seen so far: the highest overlap, the first box that has it, and how often chosen."""

    overlap: Tensor
    box: Tensor
    num_chosen: Tensor

    def see(self, overlaps: Tensor, chosen: Tensor, first_box: int) -> None:
        overlap, box = overlaps.max(0)
        is_better = (overlap > self.overlap) | (overlap.isnan() & ~self.overlap.isnan())
        self.overlap = torch.where(is_better, overlap, self.overlap)
        self.box = torch.where(is_better, box + first_box, self.box)
        self.num_chosen += chosen.sum(0)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What upstream's `_forward` is given, and `assigner`, whose rules hold. `is_box`: (images, boxes, 1), boolean."""

    assigner: Any
    piece_bytes: int
    pd_scores: Tensor
    pd_bboxes: Tensor
    anc_points: Tensor
    gt_labels: Tensor
    gt_bboxes: Tensor
    is_box: Tensor
    extra: dict[str, Tensor]

    def pieces(self) -> list[list[_Piece]]:
        """By image, pieces of `piece_bytes` at most, or of one box. Rows behind an image's last box are left out."""
        num_anchors, device = len(self.anc_points), self.is_box.device
        ranks = torch.arange(1, self.is_box.shape[1] + 1, device=device)
        num_rows = (self.is_box.squeeze(-1) * ranks).amax(1).tolist()
        step = max(1, self.piece_bytes // (_PAIR_BYTES * num_anchors))
        counted = [
            self._candidates(image, slice(start, min(start + step, stop))).sum(-1)
            for image, stop in enumerate(num_rows)
            for start in range(0, stop, step)
        ]
        counts = torch.cat(counted).tolist() if counted else []
        before = [0, *accumulate(counts)]
        bytes_each = _CANDIDATE_BYTES + _POINT_BYTES * (
            self.extra["gt_kpts"].shape[2] if "gt_kpts" in self.extra else 0
        )
        pieces, row = [], 0
        for image, num in enumerate(num_rows):
            sizes = [_PAIR_BYTES * num_anchors + bytes_each * count for count in counts[row : row + num]]
            pieces.append([_Piece(image, s, before[row + s.start], before[-1]) for s in _cut(sizes, self.piece_bytes)])
            row += num
        return pieces

    def assign(self, pieces: list[_Piece]) -> _Columns:
        """One image's anchors."""
        num_anchors, device = len(self.anc_points), self.anc_points.device
        zeros = torch.zeros(num_anchors, dtype=torch.int64, device=device)
        best = _Best(torch.zeros(num_anchors, dtype=self.pd_bboxes.dtype, device=device), zeros, zeros.clone())
        chosen_in = []
        for piece in pieces:
            candidates, align_metric, overlaps = self._metrics(piece)
            chosen = self._chosen(piece, candidates, align_metric)
            best.see(overlaps, chosen, piece.boxes.start)
            chosen_in.append(chosen.nonzero(as_tuple=True))

        is_matched, box = torch.zeros_like(zeros, dtype=torch.bool), zeros
        score = torch.zeros(
            num_anchors, dtype=torch.promote_types(self.pd_scores.dtype, self.pd_bboxes.dtype), device=device
        )
        for piece, chosen_at in zip(pieces, chosen_in, strict=True):
            _, align_metric, overlaps = self._metrics(piece)
            matched = self._matched(piece, chosen_at, best, align_metric)
            is_new, row = matched.max(0)
            box = torch.where(is_new.bool() & ~is_matched, row + piece.boxes.start, box)
            is_matched |= is_new.bool()
            score = torch.maximum(score, self._score(matched, align_metric, overlaps))
        return _Columns(is_matched, box, score)

    def _candidates(self, image: int, boxes: slice) -> Tensor:
        """Which anchors may be matched with which of an image's boxes: (boxes, anchors)."""
        gt_bboxes, is_box = self.gt_bboxes[image : image + 1, boxes], self.is_box[image : image + 1, boxes]
        return (self.assigner.select_candidates_in_gts(self.anc_points, gt_bboxes, is_box) & is_box)[0]

    def _metrics(self, piece: _Piece) -> tuple[Tensor, Tensor, Tensor]:
        """As upstream's `get_box_metrics`: candidates, alignment metric and overlaps, each (boxes, anchors)."""
        candidates = self._candidates(piece.image, piece.boxes)
        row, anchor = candidates.nonzero(as_tuple=True)
        image, box = torch.full_like(row, piece.image), row + piece.boxes.start
        score = self.pd_scores[image, anchor, self.gt_labels[image, box, 0].long()]
        overlap = self._overlap(piece, candidates, (image, box, anchor), score)
        align = self._align(piece, score, overlap)
        align_metric, overlaps = align.new_zeros(candidates.shape), overlap.new_zeros(candidates.shape)
        align_metric[row, anchor], overlaps[row, anchor] = align, overlap
        return candidates, align_metric, overlaps

    def _overlap(self, piece: _Piece, candidates: Tensor, pairs: tuple[Tensor, ...], score: Tensor) -> Tensor:
        """Of each candidate (image, box, anchor) in `pairs`."""
        overlap: Tensor = self.assigner.pair_overlaps(pairs, self.gt_bboxes, self.pd_bboxes, **self.extra)
        return overlap

    def _align(self, piece: _Piece, score: Tensor, overlap: Tensor) -> Tensor:
        return _power(score, self.assigner.alpha, piece) * _power(overlap, self.assigner.beta, piece)

    def _chosen(self, piece: _Piece, candidates: Tensor, align_metric: Tensor) -> Tensor:
        """The best anchors of each box, as upstream's `get_pos_mask`."""
        is_box = self.is_box[piece.image, piece.boxes]
        topk_mask = is_box.expand(-1, self.assigner.topk)
        return self.assigner.select_topk_candidates(align_metric, topk_mask=topk_mask).mul_(candidates)

    def _matched(self, piece: _Piece, chosen_at: tuple[Tensor, ...], best: _Best, align_metric: Tensor) -> Tensor:
        """The matches that stand, as upstream's `select_highest_overlaps`: an anchor goes to one box only."""
        assigner = self.assigner
        matched = torch.zeros(align_metric.shape, dtype=torch.int8, device=align_metric.device)
        matched[chosen_at] = 1
        boxes = torch.arange(piece.boxes.start, piece.boxes.stop, device=matched.device)
        matched = torch.where(best.num_chosen > 1, (best.box == boxes[:, None]).to(matched.dtype), matched)
        if assigner.topk2 != assigner.topk:
            kept_at = torch.topk(align_metric * matched, assigner.topk2, dim=-1).indices
            matched *= torch.zeros_like(matched).scatter_(-1, kept_at, 1)
        return matched

    def _score(self, matched: Tensor, align_metric: Tensor, overlaps: Tensor) -> Tensor:
        """By anchor, what upstream's `_forward` multiplies target scores by. Overwrites the metrics."""
        align_metric *= matched
        most_aligned = align_metric.amax(-1, keepdim=True)
        overlaps *= matched
        most_overlap = overlaps.amax(-1, keepdim=True)
        return align_metric.mul_(most_overlap).div_(most_aligned + self.assigner.eps).amax(0)


@dataclass(frozen=True, slots=True)
class _MaskBatch(_Batch):
    """A batch whose overlaps are the means of boxes' and masks'.

    Masks are compared of each box's best anchors only, pair by pair where upstream compares all with all: `compared`
    keeps row, anchor and overlap of those, by image and first box of a piece.
    """

    compared: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def _overlap(self, piece: _Piece, candidates: Tensor, pairs: tuple[Tensor, ...], score: Tensor) -> Tensor:
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

    def _compare(self, piece: _Piece, candidates: Tensor, metric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def _cut(sizes: Iterable[int], limit: int) -> Iterator[slice]:
    """Consecutive slices of `sizes` whose sums are at most `limit`, or that hold one item."""
    start = stop = total = 0
    for size in sizes:
        if stop > start and total + size > limit:
            yield slice(start, stop)
            start, total = stop, 0
        stop, total = stop + 1, total + size
    if stop > start:
        yield slice(start, stop)


# On a processor torch deals a list that is not short out to threads, and computes powers of each thread's share in
# vectors but of its last few elements one by one, with a routine that rounds differently. Where an element stands in
# the batch's whole list therefore decides its last bit.
_DEALT_FROM = 32768
_VECTORS = 128  # elements; a multiple of what any processor takes at once


def _power(values: Tensor, exponent: float, piece: _Piece) -> Tensor:
    """`values.pow(exponent)`, each bit as if `values` were the piece's part of the whole batch's list of candidates."""
    if values.device.type != "cpu" or len(values) == 0:
        return values.pow(exponent)
    total, first = piece.num_candidates, piece.first_candidate
    num_threads = min(torch.get_num_threads(), -(-total // _DEALT_FROM))
    share = -(-total // num_threads)
    powers, start, stop = [], first, first + len(values)
    while start < stop:
        share_start = start // share * share
        share_stop = min(share_start + share, total)
        lead = (start - share_start) % _VECTORS
        until = min(stop, share_stop, start - lead + _DEALT_FROM // 2)
        tail = min(-(until - share_start) % _VECTORS, share_stop - until)
        in_place = pad(values[start - first : until - first], (lead, tail), value=1.0)
        powers.append(in_place.pow(exponent)[lead : lead + until - start])
        start = until
    return torch.cat(powers)
