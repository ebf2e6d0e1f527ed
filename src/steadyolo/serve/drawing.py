"""What was found, drawn onto the picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steadyolo.serve import pictures
from steadyolo.serve.results import Result

COLOURS = ((255, 42, 4), (79, 68, 255), (255, 0, 189), (235, 219, 11), (49, 210, 207), (104, 31, 17), (221, 111, 255),
           (255, 180, 0), (0, 252, 38), (162, 255, 11), (186, 0, 221), (108, 27, 255))  # fmt: skip  # BGR, by class


def drawn(result: Result) -> NDArray[np.uint8]:
    """A copy of the picture with its boxes, masks, points and names. Raises: ValueError where it has no picture."""
    if result.orig_img is None:
        raise ValueError("the result came without its picture")
    picture = result.orig_img.copy()
    if result.probs is not None:
        for line, one in enumerate(result.summary()):
            pictures.write(picture, f"{one['name']} {one['confidence']:.2f}", (4, 20 + 22 * line), COLOURS[0])
        return picture
    found = result.obb if result.obb is not None else result.boxes
    if found is None:
        return picture
    corners = (
        result.obb.xyxyxyxy if result.obb is not None else found.xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    )
    for row, (class_index, confidence) in enumerate(
        zip(found.cls.astype(int).tolist(), found.conf.tolist(), strict=True)
    ):
        colour = COLOURS[class_index % len(COLOURS)]
        if result.masks is not None:
            pictures.fill(picture, result.masks.xy[row], colour)
        pictures.outline_of(picture, corners[row], colour)
        if result.keypoints is not None:
            for x, y, *visible in result.keypoints.data[row].tolist():
                if (x, y) != (0, 0) and (not visible or visible[0] >= 0.5):
                    pictures.dot(picture, (x, y), colour)
        top = corners[row][corners[row][:, 1].argmin()]
        pictures.write(picture, f"{result.names[class_index]} {confidence:.2f}", (top[0], top[1] - 4), colour)
    return picture
