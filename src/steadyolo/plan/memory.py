"""What a training needs of a device's memory: the words in which it is asked for and answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from steadyolo.plan.fit import Fit

Kind = Literal[
    "weights", "gradients", "optimizer", "ema", "activations", "loss", "input", "workspace", "overhead", "context"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A configuration whose memory is asked for.

    `most_boxes` is the number of boxes in the training picture (a mosaic, as a rule) that has most of them; `val_boxes`
    that of a validation picture; `mean_boxes` what a training picture has on average. `accumulates`: gradients of
    earlier passes are there while one is computed.
    """

    model: str  # a name or path of Ultralytics': .yaml or .pt
    task: str
    imgsz: int
    fit: Fit
    compute: str  # fp32 | bf16 | fp16
    device: str  # cuda | cpu
    optimizer: str  # SGD, AdamW, ...; never auto
    most_boxes: int
    num_classes: int | None = None  # None: the model's own
    accumulates: bool = False
    num_batch_images: int = 0  # in a batch as it arrives; 0: as many as in a pass
    mean_boxes: float | None = None  # None: every picture has the most
    val_batch: int = 0  # images in one pass of validation; 0: none is held beside training
    val_boxes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What is held at the worst moment, in bytes, by kind; and which moment that is."""

    by_kind: Mapping[Kind, int]
    moment: str

    @property
    def num_bytes(self) -> int:
        return sum(self.by_kind.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What a workload is predicted to need while it trains and while it validates."""

    training: Peak
    validation: Peak

    @property
    def num_bytes(self) -> int:
        """What has to be there for the run to live."""
        return max(self.training.num_bytes, self.validation.num_bytes)
