"""A training as its plan needs to know it: from arguments alone, or from a trainer that is set up.

Written against ultralytics 8.4.190.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from ultralytics.cfg import get_cfg

from steadyolo.adapters.memory.host import held_by_this_process, host_memory
from steadyolo.adapters.ultralytics.arguments import OPTIMIZERS, batch_asked
from steadyolo.adapters.ultralytics.label_counts import CountedData, count_labels, counts_of
from steadyolo.adapters.ultralytics.loader import num_window_images
from steadyolo.adapters.ultralytics.memory_planning import Training, plan_memory
from steadyolo.data.boxes import BoxCounts, Mixing
from steadyolo.data.order import SampleOrder
from steadyolo.errors import UserError
from steadyolo.plan.host import rough_step_bytes
from steadyolo.plan.memory_plan import MemoryPlan
from steadyolo.spec.run_spec import RunSpec
from steadyolo.train.precision import choose_precision
from steadyolo.train.recompute import Recompute

if TYPE_CHECKING:
    from steadyolo.adapters.ultralytics.trainer import SteadyTrainer

_STRIDE_PX = 32
_USUAL_BATCH = 16  # Ultralytics' own
_MANY_IMAGES = 100_000  # of a data set that nobody described
_MANY_ITERATIONS = 10_000  # upstream's `optimizer=auto` takes MuSGD beyond them


def training_asked_for(arguments: Mapping[str, Any], spec: RunSpec) -> Training:
    """The training that arguments (checked ones) ask for, without its trainer, its images or its device.

    Raises: UserError for data without labels, unless the spec says how many boxes there are.
    """
    args = get_cfg(overrides=dict(arguments))
    if args.data is None and not spec.num_boxes and args.task != "classify":
        raise UserError(
            "no data is given, and memory grows with the most boxes in a picture",
            remedy="add data=PATH to a data yaml, or say how many boxes a picture has at most: memory.boxes=N",
        )
    counted = None
    if args.task != "classify" and not (spec.num_boxes and args.data is None):
        try:
            counted = count_labels(str(args.data), fraction=args.fraction)
        except UserError:
            if not spec.num_boxes:
                raise
    devices = devices_asked(arguments.get("device"))
    if devices[0] == "cpu":  # samples are made in the training process there, unless asked
        args.workers = int(arguments.get("workers") or 0)
    batch = batch_asked(arguments)
    return _training(
        args,
        spec,
        device=devices[0],
        computes=_computes(args, spec, devices[0], amp_given="amp" in arguments),
        num_batch_images=None if batch is None else -(-batch // len(devices)),
        counted=counted,
    )


def planned(trainer: SteadyTrainer, train: Any, val: Any, *, num_batch_images: int | None) -> MemoryPlan:
    """The memory plan of a trainer whose model is built, on the data sets `train` and `val`."""
    training = training_of(trainer, train, val, num_batch_images=num_batch_images)
    layers = Recompute(trainer.bare_model).num_layers_max
    return plan_memory(training, trainer.spec, is_here=True, num_layers=layers)


def may_be_short(trainer: SteadyTrainer) -> bool:
    """Whether a plan pays: it takes seconds, and on a host with memory to spare it could only say so."""
    spec = trainer.spec
    if trainer.device.type != "cpu" or spec.memory_budget is not None or spec.num_recomputed_layers is not None:
        return True
    num_weights = sum(one.numel() for one in trainer.bare_model.parameters())
    need = rough_step_bytes(
        num_weights=num_weights,
        num_images=spec.num_micro_batch_images or trainer.batch_size,
        side_px=int(trainer.args.imgsz * (1 + float(trainer.args.multi_scale))),
    )
    return need > host_memory().free_bytes


def training_of(trainer: SteadyTrainer, train: Any, val: Any, *, num_batch_images: int | None) -> Training:
    """The training of a trainer whose model is built, on the data sets `train` and `val`."""
    counted = None
    if trainer.args.task != "classify":
        num_classes = int(trainer.data["nc"])
        counted = CountedData(train=counts_of(train.labels), val=counts_of(val.labels), num_classes=num_classes)
    models = [trainer.bare_model, *([trainer.ema.ema] if getattr(trainer, "ema", None) else [])]
    held = [tensor for model in models for tensor in model.state_dict().values()]
    chosen = type(trainer.optimizer).__name__ if getattr(trainer, "optimizer", None) else None
    is_cpu = trainer.device.type == "cpu"
    training = _training(
        trainer.args,
        trainer.spec,
        device="cpu" if is_cpu else f"cuda:{trainer.device.index or 0}",
        computes=_with_emulated(trainer.precision.compute, trainer.spec, amp_given=trainer.amp_given, is_cpu=is_cpu),
        num_batch_images=num_batch_images,
        counted=counted,
        num_train_images=len(train),
        optimizer=chosen,
    )
    held_bytes = sum(one.numel() * one.element_size() for one in held)
    return replace(training, libraries_bytes=max(0, training.libraries_bytes - held_bytes))


def devices_asked(device: Any) -> list[str]:
    """The devices that `device=` names, here or not: `cpu`, or `cuda:0` and so on."""
    text = re.sub(r"cuda:|none|[][() \"']", "", str(device).lower())
    if text == "cpu" or (not text and not torch.cuda.is_available()):
        return ["cpu"]
    if text in {"", "cuda"}:
        return ["cuda:0"]
    numbers = [word for word in text.split(",") if word]
    if not all(word.isdecimal() for word in numbers):
        raise UserError(f"device={device} cannot be planned for", remedy="use device=cpu, device=0 or device=0,1")
    return [f"cuda:{int(word)}" for word in numbers]


def _training(
    args: Any,
    spec: RunSpec,
    *,
    device: str,
    computes: tuple[str, ...],
    num_batch_images: int | None,
    counted: CountedData | None,
    num_train_images: int | None = None,
    optimizer: str | None = None,
) -> Training:
    """What both ways in share: Ultralytics' arguments, read as its trainers read them."""
    num_train_images = counted.train.num_images if counted else num_train_images
    mixing = Mixing(
        mosaic=0.0 if args.rect else args.mosaic, mixup=args.mixup, cutmix=args.cutmix, copy_paste=args.copy_paste
    )
    none = BoxCounts({})
    train, val = (counted.train, counted.val) if counted else (none, none)
    num_batch = num_batch_images or _USUAL_BATCH
    order = SampleOrder(
        seed=0, num_samples=num_train_images or _MANY_IMAGES, batch_size=min(num_batch, num_train_images or num_batch),
        num_batches=1,
    )  # fmt: skip
    num_classes = 1 if args.single_cls else counted.num_classes if counted else None
    most = spec.num_boxes or train.most_in_picture(mixing)
    return Training(
        model=str(args.model),
        task=str(args.task or "detect"),
        side_px=math.ceil(args.imgsz * (1 + float(args.multi_scale)) / _STRIDE_PX) * _STRIDE_PX,
        least_side_px=int(args.imgsz * (1 - float(args.multi_scale))),
        num_batch_images=num_batch_images,
        nominal_images=int(args.nbs),
        computes=computes,
        device=device,
        optimizer=optimizer or _optimizer(args, num_train_images, num_batch),
        num_classes=num_classes,
        most_boxes=most,
        mean_boxes=min(float(most), train.mean_in_picture(mixing)) if counted else None,
        val_boxes=val.most_in_image if counted else most,
        boxes_unmixed=train.most_in_image if counted and not spec.num_boxes else None,
        num_train_images=num_train_images,
        num_workers=int(args.workers),
        libraries_bytes=held_by_this_process().resident_bytes,
        num_window_images=num_window_images(order, int(args.workers)) if args.task != "classify" else 0,
    )


def _computes(args: Any, spec: RunSpec, device: str, *, amp_given: bool) -> tuple[str, ...]:
    """The arithmetic that may be used, first choice first."""
    kind = torch.device(device.partition(":")[0])
    first = choose_precision(
        asked=spec.compute, amp=args.amp, amp_given=amp_given, channels_last=None, device=kind
    ).compute
    return _with_emulated(first, spec, amp_given=amp_given, is_cpu=kind.type == "cpu")


def _with_emulated(first: str, spec: RunSpec, *, amp_given: bool, is_cpu: bool) -> tuple[str, ...]:
    """On a CPU that has no arithmetic in bf16, computing it all the same is slow, and takes less memory than fp32."""
    is_open = is_cpu and spec.compute == "auto" and not amp_given
    return (first, "bf16") if is_open and first == "fp32" else (first,)


def _optimizer(args: Any, num_images: int | None, num_batch: int) -> str:
    """The optimizer by its class's name; for `auto`, the one that upstream will choose."""
    name = {one.lower(): one for one in OPTIMIZERS}.get(str(args.optimizer).lower(), str(args.optimizer))
    if name != "auto":
        return name
    iterations = math.ceil((num_images or 0) / max(num_batch, int(args.nbs))) * int(args.epochs)
    return "MuSGD" if iterations > _MANY_ITERATIONS else "AdamW"
