"""`Fitting`: puts batches through the network in the way that fits, and remembers which way that was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from steadyolo.adapters.ultralytics.criterion import split_batch
from steadyolo.plan.fit import Fit, FitSchedule
from steadyolo.plan.recovery import Misfit
from steadyolo.state.run_state import Cursor


class Recomputes(Protocol):
    """A network, some of whose layers can be computed again in the backward pass."""

    @property
    def num_layers_max(self) -> int: ...
    def set(self, num_layers: int) -> None: ...


class Fitting:
    """Applies a schedule of fits. `keep` is handed each new one before anything is computed with it."""

    def __init__(
        self,
        schedule: FitSchedule,
        *,
        recompute: Recomputes,
        overlap_masks: bool,
        num_least: int,
        keep: Callable[[FitSchedule], None],
    ) -> None:
        self._schedule = schedule
        self._recompute = recompute
        self._overlap_masks = overlap_masks
        self._num_least = num_least
        self._keep = keep
        self._fit = Fit(num_images=0)  # in force
        self._before: tuple[Cursor, FitSchedule] | None = None  # the newest change, and what it changed

    def at(self, cursor: Cursor) -> Fit:
        """The fit that holds at a batch."""
        return self._schedule.at(cursor.epoch, cursor.batch)

    def begin(self, cursor: Cursor) -> None:
        """Put the fit in force that holds at a batch."""
        fit = self.at(cursor)
        if fit.num_recomputed != self._fit.num_recomputed:
            self._recompute.set(fit.num_recomputed)
        self._fit = fit

    def split(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """The parts in which a batch goes through the network."""
        return split_batch(batch, self._fit.num_images, overlap_masks=self._overlap_masks, num_least=self._num_least)

    def misfit(self, num_images: int) -> Misfit:
        """What did not fit, and what there is left to try, for a batch of so many images."""
        return Misfit(
            fit=self._fit,
            planned=self._schedule.planned,
            num_images=num_images,
            num_least=self._num_least,
            num_layers=self._recompute.num_layers_max,
        )

    def adopt(self, fit: Fit, cursor: Cursor) -> None:
        """`fit` holds from `cursor` on."""
        if self._before is None or self._before[0] != cursor:
            self._before = cursor, self._schedule
        self._set(self._schedule.changed(cursor.epoch, cursor.batch, fit))

    def take_back(self, cursor: Cursor) -> None:
        """Forget what was adopted at `cursor`, where nothing fitted."""
        if self._before is not None and self._before[0] == cursor:
            self._set(self._before[1])

    def _set(self, schedule: FitSchedule) -> None:
        self._keep(schedule)
        self._schedule = schedule


def schedule_of(
    name: str, planned: Fit, *, start: tuple[Mapping[str, Any], Cursor] | None, plan_file: Path
) -> FitSchedule:
    """The schedule `name` of a run that begins with `planned` or, from the plan and the place in `start`, goes on.

    The run's own plan knows faults that came after the checkpoint: batches are done again as they were done then. It
    does not count where it knows less (a copy may be older than its checkpoint).
    """
    if start is None:
        return FitSchedule(planned=planned)
    plan, cursor = start
    before = FitSchedule.from_list(plan[name]) if name in plan else FitSchedule(planned=planned)
    try:
        later = FitSchedule.from_list(json.loads(plan_file.read_bytes())[name])
    except (OSError, ValueError, LookupError, TypeError):
        return before
    place = cursor.epoch, cursor.batch
    return later if later.until(*place) == before.until(*place) else before
