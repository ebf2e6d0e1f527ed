"""Ultralytics' losses, taken apart just far enough to normalise over a batch that is computed in parts.

Written against ultralytics 8.4.190, whose losses return `loss x images / normaliser(part)`: the parts of a batch do not
add up to the batch unless the normaliser is the batch's. Box, class, DFL and angle terms are divided by the sum of
target scores, mask and keypoint terms by the number of matched anchors, semantic and classification terms by images.
Where all terms that teach a parameter share one normaliser (detect, obb, classify), gradients are scaled once at the
end; elsewhere the normalisers are counted first, in a pass of their own. YOLO26's pose is the one that stays inexact:
its likelihood term is a mean over the keypoints in sight, counted inside the loss (`docs/guide.md` has the size of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.loss import E2EDetectLoss, E2ELoss, v8ClassificationLoss

from steadyolo.adapters.ultralytics.assigner import bound_assigners

_PER_INSTANCE = frozenset({"cls", "bboxes", "keypoints", "segments", "obb"})


@dataclass(frozen=True, slots=True)
class BranchLoss:
    """One head's loss over a part of a batch: `scale x summed / normaliser`; without `scale` (None), a mean."""

    total: Tensor
    normaliser: Tensor
    mass: Tensor  # what adds up, over the parts of a batch, to the batch's normaliser (which is at least 1)
    scale: float | None


@dataclass(frozen=True, slots=True)
class PartLoss:
    """Loss of a part of a batch, by branch, and its items for display.

    A branch is what shares a normaliser: `main`, and `one2one` for end-to-end heads; with `.matched` or `.images`
    behind it for terms that are not divided by the sum of target scores. `branch_of_item` tells an item's branch.
    """

    branches: Mapping[str, BranchLoss]
    items: dict[str, Tensor]
    branch_of_item: Mapping[str, str]


_SUFFIXES = {
    "seg_loss": ".matched",
    "pose_loss": ".matched",
    "kobj_loss": ".matched",
    "rle_loss": ".matched",
    "sem_loss": ".images",
}


def bounded_criterion(model: nn.Module) -> Any:
    """`model`'s own criterion, made if there is none yet, with target assignment that is bounded in memory."""
    if getattr(model, "criterion", None) is None:
        model.criterion = model.init_criterion()  # type: ignore[operator]
    bound_assigners(model.criterion)
    return model.criterion


def _heads_of(criterion: Any) -> tuple[Any, ...]:
    if isinstance(criterion, E2ELoss | E2EDetectLoss):
        return criterion.one2many, criterion.one2one
    return (criterion,)


def assigners_of(criterion: Any) -> tuple[nn.Module, ...]:
    """What matches anchors with boxes in a criterion of Ultralytics', in the order of its heads."""
    found = (getattr(head, "assigner", None) for head in _heads_of(criterion))
    return tuple(assigner for assigner in found if isinstance(assigner, nn.Module))


class Criterion:
    """Calls a model's own criterion and reports what it divided by."""

    def __init__(self, model: nn.Module) -> None:
        self._criterion = bounded_criterion(model)
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}
        for assigner in assigners_of(self._criterion):
            assigner.register_forward_hook(self._remember)

    def _remember(self, assigner: nn.Module, _: Any, output: tuple[Tensor, ...]) -> None:
        self._sums[id(assigner)] = output[2].sum(), output[3].sum()  # target scores, and matched anchors

    @property
    def names(self) -> tuple[str, ...]:
        """What the loss items are called, known before the first batch."""
        return tuple(getattr(_heads_of(self._criterion)[-1], "loss_names", ("loss",)))

    def after_epochs(self, num_closed: int) -> None:
        """Put a criterion that changes from epoch to epoch (end-to-end heads) where `num_closed` epochs had it."""
        if hasattr(self._criterion, "updates") and num_closed:
            self._criterion.updates = num_closed - 1
            self._criterion.update()

    @property
    def counts_first(self) -> bool:
        """Whether terms with different normalisers teach the same parameters: these must be known beforehand."""
        return any(name in _SUFFIXES for name in self.names)

    def __call__(self, preds: Any, batch: dict[str, Any]) -> PartLoss:
        """Loss of `batch` (a whole one or a part)."""
        num_images = batch["img"].shape[0]
        if isinstance(self._criterion, E2ELoss):
            crit = self._criterion
            preds = crit.one2many.parse_output(preds)
            many, _ = crit.one2many.loss(preds["one2many"], batch)
            one, items = crit.one2one.loss(preds["one2one"], batch)
            branches = self._branches("main", many * crit.o2m, crit.one2many, num_images)
            branches |= self._branches("one2one", one * crit.o2o, crit.one2one, num_images)
            return PartLoss(branches, items, {name: "one2one" + _SUFFIXES.get(name, "") for name in items})
        total, items = self._criterion(preds, batch)
        branches = self._branches("main", total, _heads_of(self._criterion)[0], num_images)
        return PartLoss(branches, items, {name: "main" + _SUFFIXES.get(name, "") for name in items})

    def _branches(self, head_name: str, total: Tensor, head: Any, num_images: int) -> dict[str, BranchLoss]:
        images = torch.tensor(float(num_images), device=total.device)
        if isinstance(head, v8ClassificationLoss):
            return {head_name: BranchLoss(total, images, images, None)}
        scores, matched = self._sums[id(head.assigner)]
        masses = {"": scores, ".matched": matched, ".images": images}
        suffixes = [_SUFFIXES.get(name, "") for name in head.loss_names]
        return {
            head_name + suffix: BranchLoss(
                total[[i for i, of in enumerate(suffixes) if of == suffix]].sum(),
                masses[suffix].clamp(min=1),  # as the losses themselves do
                masses[suffix],
                float(num_images),
            )
            for suffix in dict.fromkeys(suffixes)
        }


def split_batch(
    batch: dict[str, Any], num_images: int, *, overlap_masks: bool = True, num_least: int = 1
) -> list[dict[str, Any]]:
    """Parts of `batch` of at most `num_images` images each, in order; instances go with their images.

    No part has fewer than `num_least` images, unless the batch has: one may then have `num_images` and one more.

    `overlap_masks` says that masks are one picture per image with its instances numbered, not one per instance.
    """
    total = batch["img"].shape[0]
    count = min(-(-total // num_images), max(total // num_least, 1))
    if count == 1:
        return [batch]
    per_instance = set() if "batch_idx" not in batch else _PER_INSTANCE | (set() if overlap_masks else {"masks"})
    edges = [total * i // count for i in range(count + 1)]  # even parts: a lone image has no statistics of its own
    parts = []
    for start, stop in pairwise(edges):
        images = slice(start, stop)
        part: dict[str, Any] = {}
        mine = None
        if "batch_idx" in batch:
            owner = batch["batch_idx"].view(-1)
            mine = (owner >= images.start) & (owner < images.stop)
        for name, value in batch.items():
            if name == "batch_idx":
                part[name] = value[mine] - images.start
            elif name in per_instance:
                part[name] = value[mine]
            elif isinstance(value, Tensor | list | tuple) and len(value) == total:
                part[name] = value[images]
            else:
                part[name] = value
        parts.append(part)
    return parts
