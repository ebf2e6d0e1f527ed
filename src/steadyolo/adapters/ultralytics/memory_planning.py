"""Plans the memory of a training: what it asks for, what there is, and what is chosen.

Written against ultralytics 8.4.190.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ultralytics.nn.tasks import yaml_model_load

from steadyolo.adapters.memory.gpu import gpu_memory
from steadyolo.adapters.memory.host import host_memory
from steadyolo.adapters.ultralytics.estimate_process import EstimateProcess
from steadyolo.adapters.ultralytics.stand_ins import build_model
from steadyolo.adapters.ultralytics.workarounds import quiet_upstream
from steadyolo.errors import UserError
from steadyolo.plan.choosing import Asked, Choice, Estimate, TooLarge, choose, largest_batch
from steadyolo.plan.fit import Fit
from steadyolo.plan.host import HostSide
from steadyolo.plan.memory import Workload
from steadyolo.plan.memory_plan import MemoryPlan
from steadyolo.plan.proposals import Alternatives, propose, refusal
from steadyolo.plan.room import DeviceMemory, Room, room_for
from steadyolo.spec.budget import ByteBudget
from steadyolo.spec.run_spec import RunSpec
from steadyolo.train.recompute import Recompute

_SIZE_SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4)  # of the asked image side, for proposals
_STRIDE_PX = 32
_LEAST_SIDE_PX = 64  # in a smaller image the deepest layers see one pixel, and normalisation needs two values
_MAY_BE_TOO_HIGH = 1.3  # a prediction this far above what is free is beyond doubt
_MOST_IMAGES = 1024  # a larger batch learns no faster


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training as far as its memory goes. `num_batch_images` None: the largest batch that fits, `batch=auto`."""

    model: str
    task: str
    side_px: int  # the largest that an image may have
    least_side_px: int
    num_batch_images: int | None
    nominal_images: int  # Ultralytics' nbs: smaller batches add their gradients up to it
    computes: tuple[str, ...]
    device: str  # cuda, cuda:1, cpu
    optimizer: str
    num_classes: int | None
    most_boxes: int
    mean_boxes: float | None
    val_boxes: int
    boxes_unmixed: int | None  # in a picture without mosaic; None where nobody knows
    num_train_images: int | None
    num_workers: int = 0
    num_window_images: int = 0
    libraries_bytes: int = 0  # what this process holds apart from tensors

    @property
    def device_kind(self) -> str:
        return self.device.partition(":")[0]

    def workload(self, num_images: int) -> Workload:
        """A whole batch of `num_images` at once, in the first choice of arithmetic."""
        return Workload(
            model=self.model,
            task=self.task,
            imgsz=self.side_px,
            fit=Fit(num_images=num_images),
            compute=self.computes[0],
            device=self.device_kind,
            optimizer=self.optimizer,
            most_boxes=self.most_boxes,
            mean_boxes=self.mean_boxes,
            num_classes=self.num_classes,
            num_batch_images=num_images,
            accumulates=round(self.nominal_images / num_images) > 1,
            val_batch=num_images if self.task == "obb" else 2 * num_images,  # as upstream's trainers do
            val_boxes=self.val_boxes,
        )


def plan_memory(training: Training, spec: RunSpec, *, is_here: bool, num_layers: int) -> MemoryPlan:
    """The plan of a training whose model has `num_layers` that can be computed again.

    `is_here`: it will run on this machine, so that a budget cannot be more than the device has free. Draws nothing from
    generators. Raises: UserError for a model that does not build, and where nothing that keeps what was asked fits; the
    error proposes what would.
    """
    wanted = is_here or not isinstance(spec.memory_budget, ByteBudget)
    room = room_for(spec.memory_budget, device_memory(training.device) if wanted else None)
    with _weighing(beside=is_here) as estimate:
        weigh = _of_the_process(training, estimate) if training.device_kind == "cpu" else estimate
        return _planned(training, spec, room, num_layers, weigh)


@contextmanager
def _weighing(*, beside: bool) -> Iterator[Estimate]:
    """What estimates: `beside` a training in another process, else in this one."""
    if beside:
        with EstimateProcess() as estimate:
            yield estimate
        return
    # Tracing imports torch's compiler, which takes longer than all else: not in runs that plan nothing.
    from steadyolo.adapters.ultralytics.estimate import estimate as weigh

    with unchanged_randomness():
        yield weigh


def _planned(training: Training, spec: RunSpec, room: Room | None, num_layers: int, weigh: Estimate) -> MemoryPlan:
    asked = Asked(
        workload=training.workload(training.num_batch_images or 1),
        budget_bytes=room.num_bytes if room else 0,
        computes=training.computes,
        num_layers=num_layers,
        num_least_images=1 if training.least_side_px >= _LEAST_SIDE_PX else 2,
        num_pinned_images=spec.num_micro_batch_images,
        num_pinned_layers=spec.num_recomputed_layers,
    )
    if room is None:
        return _as_asked(training, asked, weigh)
    found = choose(asked, weigh) if training.num_batch_images else _largest(training, asked, weigh)
    if isinstance(found, TooLarge):
        is_hopeless = found.estimate.num_bytes > room.num_bytes * _MAY_BE_TOO_HIGH
        if room.is_given or is_hopeless or not training.num_batch_images:
            raise refusal(found, list(propose(found, asked, _alternatives(training), weigh)), room)
        found = Choice(
            workload=found.closest,
            estimate=found.estimate,
            reasons=(f"{found.why}: predictions may be too high, so the least that is possible is tried",),
        )
    return MemoryPlan(
        workload=found.workload,
        num_batch_images=training.num_batch_images or found.workload.fit.num_images,
        num_layers=num_layers,
        estimate=found.estimate,
        room=room,
        fits=found.estimate.num_bytes <= room.num_bytes,
        reasons=found.reasons,
    )


def _as_asked(training: Training, asked: Asked, weigh: Estimate) -> MemoryPlan:
    """What was asked for, weighed: there is no memory to fit it into."""
    if training.num_batch_images is None:
        raise UserError(
            "batch=auto needs to know how much memory there is, and no such device is here",
            remedy="give memory.budget=24GiB, or a number of images such as batch=16",
        )
    fit = Fit(
        num_images=min(asked.num_pinned_images or training.num_batch_images, training.num_batch_images),
        num_recomputed=min(asked.num_pinned_layers or 0, asked.num_layers),
    )
    accumulates = asked.workload.accumulates or fit.num_images < training.num_batch_images
    workload = replace(asked.workload, fit=fit, accumulates=accumulates)
    return MemoryPlan(
        workload=workload,
        num_batch_images=training.num_batch_images,
        num_layers=asked.num_layers,
        estimate=weigh(workload),
        room=None,
        fits=None,
        reasons=("nothing is chosen: no such device is here, and no memory.budget is given",),
    )


def _largest(training: Training, asked: Asked, weigh: Estimate) -> Choice | TooLarge:
    num_most = min(_MOST_IMAGES, training.num_train_images or _MOST_IMAGES)
    return largest_batch(asked, training.workload, weigh, num_most=num_most)


def _of_the_process(training: Training, weigh: Estimate) -> Estimate:
    """An estimate of tensors as one of the whole process, which is what the limits of a host count."""
    side = HostSide(
        libraries_bytes=training.libraries_bytes,
        num_samples=training.num_train_images or training.num_window_images,
        num_workers=training.num_workers,
        num_window_images=training.num_window_images,
    )
    return lambda workload: side.added_to(weigh(workload), workload)


def _alternatives(training: Training) -> Alternatives:
    sizes = {int(training.side_px * share) // _STRIDE_PX * _STRIDE_PX for share in _SIZE_SHARES}
    unmixed = training.boxes_unmixed
    return Alternatives(
        sizes_px=tuple(sorted((size for size in sizes if size >= _LEAST_SIDE_PX), reverse=True)),
        models=tuple(smaller_models(training.model)),
        num_boxes_unmixed=unmixed if unmixed is not None and unmixed < training.most_boxes else None,
    )


def smaller_models(model: str) -> list[str]:
    """Ultralytics' models of the same family, each smaller than the one before."""
    path = Path(model)
    named = re.fullmatch(r"(yolo(?:v|e-v|e-)?\d+)([a-z])(.*)", path.name)
    if named is None or path.parent != Path("."):
        return []
    try:
        scales = yaml_model_load(path.with_suffix(".yaml").name).get("scales", {})
    except (OSError, ValueError):
        return []
    letters = list(scales)  # smallest first
    known = letters[: letters.index(named[2])] if named[2] in letters else []
    return [f"{named[1]}{letter}{named[3]}" for letter in reversed(known)]


def num_recomputable(model: str, task: str, num_classes: int | None) -> int:
    """How many of a model's layers can be computed again. Raises: UserError for a model that does not build."""
    with unchanged_randomness(), quiet_upstream():
        return Recompute(build_model(model, task, num_classes)).num_layers_max


def device_memory(device: str) -> DeviceMemory | None:
    """What the device has; None where it is not here."""
    if device == "cpu":
        return host_memory()
    return gpu_memory(int(device.partition(":")[2] or 0))


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """What is drawn within, as for a model's first weights, is not drawn for those who come after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
