"""Whether a graph takes these images: asked before any runtime is, so that all refuse alike."""

from __future__ import annotations

import numpy as np

from steadyolo.errors import UserError
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.session import Images


def check_images(model: ServedModel, images: Images) -> None:
    """Raises: UserError for a type or a shape that the model does not take."""
    wanted = f"(batch, 3, {model.shape_px[0]}, {model.shape_px[1]})"
    if model.is_dynamic:
        wanted += f", or other multiples of {model.stride_px} for the last two,"
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[0] < 1 or images.shape[1] != 3:
        raise _not_taken(images, wanted)
    height, width = images.shape[2:]
    if (height, width) == model.shape_px:
        return
    if (
        not model.is_dynamic
        or min(height, width) < model.stride_px
        or height % model.stride_px
        or width % model.stride_px
    ):
        raise _not_taken(images, wanted)


def closed(model: ServedModel) -> UserError:
    """The session was closed already."""
    return UserError(f"the session of {model.folder} is closed", remedy="open another")


def _not_taken(images: Images, wanted: str) -> UserError:
    return UserError(
        f"images of shape {tuple(images.shape)} and type {images.dtype} do not fit the model",
        remedy=f"give float32 of shape {wanted} with numbers from 0 to 1",
    )
