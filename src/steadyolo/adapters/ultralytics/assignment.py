"""Target assignment of one batch, a few boxes of one image at a time.

Written against ultralytics 8.4.190: what decides is its assigner's own code on fewer rows; the rules by which pieces
are put together are those of its `TaskAlignedAssigner`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

PAIR_BYTES = 24  # held for a box and an anchor, at the worst moment
_CANDIDATE_BYTES = 256  # held for an anchor inside a box, at the worst moment; more where there are keypoints
_POINT_BYTES = 64


@dataclass(frozen=True, slots=True)
class Piece:
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
class Batch:
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

    def pieces(self) -> list[list[Piece]]:
        """By image, pieces of `piece_bytes` at most, or of one box. Rows behind an image's last box are left out."""
        num_anchors, device = len(self.anc_points), self.is_box.device
        ranks = torch.arange(1, self.is_box.shape[1] + 1, device=device)
        num_rows = (self.is_box.squeeze(-1) * ranks).amax(1).tolist()
        step = max(1, self.piece_bytes // (PAIR_BYTES * num_anchors))
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
            sizes = [PAIR_BYTES * num_anchors + bytes_each * count for count in counts[row : row + num]]
            pieces.append([Piece(image, s, before[row + s.start], before[-1]) for s in _cut(sizes, self.piece_bytes)])
            row += num
        return pieces

    def assign(self, pieces: list[Piece]) -> _Columns:
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

    def _metrics(self, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
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

    def _overlap(self, piece: Piece, candidates: Tensor, pairs: tuple[Tensor, ...], score: Tensor) -> Tensor:
        """Of each candidate (image, box, anchor) in `pairs`."""
        overlap: Tensor = self.assigner.pair_overlaps(pairs, self.gt_bboxes, self.pd_bboxes, **self.extra)
        return overlap

    def _align(self, piece: Piece, score: Tensor, overlap: Tensor) -> Tensor:
        return _power(score, self.assigner.alpha, piece) * _power(overlap, self.assigner.beta, piece)

    def _chosen(self, piece: Piece, candidates: Tensor, align_metric: Tensor) -> Tensor:
        """The best anchors of each box, as upstream's `get_pos_mask`."""
        is_box = self.is_box[piece.image, piece.boxes]
        topk_mask = is_box.expand(-1, self.assigner.topk)
        return self.assigner.select_topk_candidates(align_metric, topk_mask=topk_mask).mul_(candidates)

    def _matched(self, piece: Piece, chosen_at: tuple[Tensor, ...], best: _Best, align_metric: Tensor) -> Tensor:
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


def _power(values: Tensor, exponent: float, piece: Piece) -> Tensor:
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
