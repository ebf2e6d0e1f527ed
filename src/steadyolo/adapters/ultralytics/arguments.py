"""Ultralytics' train arguments: which there are, what they may be, and which may change when a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
from ultralytics.utils.torch_utils import parse_device, select_device

from steadyolo.errors import UserError
from steadyolo.spec.run_spec import RunSpec, unknown_argument

# What leaves the stream of samples and the mathematics of a step as they were.
MAY_CHANGE = frozenset(
    {
        "epochs",
        "patience",
        "time",
        "workers",
        "device",
        "cache",
        "plots",
        "val",
        "verbose",
        "save_period",
        "data",
    }
)
OPTIMIZERS = ("auto", "SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp")
TASKS = ("detect", "segment", "pose", "obb", "classify")


def known_arguments() -> tuple[str, ...]:
    """Names of all arguments that `train` takes."""
    return (*DEFAULT_CFG_DICT, "augmentations", "save_dir")


def batch_asked(arguments: Mapping[str, Any]) -> int | None:
    """Images in a batch; None for the largest batch that fits. Raises: UserError for anything else."""
    batch = arguments.get("batch", DEFAULT_CFG_DICT["batch"])
    if str(batch).lower() in {"auto", "-1"}:  # Ultralytics' -1 is an alias
        return None
    if isinstance(batch, float) and 0 < batch < 1:
        raise UserError(
            f"batch={batch} leaves the number of images open", remedy=f"use batch=auto memory.budget={batch:.0%}"
        )
    if isinstance(batch, bool) or not isinstance(batch, int | float) or batch < 1 or batch != int(batch):
        raise UserError(
            f"batch={batch} is no number of images", remedy="give a whole number of images, such as batch=16, or auto"
        )
    return int(batch)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise `UserError` for an unknown, mistyped or contradictory argument, before anything starts."""
    check_request(arguments)
    if arguments.get("data") is None:
        raise UserError("no data is given", remedy="add data=PATH to a data yaml (a folder for classification)")
    _refuse_absent_devices(arguments)


def check_request(arguments: Mapping[str, Any]) -> None:
    """As `check_arguments`, for a training that is only planned: without data, and on a device that is not here."""
    for name in arguments:
        if name not in known_arguments():
            raise unknown_argument(name, known_arguments())
    values = dict(arguments)
    if values.get("model") is None:
        raise UserError("no model is given", remedy="add model=yolo11n.pt, or a model yaml to train from scratch")
    _refuse_contradictions(values)
    batch = batch_asked(values)
    values["batch"] = -1 if batch is None else batch
    optimizer = str(values.get("optimizer", "auto"))
    if optimizer.lower() not in {name.lower() for name in OPTIMIZERS}:
        raise UserError(f"optimizer={optimizer} is unknown", remedy=f"use one of {', '.join(OPTIMIZERS)}")
    try:
        get_cfg(overrides=values)
    except (TypeError, ValueError, SyntaxError) as error:
        raise UserError(
            str(error).strip(), remedy="correct this argument; Ultralytics' documentation lists its values"
        ) from None


def _refuse_absent_devices(values: Mapping[str, Any]) -> None:
    try:
        select_device(parse_device(values.get("device")), verbose=False)
    except (ValueError, AssertionError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"device={values.get('device')} cannot be used: {first}", remedy="use device=cpu, or one that is there"
        ) from None


def _refuse_contradictions(values: Mapping[str, Any]) -> None:
    if values.get("resume"):
        raise UserError("resume=... is not how a run goes on", remedy="use `steadyolo resume RUN`")
    if values.get("save") is False:
        raise UserError(
            "save=False contradicts a run that must survive", remedy="leave it out; save.every=1h saves rarely"
        )
    if values.get("distill_model") or values.get("quantize") not in (None, 32, "fp32"):
        raise UserError(
            "distill_model and quantize are not supported in training here", remedy="train such a run with Ultralytics"
        )
    task = values.get("task")
    if task is not None and task not in TASKS:
        raise UserError(f"task={task} is not supported", remedy=f"use one of {', '.join(TASKS)}")
    if values.get("rect") and values.get("multi_scale"):
        raise UserError(
            "rect=True and multi_scale contradict each other: one fixes the shape of each batch, the other varies it",
            remedy="give one of them",
        )


def check_changes(arguments: Mapping[str, Any]) -> None:
    """Raise `UserError` when a resumed run is asked for something that changes what it learns."""
    for name in arguments:
        if name not in known_arguments():
            raise unknown_argument(name, known_arguments())
        if name not in MAY_CHANGE:
            raise UserError(
                f"{name} cannot change in a run that goes on",
                remedy=f"resume without it, or start a new run from weights/last.pt; {', '.join(sorted(MAY_CHANGE))} "
                "may change",
            )


def check_memory(arguments: Mapping[str, Any], spec: RunSpec) -> None:
    """Raise `UserError` where the arguments of memory contradict each other."""
    if batch_asked(arguments) is None and spec.num_micro_batch_images is not None:
        raise UserError(
            "batch=auto and memory.micro_batch contradict each other: one is the largest batch that needs no parts",
            remedy="give a number of images, such as batch=64, or leave memory.micro_batch out",
        )


def check_image_size(size: Any, *, stride: int) -> None:
    """Raise `UserError` unless the side of an image is a whole number of strides."""
    if not isinstance(size, int) or isinstance(size, bool) or size < stride or size % stride:
        near = (
            sorted({max(int(size) // stride, 1) * stride, -(-int(size) // stride) * stride})
            if isinstance(size, int | float)
            else [640]
        )
        raise UserError(
            f"imgsz={size} is not a multiple of the model's stride {stride}",
            remedy=f"use imgsz={' or imgsz='.join(str(n) for n in near)}",
        )
