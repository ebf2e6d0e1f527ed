"""A graph's answer to rows of boxes: what is sure enough, of the classes asked for, and not hidden by a better one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import DetectOptions
from steadyolo.serve.suppression import CLASS_OFFSET_PX, MAX_CANDIDATES, suppress, suppress_rotated

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rows:
    """Boxes of a letterboxed picture, best first.

    Shapes: `boxes` (N, 4), x1 y1 x2 y2, of rotated ones centre x, centre y, width, height; `confidence_class` (N, 2);
    `extra` (N, more): weights of masks, keypoints, or the angle.
    """

    boxes: Floats
    confidence_class: Floats
    extra: Floats

    def picked(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> Rows:
        """Some of the rows."""
        return Rows(self.boxes[index], self.confidence_class[index], self.extra[index])


def rows_of(output: Floats, model: ServedModel, options: DetectOptions) -> Rows:
    """What one picture's output says.

    Shapes: `output` (4 + classes + more, places) or, end to end, (rows, 6 + more).
    Source: ultralytics `non_max_suppression` 8.4.190 with one label a box, without its limit in seconds.
    """
    if model.is_end_to_end:
        return _final_rows(output, options)
    num_classes = len(model.classes)
    scores = output[4 : 4 + num_classes]
    place = np.flatnonzero(scores.max(0) > options.conf)
    found = output[:, place].T  # a row each
    class_index = found[:, 4 : 4 + num_classes].argmax(1)
    confidence = np.take_along_axis(found[:, 4:], class_index[:, None], 1)[:, 0]
    if options.classes is not None:
        is_wanted = np.isin(class_index, options.classes)
        found, class_index, confidence = found[is_wanted], class_index[is_wanted], confidence[is_wanted]
    if len(found) > MAX_CANDIDATES:
        best = np.argsort(-confidence, kind="stable")[:MAX_CANDIDATES]
        found, class_index, confidence = found[best], class_index[best], confidence[best]
    boxes, extra = found[:, :4], found[:, 4 + num_classes :]
    offset = class_index[:, None].astype(np.float32) * (0 if options.agnostic_nms else CLASS_OFFSET_PX)
    if model.task == "obb":
        rotated = np.concatenate((boxes[:, :2] + offset, boxes[:, 2:], extra[:, -1:]), 1)
        kept = suppress_rotated(rotated, confidence, iou=options.iou, max_det=options.max_det)
    else:
        half = boxes[:, 2:] / 2
        boxes = np.concatenate((boxes[:, :2] - half, boxes[:, :2] + half), 1)
        kept = suppress(boxes + offset, confidence, iou=options.iou, max_det=options.max_det)
    confidence_class = np.stack((confidence, class_index.astype(np.float32)), 1)
    return Rows(boxes, confidence_class, extra).picked(kept)


def _final_rows(output: Floats, options: DetectOptions) -> Rows:
    is_kept = output[:, 4] > options.conf
    if options.classes is not None:
        is_kept &= np.isin(output[:, 5], options.classes)
    rows = output[np.flatnonzero(is_kept)[: options.max_det]]
    return Rows(rows[:, :4], rows[:, 4:6], rows[:, 6:])
