"""Where a picture lies in the shape that a graph takes, and back again. Pure arithmetic, Ultralytics' roundings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadyolo.errors import UserError

Shape = tuple[int, int]  # height and width in pixels
Floats = NDArray[np.float32]

COMMON_RATIOS = ((4, 3), (3, 2), (16, 9))  # of cameras and screens; each also upright


@dataclass(frozen=True, slots=True, kw_only=True)
class Letterbox:
    """A picture of `picture_px` scaled to `content_px` and placed at (`top_px`, `left_px`) of `shape_px`."""

    picture_px: Shape
    content_px: Shape
    top_px: int
    left_px: int
    shape_px: Shape

    def restored(self, xy: Floats) -> Floats:
        """Points of the letterboxed picture as points of the picture itself, not clipped.

        Shapes: (..., 2) in, new (..., 2) out; columns x y.
        Source: ultralytics `scale_boxes`, which divides by each side's own gain.
        """
        gain_y = self.content_px[0] / self.picture_px[0]
        gain_x = self.content_px[1] / self.picture_px[1]
        origin = np.array((self.left_px, self.top_px), np.float32)
        restored: Floats = np.divide(xy - origin, np.array((gain_x, gain_y), np.float32), dtype=np.float32)
        return restored

    def clipped(self, xy: Floats) -> Floats:
        """Points moved to the nearest place in the picture. Shapes: (..., 2) in, new (..., 2) out."""
        height, width = self.picture_px
        inside: Floats = np.clip(xy, np.float32(0), np.array((width, height), np.float32))
        return inside


def letterbox(picture_px: Shape, shape_px: Shape) -> Letterbox:
    """The picture as large as fits into the shape, in its middle.

    Source: ultralytics `LetterBox` 8.4.190: sides rounded, at least 1 pixel; an odd pixel of padding is right or below.
    """
    gain = min(shape_px[0] / picture_px[0], shape_px[1] / picture_px[1])
    height, width = (max(round(side * gain), 1) for side in picture_px)
    top, left = round((shape_px[0] - height) / 2 - 0.1), round((shape_px[1] - width) / 2 - 0.1)
    return Letterbox(picture_px=picture_px, content_px=(height, width), top_px=top, left_px=left, shape_px=shape_px)


def tightest_shape(picture_px: Shape, square_px: Shape, stride_px: int) -> Shape:
    """The full shape less the padding that no stride needs: Ultralytics' `auto` letterboxing."""
    box = letterbox(picture_px, square_px)
    height, width = (side + (full - side) % stride_px for side, full in zip(box.content_px, square_px, strict=True))
    return height, width


def common_shapes(square_px: Shape, stride_px: int) -> tuple[Shape, ...]:
    """The full shape first, then the tightest ones of the common ratios, wide and upright."""
    tight = {
        tightest_shape(sides, square_px, stride_px)
        for ratio in COMMON_RATIOS
        for sides in ((ratio[0] * 1000, ratio[1] * 1000), (ratio[1] * 1000, ratio[0] * 1000))
    }
    return (square_px, *sorted(tight - {square_px}))


def choose_shape(pictures_px: Iterable[Shape], shapes_px: tuple[Shape, ...]) -> Shape:
    """The smallest of `shapes_px` in which every picture keeps the size that it has in the first, the full one.

    Raises: UserError if there is no shape to choose from.
    """
    if not shapes_px:
        raise UserError("no shape to choose from", remedy="give at least the shape that the model was exported for")
    full = shapes_px[0]
    needed_px = [letterbox(one, full).content_px for one in pictures_px]
    height, width = max(one[0] for one in needed_px), max(one[1] for one in needed_px)
    fitting = [one for one in shapes_px if height <= one[0] <= full[0] and width <= one[1] <= full[1]]
    return min(fitting, key=lambda one: one[0] * one[1], default=full)
