"""`trace`: one training step and one validation pass of a real model, weighed without being computed.

Written against ultralytics 8.4.190. The model, its criterion, the optimizer, the EMA and the step are those of a run;
only the tensors are fake. What depends on what a network will predict is assumed, on the careful side: each object
has as many matched anchors as its assigner picks, and each anchor inside a box of a usual size is a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torchvision  # noqa: F401  # where it is imported upstream takes its kernel for NMS, as validators do
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import nms, ops
from ultralytics.utils.torch_utils import ModelEMA

from steadyolo.adapters.ultralytics.assigner import ACCELERATOR_LIMITS
from steadyolo.adapters.ultralytics.criterion import Criterion, assigners_of, bounded_criterion, split_batch
from steadyolo.adapters.ultralytics.optimizers import fused
from steadyolo.adapters.ultralytics.stand_ins import Assumed, build_model, make_labels
from steadyolo.adapters.ultralytics.workarounds import patient_nms, quiet_upstream
from steadyolo.plan.memory import Workload
from steadyolo.plan.trace import BEFORE, MATCHING, Move, Trace
from steadyolo.train.cpu_workspace import cpu_workspace
from steadyolo.train.cuda_casts import CudaCasts
from steadyolo.train.known_values import KnownValues
from steadyolo.train.precision import Precision
from steadyolo.train.recompute import Recompute
from steadyolo.train.scale import Scale, no_workspace
from steadyolo.train.step import Stepper

_ENOUGH_PARTS = 2  # from the second on, each part of what is done in parts finds the same held


def trace(workload: Workload) -> Trace:
    """What a step and a validation pass take and give back. Takes seconds, whatever the model and the batch.

    Raises: UserError when the model cannot be built.
    """
    with quiet_upstream(), patient_nms():
        rehearsal = _Rehearsal(workload)
        with rehearsal.stage():
            training = rehearsal.train()
            validation = rehearsal.validate() if workload.val_batch else ()
    return Trace(workload=workload, training=training, validation=validation)


class _Rehearsal:
    """A run's parts made for real, then with all their tensors fake."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._precision = Precision(workload.compute, channels_last=True)
        model = build_model(workload.model, workload.task, workload.num_classes)
        self._model = model.to(memory_format=torch.channels_last)
        self._ema = ModelEMA(self._model)
        Recompute(self._model).set(workload.fit.num_recomputed)
        self._criterion = Criterion(self._model)
        bounded_criterion(self._ema.ema)
        boxes = workload.most_boxes if workload.mean_boxes is None else workload.mean_boxes
        self._assumed = Assumed(boxes_of_image=boxes, val_boxes=workload.val_boxes)
        self._num_images = workload.num_batch_images or workload.fit.num_images
        self._val_side_px = workload.imgsz
        if workload.task != "classify":  # upstream pads validation pictures by half a stride on each side
            self._val_side_px += int(self._model.stride.max())  # type: ignore[union-attr,operator]
        self._labels = make_labels(
            self._model,
            workload.task,
            num_images=self._num_images,
            side_px=workload.imgsz,
            most_boxes=workload.most_boxes,
            mean_boxes=workload.mean_boxes,
        )
        self._val_labels = make_labels(
            self._model,
            workload.task,
            num_images=workload.val_batch,
            side_px=self._val_side_px,
            most_boxes=workload.val_boxes,
            mean_boxes=None,
        )
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._values = KnownValues(self._assumed.count_true)
        self._scale = Scale(cpu_workspace if workload.device == "cpu" else no_workspace)
        for module in (self._model, self._ema.ema):
            _make_fake(module, self._fakes)
        self._hooks()

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Within it tensors are fake, weighed, and known where they can be."""
        with ExitStack() as stack:
            for mode in (self._fakes, self._scale, self._values):
                stack.enter_context(mode)
            if self._workload.device == "cuda":
                stack.enter_context(CudaCasts())
            yield

    def _hooks(self) -> None:
        for module in (self._model, self._ema.ema):
            prefix = "" if module is self._model else "validation, "
            for i, layer in enumerate(module.model):  # type: ignore[union-attr,arg-type]
                told = _Teller(self._scale, prefix, f"layer {i} ({type(layer).__name__})")
                layer.register_forward_pre_hook(told.before)
                layer.register_forward_hook(told.after)
            for assigner in assigners_of(module.criterion):
                assigner.register_forward_pre_hook(self._assumed.assigning)
                assigner.register_forward_hook(self._assumed.assigned)
                assigner.most_pieces = _ENOUGH_PARTS  # type: ignore[assignment]
                if self._workload.device == "cuda":
                    assigner.limits = ACCELERATOR_LIMITS  # type: ignore[assignment]
                assigner.register_forward_pre_hook(lambda *_, at=prefix: self._scale.at(at + MATCHING, "loss"))
                assigner.register_forward_hook(lambda *_, at=prefix: self._scale.at(f"{at}loss", "loss"))

    # -- training --------------------------------------------------------------------------------------------------

    def train(self) -> tuple[Move, ...]:
        """A step after the first: the optimizer and the EMA have what they keep."""
        scale, workload = self._scale, self._workload
        optimizer = self._optimizer = self._build_optimizer()
        scaler = torch.amp.GradScaler("cpu", enabled=workload.compute == "fp16")
        stepper = Stepper(
            self._model,
            optimizer,
            criterion=self._loss,
            split=self._split,
            precision=self._precision,
            scaler=scaler,
            branch_of=lambda name: "one2one" if ".one2one_" in name else "main",
        )
        scale.at(BEFORE, "weights")
        scale.name([*self._model.parameters(), *self._model.buffers()], "weights")
        self._take_gradients()
        optimizer.step()
        scale.name(
            [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)], "optimizer"
        )
        optimizer.zero_grad()
        scale.name([*self._ema.ema.parameters(), *self._ema.ema.buffers()], "ema")
        self._ema.update(self._model)
        if workload.accumulates:
            self._take_gradients()
        scale.restart()
        batch = self._batch(self._num_images, workload.imgsz, self._labels)
        outcome = stepper.accumulate(batch)
        scale.name(self._gradients(), "gradients")
        scale.at("update", "workspace")
        stepper.update()
        scale.at("EMA", "workspace")
        self._ema.update(self._model)
        moves = scale.moves()
        del outcome, batch
        return moves

    def _build_optimizer(self) -> torch.optim.Optimizer:
        # Upstream's method asks its trainer for nothing unless the optimizer is to be chosen.
        made = BaseTrainer.build_optimizer(None, self._model, name=self._workload.optimizer)
        optimizer: torch.optim.Optimizer = fused(made)
        if self._workload.device == "cuda":
            for group in optimizer.param_groups:
                group["foreach"] = None if group.get("fused") else True  # as torch chooses there
        return optimizer

    def _take_gradients(self) -> None:
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        self._scale.name(self._gradients(), "gradients")

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._model.parameters() if p.grad is not None]

    def _split(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return split_batch(batch, self._workload.fit.num_images)[:_ENOUGH_PARTS]

    def _loss(self, preds: Any, batch: dict[str, Any]) -> Any:
        self._scale.at("loss", "loss")
        loss = self._criterion(preds, batch)
        self._scale.at("backward", "activations")
        return loss

    def _batch(self, num_images: int, side_px: int, labels: dict[str, Tensor]) -> dict[str, Any]:
        """A batch as a loader gives it, brought to the device and made floating point as trainers do."""
        self._scale.at("batch", "input")
        pictures = torch.empty(num_images, 3, side_px, side_px, dtype=torch.uint8)
        batch: dict[str, Any] = {
            name: self._values.know(torch.empty(value.shape, dtype=value.dtype), value)
            for name, value in labels.items()
        }
        if self._workload.device == "cpu":
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        batch["img"] = pictures.float() / 255
        return batch

    # -- validation ------------------------------------------------------------------------------------------------

    def validate(self) -> tuple[Move, ...]:
        """A batch of the EMA's scoring: predictions, loss, and what is made of the predictions of each picture."""
        scale, workload = self._scale, self._workload
        scale.restart()
        model = self._ema.ema
        batch = self._batch(workload.val_batch, self._val_side_px, self._val_labels)
        half = workload.device == "cuda" and workload.compute != "fp32"
        with torch.no_grad():
            if half:
                batch["img"] = batch["img"].half()
            with torch.autocast("cpu", dtype=torch.float16, enabled=half):
                preds = model(batch["img"])
                scale.at("validation, loss", "loss")
                loss = model.loss(batch, preds)
            scale.at("validation, boxes", "workspace")
            self._postprocess(preds)
        moves = scale.moves()
        del preds, loss, batch
        return moves

    def _postprocess(self, preds: Any) -> None:
        """As upstream's validators do with the predictions of a batch."""
        task, args = self._workload.task, self._ema.ema.args
        if task == "classify":
            return
        self._assumed.score(rotated=task == "obb")
        found = nms.non_max_suppression(
            preds[0],
            conf_thres=0.01 if task == "obb" else 0.001,
            iou_thres=args.iou,
            nc=0 if task == "detect" else self._ema.ema.model[-1].nc,
            multi_label=True,
            max_det=args.max_det,
            rotated=task == "obb",
        )
        if task == "segment":
            proto = preds[0][1] if isinstance(preds[0], tuple) else preds[1]
            shape = [4 * side for side in proto.shape[2:]]
            _ = [ops.process_mask(proto[i], boxes[:, 6:], boxes[:, :4], shape) for i, boxes in enumerate(found)]


class _Teller:
    """Hooks of a layer: they tell what is being done."""

    def __init__(self, scale: Scale, prefix: str, where: str) -> None:
        self._scale = scale
        self._prefix = prefix
        self._where = where

    def before(self, *_: Any) -> None:
        again = torch._C._current_graph_task_id() >= 0  # within a backward pass
        words = f"backward, {self._where} computed again" if again else f"{self._prefix}forward, {self._where}"
        self._scale.at(words, "activations")

    def after(self, layer: nn.Module, args: Any, out: Any) -> None:
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(self._backward)

    def _backward(self, _: Tensor) -> None:
        self._scale.at(f"backward, {self._where}", "activations")


def _make_fake(module: nn.Module, fakes: FakeTensorMode) -> None:
    """Replace a module's parameters and buffers by ones without memory."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = fakes.from_tensor(parameter.detach())
                part._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fakes.from_tensor(buffer)
