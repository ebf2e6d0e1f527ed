"""Of boxes that show the same thing, the best one: suppression as Ultralytics does it, without a look at the clock."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

CLASS_OFFSET_PX = 7680  # ultralytics `max_wh`: moves the classes so far apart that they cannot overlap
MAX_CANDIDATES = 30_000  # ultralytics `max_nms`: the best ones go on
_BLOCK = 256  # boxes compared with each other at once: a quarter of a megabyte a matrix


def suppress(xyxy_N4: Floats, score_N: Floats, *, iou: float, max_det: int) -> Indices:
    """Indices of the boxes that stay, best first: each overlaps no better one that stays by more than `iou`.

    Shapes: (N, 4) and (N,); N may be 0.
    The work is at most N × `max_det` comparisons. Source: torchvision `nms`, in float32 as there.
    """
    order = _best_first(score_N)
    boxes = xyxy_N4[order]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.empty(0, np.intp)
    for start in range(0, len(order), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(order)))
        if len(kept):
            block = block[~(_overlap(boxes, area, kept, block) > iou).any(0)]
        hides = _overlap(boxes, area, block, block) > iou
        is_kept = np.ones(len(block), bool)
        for row in np.flatnonzero(hides.sum(1) > 1):  # each hides itself, where it has an area
            if is_kept[row]:
                is_kept[row + 1 :] &= ~hides[row, row + 1 :]
        kept = np.concatenate((kept, block[is_kept]))
        if len(kept) >= max_det:
            break
    return order[kept[:max_det]]


def suppress_rotated(xywhr_N5: Floats, score_N: Floats, *, iou: float, max_det: int) -> Indices:
    """As `suppress`, for rotated boxes; a box yields to any better one that overlaps it, stay that one or not.

    Shapes: (N, 5), columns centre x, centre y, width, height, radians; and (N,). N may be 0.
    Source: ultralytics `TorchNMS.fast_nms` with `batch_probiou`. Pairs too far apart to overlap so much are passed
    over: the distance term of the Bhattacharyya distance alone is at least 3 d² / (longest side² + longest side²).
    """
    order = _best_first(score_N)
    boxes = xywhr_N5[order].astype(np.float64)
    a, b, c = _covariance(boxes)
    longest2 = np.maximum(boxes[:, 2], boxes[:, 3]) ** 2
    reach = math.inf if iou <= 0 else -math.log(max(1 - (1 - iou) ** 2, 1e-300)) / 3 * 1.01 + 1e-6
    kept: list[int] = []
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        x, y = boxes[:stop, 0], boxes[:stop, 1]
        distance2 = (x[:, None] - x[None, start:]) ** 2 + (y[:, None] - y[None, start:]) ** 2
        is_near = distance2 <= reach * (longest2[:stop, None] + longest2[None, start:stop])
        better, column = np.nonzero(is_near)
        column += start
        better, column = better[better < column], column[better < column]
        is_hidden = np.zeros(stop - start, bool)
        is_hidden[column[_probable_overlap(boxes, a, b, c, better, column) > iou] - start] = True
        kept.extend((np.flatnonzero(~is_hidden) + start).tolist())
        if len(kept) >= max_det:
            break
    return order[np.array(kept[:max_det], np.intp)]


def _best_first(score_N: Floats) -> Indices:
    return np.argsort(-score_N, kind="stable")[:MAX_CANDIDATES]


def _overlap(boxes: Floats, area: Floats, rows: Indices, columns: Indices) -> Floats:
    one, other = boxes[rows, None], boxes[None, columns]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    np.maximum(sides, 0, out=sides)
    shared = sides[..., 0] * sides[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        overlap: Floats = shared / (area[rows, None] + area[None, columns] - shared)
    return overlap


def _covariance(xywhr: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    across, along = xywhr[:, 2] ** 2 / 12, xywhr[:, 3] ** 2 / 12
    cos, sin = np.cos(xywhr[:, 4]), np.sin(xywhr[:, 4])
    return across * cos**2 + along * sin**2, across * sin**2 + along * cos**2, (across - along) * cos * sin


def _probable_overlap(
    boxes: NDArray[Any], a: NDArray[Any], b: NDArray[Any], c: NDArray[Any], i: Indices, j: Indices, eps: float = 1e-7
) -> NDArray[Any]:
    dx, dy = boxes[i, 0] - boxes[j, 0], boxes[i, 1] - boxes[j, 1]
    sum_a, sum_b, sum_c = a[i] + a[j], b[i] + b[j], c[i] + c[j]
    determinant = sum_a * sum_b - sum_c**2
    t1 = (sum_a * dy**2 + sum_b * dx**2) / (determinant + eps) * 0.25
    t2 = sum_c * -dx * dy / (determinant + eps) * 0.5
    own = np.clip(a[i] * b[i] - c[i] ** 2, 0, None) * np.clip(a[j] * b[j] - c[j] ** 2, 0, None)
    t3 = np.log(determinant / (4 * np.sqrt(own) + eps) + eps) * 0.5
    distance = np.clip(t1 + t2 + t3, eps, 100.0)
    overlap: NDArray[Any] = 1 - np.sqrt(1.0 - np.exp(-distance) + eps)
    return overlap
