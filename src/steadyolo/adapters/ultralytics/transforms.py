"""Ultralytics' transforms with the same results, byte for byte, in less time.

Written against ultralytics 8.4.190 and OpenCV 5.0. Each class says what takes upstream its time, and may go with that.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.data.augment import Format, RandomPerspective


class QuickPerspective(RandomPerspective):  # type: ignore[misc]  # upstream is untyped
    """Warps images of three channels as ones of four, which OpenCV does in less than half the time."""

    def apply_image(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """As upstream."""
        image = labels["img"]
        if not _is_colour(image):
            return super().apply_image(labels, params)  # type: ignore[no-any-return]
        seen = (slice(None), slice(None)) if self.perspective else _seen(image.shape, params["M"], params["size"])
        labels["img"] = np.empty((*image.shape[:2], 4), np.uint8)
        cv2.cvtColor(image[seen], cv2.COLOR_BGR2BGRA, dst=labels["img"][seen])
        labels = super().apply_image(labels, params)
        labels["img"] = cv2.cvtColor(labels["img"], cv2.COLOR_BGRA2BGR)
        return labels


def _seen(shape: tuple[int, ...], affine: NDArray[np.float32], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns that a warp of an image of `shape` to `size` (width, height) may read: of a mosaic, a third."""
    back = cv2.invertAffineTransform(affine[:2])
    reach_xy = np.maximum(back[:, :2] * size, 0).sum(1), np.minimum(back[:, :2] * size, 0).sum(1)
    (right, bottom), (left, top) = reach_xy + back[:, 2]
    return slice(*_within(top, bottom, shape[0])), slice(*_within(left, right, shape[1]))


def _within(first: float, last: float, limit: int) -> tuple[int, int]:
    """Whole pixels from `first` to `last` with two to spare, for rounding and interpolation; never none."""
    return max(0, min(int(first) - 2, limit - 1)), min(limit, max(int(last) + 3, 1))


class QuickFormat(Format):  # type: ignore[misc]  # upstream is untyped
    """Takes colours apart with OpenCV where upstream copies byte by byte, and divides boxes in place with NumPy, where
    upstream has torch gather and scatter columns.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._divides, self.normalize = self.normalize, False

    def apply_instances(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """As upstream."""
        labels = super().apply_instances(labels, params)
        for name, num_sides in (("bboxes", 4), ("keypoints", 2)) if self._divides else ():
            if name in labels:
                values = labels[name].numpy()
                values[..., 0:num_sides:2] /= params["w"]
                values[..., 1:num_sides:2] /= params["h"]
        return labels

    def _format_img(self, img: NDArray[Any]) -> torch.Tensor:
        if not _is_colour(img):
            return super()._format_img(img)  # type: ignore[no-any-return]
        planes = np.empty((3, *img.shape[:2]), np.uint8)
        rgb = random.uniform(0, 1) > self.bgr  # the draw that upstream makes here
        cv2.split(_upright(img), list(planes[::-1] if rgb else planes))
        return torch.from_numpy(planes)


def quicken(transforms: Any) -> None:
    """Give each transform (nested ones too) that has a quicker class here that class."""
    for transform in each_transform(transforms):
        if type(transform) is RandomPerspective:
            transform.__class__ = QuickPerspective


def each_transform(transform: Any) -> Iterator[Any]:
    """The transform and those inside it."""
    yield transform
    for inner in (getattr(transform, "pre_transform", None), *getattr(transform, "transforms", ())):
        if inner is not None:
            yield from each_transform(inner)


def _is_colour(img: NDArray[Any]) -> bool:
    return img.ndim == 3 and img.shape[2] == 3 and img.dtype == np.uint8


def _upright(img: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same image with its flips done: upstream leaves them in the strides, which OpenCV cannot read."""
    upside_down, mirrored = img.strides[0] < 0, img.strides[1] < 0
    if not (upside_down or mirrored):
        return img
    stored = img[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    return cv2.flip(stored, -1 if upside_down and mirrored else 0 if upside_down else 1)
