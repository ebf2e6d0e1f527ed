"""`Scoring`: validates in passes of as many images as there is memory for.

Written against ultralytics 8.4.190. A validation batch that is taken apart keeps its images' shapes, which rectangular
validation chooses batch by batch, and its losses, which are divided batch by batch: only the memory differs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler
from ultralytics.data.build import InfiniteDataLoader, seed_worker

from steadyolo.adapters.ultralytics.criterion import Criterion
from steadyolo.plan.fit import Fit, FitSchedule
from steadyolo.plan.recovery import Again, Misfit, Stop, next_fit
from steadyolo.train.out_of_memory import OutOfMemory, forget_attempt, free_memory, told_apart
from steadyolo.train.step import Tally

T = TypeVar("T")


class Scoring:
    """Runs a validator, again with fewer images in a pass where an allocation fails.

    `keep` is handed each new schedule before it is used; `tell` hears of each fault: its text, the epoch, the attempt
    and the move.
    """

    def __init__(
        self,
        validator: Any,
        model: nn.Module,
        schedule: FitSchedule,
        *,
        keep: Callable[[FitSchedule], None],
        tell: Callable[[str, int, int, Again | Stop], None],
    ) -> None:
        self._validator = validator
        self._model = model  # whose loss is asked for while training goes on
        self._schedule = schedule
        self._keep = keep
        self._tell = tell
        self._like = validator.dataloader
        self._whole = _batches(self._like)
        self._in_use = schedule.planned
        self._criterion: Criterion | None = None

    def __call__(self, score: Callable[[], T], epoch: int) -> T | Stop:
        """What `score` returns; or why there is not enough memory for it, even for one image after the other."""
        attempt = 0
        while True:
            fit = self._schedule.at(epoch)
            if fit != self._in_use:
                self._take_apart(fit)
            try:
                with self._whole_losses(fit), told_apart(lambda: "validation"):
                    return score()
            except OutOfMemory as error:
                fault = error
            forget_attempt(fault)
            free_memory()
            attempt += 1
            num_images = max(len(batch) for batch in self._whole)
            misfit = Misfit(fit=fit, planned=self._schedule.planned, num_images=num_images)
            move = next_fit(misfit, attempt=attempt, is_freed=False)
            self._tell(fault.error, epoch, attempt, move)
            if isinstance(move, Stop):
                return Stop(f"{move.why} ({fault.error})")
            if move.fit != fit:
                self._schedule = self._schedule.changed(epoch, 0, move.fit)
                self._keep(self._schedule)
            self._take_apart(move.fit)  # the failed attempt left a loader in the middle of its pictures

    def _take_apart(self, fit: Fit) -> None:
        """Let the validator read its batches in parts of as many images as `fit` says."""
        self._validator.dataloader.close()
        like, self._in_use = self._like, fit
        self._validator.dataloader = InfiniteDataLoader(
            dataset=like.dataset,
            batch_sampler=_Parts(self._whole, fit.num_images),
            num_workers=like.num_workers,
            prefetch_factor=like.prefetch_factor,
            pin_memory=like.pin_memory,
            collate_fn=like.collate_fn,
            worker_init_fn=seed_worker,
            generator=like.generator,
        )

    @contextlib.contextmanager
    def _whole_losses(self, fit: Fit) -> Iterator[None]:
        """Have the losses of whole batches reported while they are read in parts."""
        parts = _Parts(self._whole, fit.num_images)
        if len(parts) == len(self._whole) or not hasattr(self._model, "init_criterion"):
            yield
            return
        self._criterion = self._criterion or Criterion(self._model)
        self._model.loss = _WholeLoss(self._criterion, parts)  # type: ignore[assignment]
        try:
            yield
        finally:
            del self._model.loss


def _batches(loader: Any) -> list[Sequence[int]]:
    """The positions in each batch of an upstream loader. Where it draws an order, which changes no score: in order."""
    drawn = isinstance(loader.sampler, RandomSampler)
    positions = range(len(loader.dataset)) if drawn else list(loader.sampler)
    return [positions[i : i + loader.batch_size] for i in range(0, len(positions), loader.batch_size)]


class _Parts:
    """The positions in each batch, taken apart."""

    def __init__(self, whole: Sequence[Sequence[int]], num_images: int) -> None:
        self._parts: list[Sequence[int]] = []
        self.is_last: list[bool] = []  # of its batch
        self.num_whole = len(whole)
        for batch in whole:
            count = -(-len(batch) // num_images)
            edges = [len(batch) * i // count for i in range(count + 1)]
            self._parts += [batch[start:stop] for start, stop in pairwise(edges)]
            self.is_last += [False] * (count - 1) + [True]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(self._parts)


class _WholeLoss:
    """Stands in for a model's loss: items of whole batches, in such units that the mean over all parts is theirs."""

    def __init__(self, criterion: Criterion, parts: _Parts) -> None:
        self._criterion = criterion
        self._is_last = iter(parts.is_last)
        self._units = len(parts) / parts.num_whole
        self._tally = Tally()

    def __call__(self, batch: dict[str, Any], preds: Any) -> tuple[None, Mapping[str, Tensor]]:
        part = self._criterion(preds, batch)
        self._tally.add(part)
        if not next(self._is_last):
            return None, {name: torch.zeros_like(item) for name, item in part.items.items()}
        whole, self._tally = self._tally.outcome().items, Tally()
        return None, {name: item * self._units for name, item in whole.items()}
