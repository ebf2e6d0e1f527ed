"""The model that an export starts from: as its weights file has it, and as a graph without its training parts.

Written against ultralytics 8.4.190 and torch 2.14.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import Normalize
from ultralytics.nn.modules import C2f, Classify, Detect
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER

from steadyolo.adapters.ultralytics.arguments import TASKS, check_image_size
from steadyolo.adapters.ultralytics.export_process import ExportRequest
from steadyolo.errors import UserError
from steadyolo.serve.served_model import INPUT, Preparation
from steadyolo.serve.session import Images, Output
from steadyolo.vault.tensors import decode

OPSET = 18  # the newest that ONNX Runtime computes on GPUs without copying to the CPU for Resize and ReduceMax
_MOST_ROWS = 300  # of a head that needs no suppression, as Ultralytics' max_det
_USUAL_PX = {"classify": 224}


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A model in fp32, ready to answer, and what a manifest says of it."""

    module: nn.Module
    task: str
    shape_px: tuple[int, int]
    stride_px: int
    classes: tuple[str, ...]
    is_end_to_end: bool

    @property
    def keypoint_shape(self) -> tuple[int, int] | None:
        return tuple(self.head.kpt_shape) if self.task == "pose" else None

    @property
    def head(self) -> Any:
        return self.module.model[-1]  # type: ignore[index, union-attr]

    @torch.inference_mode()
    def run(self, images: Images) -> list[Output]:
        """What the model answers, as the graph's outputs."""
        answer = self.module(torch.from_numpy(images))
        predictions = answer[0] if isinstance(answer, tuple) else answer
        return [one.float().numpy() for one in _tensors(predictions)]

    def described(self) -> dict[str, Any]:
        """The manifest's values that follow from the model alone."""
        return {
            "task": self.task,
            "classes": self.classes,
            "shape_px": self.shape_px,
            "stride_px": self.stride_px,
            "is_dynamic": True,
            "is_end_to_end": self.is_end_to_end,
            "preparation": asdict(Preparation(fit="crop" if self.task == "classify" else "letterbox")),
            "keypoint_shape": self.keypoint_shape,
            "num_mask_weights": int(self.head.nm) if self.task == "segment" else None,
        }


def load(request: ExportRequest) -> SourceModel:
    """The model in checked weights. Raises: UserError for one that cannot be served or not in that shape."""
    LOGGER.setLevel(logging.WARNING)
    module, checkpoint = load_checkpoint(request.weights)
    module = module.float().eval()
    if request.tensors is not None:
        module.load_state_dict(decode(request.tensors))
    for parameter in module.parameters():
        parameter.requires_grad = False
    task = str(module.task)
    if task not in TASKS or int(module.yaml.get("channels", 3)) != 3:
        raise UserError(
            f"{request.weights} is a {task} model for {module.yaml.get('channels', 3)} channels",
            remedy=f"use a model for colour pictures that does {', '.join(TASKS)}",
        )
    if task != "classify":
        module.end2end = request.is_end_to_end
    for step in getattr(getattr(module, "transforms", None), "transforms", ()):
        if isinstance(step, Normalize) and (any(map(float, step.mean)) or any(float(one) != 1 for one in step.std)):
            raise UserError(
                f"{request.weights} wants colours of mean {step.mean} and deviation {step.std}",
                remedy="train it with Ultralytics' own transforms, which leave them between 0 and 1",
            )
    stride_px = max(int(module.stride.max()), 1 if task == "classify" else 32)
    usual_px = (checkpoint.get("train_args") or {}).get("imgsz") or _USUAL_PX.get(task, 640)
    shape_px = request.shape_px or _pair(usual_px)
    for side_px in shape_px:
        check_image_size(side_px, stride=stride_px)
    names = module.names
    return SourceModel(
        module=module,
        task=task,
        shape_px=shape_px,
        stride_px=stride_px,
        classes=tuple(str(names[index]) for index in range(len(names))),
        is_end_to_end=task != "classify" and bool(module.end2end),
    )


def rounded_to_bfloat16(source: SourceModel) -> SourceModel:
    """The model as processors compute it in bfloat16: what goes into sums of products is rounded, the sums are not."""
    module = deepcopy(source.module)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            part.weight.data = part.weight.data.bfloat16().float()
            part.register_forward_pre_hook(lambda _, inputs: tuple(one.bfloat16().float() for one in inputs))
    return replace(source, module=module)


def write_onnx(source: SourceModel, path: Path) -> None:
    """Write the model's graph, which takes any number of pictures in any shape of whole strides."""
    module: Any = _without_training_parts(source.module)
    image = torch.zeros(2, 3, *source.shape_px)  # two, and not square: what is fixed at one or equal stays visible
    outputs = _tensors(module(image))
    names = [f"output{number}" for number in range(len(outputs))]
    varying = {name: {0: "batch"} for name in names}
    torch.onnx.export(
        module,
        (image,),
        path,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=names,
        dynamic_axes={INPUT: {0: "batch", 2: "height", 3: "width"}, **varying},
        dynamo=False,
    )


def _without_training_parts(module: Any) -> Any:
    """A copy that answers with what a graph has to hold and nothing else."""
    bare = deepcopy(module).fuse(verbose=False)
    for part in bare.modules():
        if isinstance(part, Detect | Classify):
            part.export, part.format = True, "onnx"
        if isinstance(part, Detect):
            part.dynamic, part.shape = True, None
            part.postprocess = partial(_best_rows, part.nc)
        elif isinstance(part, C2f):
            part.forward = part.forward_split
    return bare


def _best_rows(num_classes: int, predictions: Tensor) -> Tensor:
    """As the head's own `postprocess`, for shapes of any size: traced, that takes 300 rows from less than 300 places.

    Shapes: (batch, places, 4 + classes + more) in; (batch, up to 300, 4 + 1 + 1 + more) out, best first.
    """
    num_places: Any = predictions.shape[1]  # while it is traced, a tensor
    num_rows: Any = (
        torch.clamp(num_places, max=_MOST_ROWS) if torch.is_tensor(num_places) else min(num_places, _MOST_ROWS)
    )
    scored = slice(4, 4 + num_classes)

    def taken(places: Tensor, rows: Tensor) -> Tensor:
        return rows.gather(1, places[..., None].expand(-1, -1, predictions.shape[-1]))

    best = taken(predictions[..., scored].amax(-1).topk(num_rows).indices, predictions)
    scores, flat = best[..., scored].flatten(1).topk(num_rows)
    rows = taken(flat // num_classes, best)
    classes = (flat % num_classes).to(scores.dtype)
    return torch.cat((rows[..., :4], scores[..., None], classes[..., None], rows[..., 4 + num_classes :]), dim=-1)


def _tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [tensor for tensor in found if isinstance(tensor, Tensor)]


def _pair(size: Any) -> tuple[int, int]:
    return (size[0], size[-1]) if isinstance(size, list | tuple) else (size, size)
