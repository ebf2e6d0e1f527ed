"""What stands in for a run's model, data and predictions while its memory is traced.

Written against ultralytics 8.4.190.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import (
    ClassificationModel,
    DetectionModel,
    OBBModel,
    PoseModel,
    SegmentationModel,
    load_checkpoint,
)

from steadyolo.adapters.ultralytics.weights import check_weights
from steadyolo.errors import SteadyError, UserError

_MODELS: dict[str, Any] = {
    "detect": DetectionModel,
    "segment": SegmentationModel,
    "pose": PoseModel,
    "obb": OBBModel,
    "classify": ClassificationModel,
}
_BOX_SIDE_SHARE = 0.15  # of the picture's side; objects of a mosaic are half as large as they were
_MASK_RATIO = 4
_MOST_CANDIDATES = 30_000  # boxes of a picture that NMS looks at


def build_model(model: str, task: str, num_classes: int | None) -> nn.Module:
    """The model as a trainer builds it, with fresh weights; weights that are not there are not fetched.

    Raises: UserError when it cannot be built.
    """
    if task not in _MODELS:
        raise UserError(f"task={task} is not supported", remedy=f"use one of {', '.join(_MODELS)}")
    path = Path(model)
    config: Any = model
    try:
        if path.suffix == ".pt" and path.exists():
            check_weights(path)
            config = load_checkpoint(path)[0].yaml
        elif path.suffix == ".pt":
            config = path.with_suffix(".yaml").name
        built: nn.Module = _MODELS[task](config, ch=3, nc=num_classes, verbose=False)
    except SteadyError:
        raise
    except Exception as error:
        raise UserError(
            f"the model {model} cannot be built: {type(error).__name__}: {error}",
            remedy="name a model of Ultralytics such as yolo11n.pt or yolo11n.yaml, or correct the file",
        ) from error
    built.args = get_cfg(overrides={"task": task})  # type: ignore[assignment]
    for name, parameter in built.named_parameters():
        parameter.requires_grad = ".dfl" not in name
    return built.train()


def make_labels(
    model: nn.Module, task: str, *, num_images: int, side_px: int, most_boxes: int, mean_boxes: float | None
) -> dict[str, Tensor]:
    """What a loader gives beside pictures: the first one has the most boxes, all have what there is on average."""
    if task == "classify":
        return {"cls": torch.zeros(num_images, dtype=torch.int64)}
    counts = torch.full((num_images,), most_boxes)
    if mean_boxes is not None and num_images > 1:
        counts[1:] = max(round((mean_boxes * num_images - most_boxes) / (num_images - 1)), 0)
    owner = torch.arange(num_images).repeat_interleave(counts)
    total = len(owner)
    generator = torch.Generator().manual_seed(0)
    middles = 0.1 + 0.8 * torch.rand(total, 2, generator=generator)
    boxes = torch.cat([middles, torch.full((total, 2), _BOX_SIDE_SHARE)], 1)
    labels = {"batch_idx": owner.float(), "cls": torch.zeros(total, 1), "bboxes": boxes}
    if task == "obb":
        labels["bboxes"] = torch.cat([boxes, torch.zeros(total, 1)], 1)
    if task == "pose":
        shape = model.model[-1].kpt_shape  # type: ignore[index,union-attr]
        labels["keypoints"] = torch.ones(total, *shape)
    if task == "segment":
        side = side_px // _MASK_RATIO
        dtype = torch.uint8 if most_boxes < 256 else torch.int32
        labels["masks"] = torch.zeros(num_images, side, side, dtype=dtype)
        labels["sem_masks"] = torch.zeros(num_images, side, side)
    return labels


class Assumed:
    """How many elements are true of a mask that depends on predictions, told by its shape."""

    def __init__(self, *, boxes_of_image: float, val_boxes: float) -> None:
        self._boxes_of_image = boxes_of_image
        self._val_boxes = val_boxes
        self._num_picked = self._num_left = 10  # anchors that the assigner at work picks for a box, and leaves to it
        self._num_anchors = 0
        self._num_images = 0  # that an assigner is at work on; 0: none is
        self._most_found: int | None = None

    def assigning(self, assigner: Any, args: tuple[Any, ...]) -> None:
        """Told by a hook which assigner is at work, and on what."""
        self._num_picked, self._num_left = assigner.topk, assigner.topk2
        self._num_images, self._num_anchors = args[0].shape[:2]

    def assigned(self, *_: Any) -> None:
        """Told by a hook that the assigner is done."""
        self._num_images = 0

    def score(self, *, rotated: bool) -> None:
        """From now on predictions are looked through for boxes: as many as NMS takes.

        Rotated boxes are compared each with each: they are taken to come only from anchors that lie in objects.
        """
        inside = math.ceil(self._val_boxes * self._num_anchors * _BOX_SIDE_SHARE**2)
        self._most_found = min(inside, _MOST_CANDIDATES) if rotated else _MOST_CANDIDATES

    def count_true(self, shape: tuple[int, ...]) -> int:
        """Anchors that are matched (by image or all), or that lie in boxes; of other masks everything."""
        if self._most_found is not None:
            return min(math.prod(shape), self._most_found)
        if self._num_images and len(shape) == 2 and shape[-1] == self._num_anchors:  # the best anchors of each box
            return shape[0] * self._num_picked
        if self._num_images and len(shape) == 1:  # candidates whose masks are compared: upstream takes so many of each
            return min(shape[0], math.ceil(self._num_images * self._boxes_of_image * 3 * self._num_picked))
        if not shape or shape[-1] != self._num_anchors:
            return math.prod(shape)
        if len(shape) > 2:
            return math.ceil(math.prod(shape) * _BOX_SIDE_SHARE**2)
        matched = min(self._num_anchors, math.ceil(self._boxes_of_image * self._num_left))
        return math.prod(shape[:-1]) * matched
