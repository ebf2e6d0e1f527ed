"""Masks from what a segmentation graph gives: prototypes of a picture, and each box's weights of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steadyolo.serve import pictures
from steadyolo.serve.letterbox import Shape

Floats = NDArray[np.float32]


def masks_of(
    prototypes: Floats, weights_NK: Floats, xyxy_N4: Floats, shape_px: Shape
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The masks that are not empty, in the letterboxed picture, and for each box whether its own is among them.

    Shapes: `prototypes` (K, height/4, width/4), `weights_NK` (N, K); masks (M, height, width), 0 or 1; (N,).
    Source: ultralytics `process_mask(upsample=True)`, but only the pixels inside each box are ever computed.
    """
    num_prototypes, height, width = prototypes.shape
    logits = (weights_NK @ prototypes.reshape(num_prototypes, -1)).reshape(-1, height, width)
    masks = np.zeros((len(logits), *shape_px), np.uint8)
    for mask, logit, box in zip(masks, logits, xyxy_N4, strict=True):
        left, top = np.clip(np.ceil(box[:2]), 0, shape_px[::-1]).astype(int)
        right, bottom = np.clip(np.ceil(box[2:]), 0, shape_px[::-1]).astype(int)  # x2 itself is outside
        if left < right and top < bottom:
            mask[top:bottom, left:right] = pictures.enlarged(logit, shape_px)[top:bottom, left:right] > 0
    has_mask = np.array([one.any() for one in masks])
    return (masks if has_mask.all() else masks[has_mask]), has_mask
