"""Pixels to results: prepares a picture for a model's session and reads what the session answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadyolo.serve import pictures
from steadyolo.serve.finding_rows import Rows, rows_of
from steadyolo.serve.letterbox import Letterbox, Shape, choose_shape, letterbox
from steadyolo.serve.masks import masks_of
from steadyolo.serve.results import Boxes, Keypoints, Masks, Probs, Result, RotatedBoxes
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import DetectOptions
from steadyolo.serve.session import Output, Session

Picture = NDArray[np.uint8]  # (height, width, 3), BGR


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One picture as the graph takes it, (3, height, width), and where in it the picture lies."""

    image: NDArray[np.float32]
    box: Letterbox


class Engine:
    """A model's pictures in and results out around its session.

    The session is used by one thread at a time; everything else may be called by any number of threads.
    """

    def __init__(
        self,
        model: ServedModel,
        session: Session,
        *,
        shapes_px: tuple[Shape, ...] | None = None,
        max_pixels: int = pictures.MAX_PIXELS,
    ) -> None:
        """`shapes_px` are those that pictures are put into, the full one first; None is the full one alone.

        The session has to be warm for each. `shapes.shapes_of` names those that save work for common ratios of sides.
        """
        self.model = model
        self.session = session
        self.shapes_px = shapes_px or (model.shape_px,)
        self.names = dict(enumerate(model.classes))
        self._max_pixels = max_pixels

    def decode(self, data: bytes) -> Picture:
        """The picture in encoded bytes. Raises: BadImage."""
        return pictures.decode(data, max_pixels=self._max_pixels)

    def shape_for(self, pictures_px: Sequence[Shape]) -> Shape:
        """The shape in which these pictures, (height, width) each, can go through the graph together."""
        return choose_shape(pictures_px, self.shapes_px)

    def prepare(self, picture: Picture, shape_px: Shape | None = None) -> Prepared:
        """The picture as the graph takes it: in the shape that suits it best, or in `shape_px` to share a batch."""
        height, width = picture.shape[:2]
        if self.model.task == "classify":
            return _cropped(picture, self.model.shape_px)
        box = letterbox((height, width), shape_px or self.shape_for([(height, width)]))
        return Prepared(image=pictures.letterboxed(picture, box), box=box)

    def finish(self, outputs: Sequence[Output], prepared: Prepared, options: DetectOptions) -> Result:
        """The result of one picture, from the session's outputs for it alone: a batch of one."""
        return self._result([output[0] for output in outputs], prepared, options)

    def detect(self, picture: Picture, options: DetectOptions) -> Result:
        """All of it for one picture."""
        prepared = self.prepare(picture)
        return self.finish(self.session.run(prepared.image[None]), prepared, options)

    def _result(self, outputs: list[Output], prepared: Prepared, options: DetectOptions) -> Result:
        box, model = prepared.box, self.model
        if model.task == "classify":
            return Result(orig_shape=box.picture_px, names=self.names, probs=Probs(outputs[0], box.picture_px))
        rows = rows_of(outputs[0], model, options)
        if model.task == "obb":
            return Result(orig_shape=box.picture_px, names=self.names, obb=_rotated(rows, box))
        masks = None
        if model.task == "segment" and len(rows.boxes):
            stack, has_mask = masks_of(outputs[1], rows.extra, rows.boxes, box.shape_px)
            masks, rows = Masks(stack, box.picture_px, box), rows.picked(has_mask)
        keypoints = None
        if model.keypoint_shape is not None:
            points = rows.extra.reshape(-1, *model.keypoint_shape)
            points[..., :2] = box.clipped(box.restored(points[..., :2]))
            keypoints = Keypoints(points, box.picture_px)
        return Result(
            orig_shape=box.picture_px,
            names=self.names,
            boxes=_upright(rows, box),
            masks=masks,
            keypoints=keypoints,
        )


def _cropped(picture: Picture, shape_px: Shape) -> Prepared:
    """The middle of the picture, its shorter side as long as the shape's."""
    height, width = picture.shape[:2]
    box = Letterbox(picture_px=(height, width), content_px=shape_px, top_px=0, left_px=0, shape_px=shape_px)
    return Prepared(image=pictures.centre_cropped(picture, shape_px), box=box)


def _upright(rows: Rows, box: Letterbox) -> Boxes:
    xyxy = box.clipped(box.restored(rows.boxes.reshape(-1, 2, 2))).reshape(-1, 4)
    return Boxes(np.concatenate((xyxy, rows.confidence_class), 1), box.picture_px)


def _rotated(rows: Rows, box: Letterbox) -> RotatedBoxes:
    centre = box.restored(rows.boxes[:, :2])
    gain_y, gain_x = (new / old for new, old in zip(box.content_px, box.picture_px, strict=True))
    sides = rows.boxes[:, 2:] / np.array((gain_x, gain_y), np.float32)
    return RotatedBoxes(np.concatenate((centre, sides, rows.extra[:, -1:], rows.confidence_class), 1), box.picture_px)
