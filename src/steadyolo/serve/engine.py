"""Pixels to results: prepares a picture for a model's session and reads what the session answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadyolo.serve import pictures
from steadyolo.serve.finding_rows import Rows, rows_of
from steadyolo.serve.letterbox import Letterbox, Shape, choose_shape, common_shapes, letterbox
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
    """A model's pictures in and results out around its session. Used by one thread at a time, as the session is."""

    def __init__(
        self,
        model: ServedModel,
        session: Session,
        *,
        shapes_px: tuple[Shape, ...] | None = None,
        limits: pictures.PictureLimits | None = None,
    ) -> None:
        """`shapes_px` are those that the session is asked for, the full one first; None takes the common ratios."""
        self.model = model
        self.session = session
        self.shapes_px = shapes_px or shapes_of(model)
        self.limits = limits or pictures.PictureLimits()
        self.names = dict(enumerate(model.classes))

    def decode(self, data: bytes) -> Picture:
        """The picture in encoded bytes. Raises: BadImage."""
        return pictures.decode(data, self.limits)

    def shape_for(self, pictures_px: Sequence[Shape]) -> Shape:
        """The shape in which these pictures, (height, width) each, go through the graph together."""
        return choose_shape(pictures_px, self.shapes_px)

    def prepare(self, picture: Picture, shape_px: Shape | None = None) -> Prepared:
        """The picture as the graph takes it; in the shape that suits it best, or in `shape_px` to share a batch."""
        height, width = picture.shape[:2]
        if self.model.task == "classify":
            return pictures_prepared_for_classes(picture, shape_px or self.model.shape_px)
        box = letterbox((height, width), shape_px or self.shape_for([(height, width)]))
        return Prepared(image=pictures.letterboxed(picture, box), box=box)

    def run(self, prepared: Sequence[Prepared]) -> list[Output]:
        """The graph's outputs for pictures that were prepared in one shape."""
        if len(prepared) == 1:
            return self.session.run(prepared[0].image[None])
        return self.session.run(np.stack([one.image for one in prepared]))

    def finish(
        self, outputs: Sequence[Output], prepared: Sequence[Prepared], options: DetectOptions | Sequence[DetectOptions]
    ) -> list[Result]:
        """The result of each picture of a batch, in order; `options` are for all, or one for each."""
        each = [options] * len(prepared) if isinstance(options, DetectOptions) else options
        return [
            self._result([output[index] for output in outputs], one, chosen)
            for index, (one, chosen) in enumerate(zip(prepared, each, strict=True))
        ]

    def detect(self, picture: Picture, options: DetectOptions) -> Result:
        """All of it for one picture."""
        prepared = self.prepare(picture)
        return self.finish(self.run([prepared]), [prepared], options)[0]

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


def shapes_of(model: ServedModel) -> tuple[Shape, ...]:
    """The shapes that a model's pictures go through: one, or the full one and the common ratios' where it takes any."""
    if not model.is_dynamic or model.task == "classify":
        return (model.shape_px,)
    return common_shapes(model.shape_px, model.stride_px)


def pictures_prepared_for_classes(picture: Picture, shape_px: Shape) -> Prepared:
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
