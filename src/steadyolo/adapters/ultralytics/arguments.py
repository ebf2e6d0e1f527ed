"""Ultralytics' train arguments: which there are, what they may be, and which may change when a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
from ultralytics.utils.torch_utils import parse_device, select_device

from steadyolo.errors import UserError
from steadyolo.spec.run_spec import unknown_argument

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


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise `UserError` for an unknown, mistyped or contradictory argument, before anything starts."""
    for name in arguments:
        if name not in known_arguments():
            raise unknown_argument(name, known_arguments())
    values = dict(arguments)
    if values.get("model") is None:
        raise UserError("no model is given", remedy="add model=yolo11n.pt, or a model yaml to train from scratch")
    if values.get("data") is None:
        raise UserError("no data is given", remedy="add data=PATH to a data yaml (a folder for classification)")
    _refuse_contradictions(values)
    _refuse_what_is_not_there(values)
    try:
        get_cfg(overrides=values)
    except (TypeError, ValueError, SyntaxError) as error:
        raise UserError(
            str(error).strip(), remedy="correct this argument; Ultralytics' documentation lists its values"
        ) from None


def _refuse_what_is_not_there(values: Mapping[str, Any]) -> None:
    optimizer = str(values.get("optimizer", "auto"))
    if optimizer.lower() not in {name.lower() for name in OPTIMIZERS}:
        raise UserError(f"optimizer={optimizer} is unknown", remedy=f"use one of {', '.join(OPTIMIZERS)}")
    try:
        select_device(parse_device(values.get("device")), verbose=False)
    except (ValueError, AssertionError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"device={values.get('device')} cannot be used: {first}", remedy="use device=cpu, or one that is there"
        ) from None


def _refuse_contradictions(values: Mapping[str, Any]) -> None:
    batch = values.get("batch", 16)
    if isinstance(batch, bool) or not isinstance(batch, int | float) or batch < 1 or batch != int(batch):
        raise UserError(
            f"batch={batch} leaves the number of images open", remedy="give a whole number of images, such as batch=16"
        )
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
