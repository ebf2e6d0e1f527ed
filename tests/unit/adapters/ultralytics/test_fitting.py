"""Which fit a run uses at which batch, and what it knows of that when it goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from steadyolo.adapters.ultralytics.fitting import Fitting, schedule_of
from steadyolo.plan.fit import Fit, FitSchedule
from steadyolo.plan.recovery import Misfit
from steadyolo.state.run_state import Cursor

PLANNED = FitSchedule(planned=Fit(num_images=8))
EARLY, LATE = Cursor(epoch=0, batch=1), Cursor(epoch=1, batch=2)


@dataclass
class Layers:
    """A network whose layers can be recomputed."""

    num_layers_max: int = 5
    set_to: list[int] = field(default_factory=list)

    def set(self, num_layers: int) -> None:
        self.set_to.append(num_layers)


def fitting(schedule: FitSchedule = PLANNED, **given: Any) -> tuple[Fitting, list[FitSchedule]]:
    kept: list[FitSchedule] = []
    return Fitting(
        schedule, **{"recompute": Layers(), "overlap_masks": True, "num_least": 1, "keep": kept.append, **given}
    ), kept


def sizes(made: Fitting, num_images: int) -> list[int]:
    return [len(part["img"]) for part in made.split({"img": torch.zeros(num_images, 3, 2, 2)})]


def test_batches_go_through_the_network_as_the_schedule_says() -> None:
    layers = Layers()
    made, _ = fitting(PLANNED.changed(0, 1, Fit(num_images=3, num_recomputed=5)), recompute=layers)
    made.begin(Cursor(epoch=0, batch=0))
    assert (sizes(made, 8), layers.set_to) == ([8], [])
    made.begin(EARLY)
    assert (sizes(made, 8), layers.set_to) == ([2, 3, 3], [5])
    made.begin(LATE)
    assert layers.set_to == [5], "it is set already"
    made.begin(Cursor(epoch=0, batch=0))  # the run went back
    assert (sizes(made, 8), layers.set_to) == ([8], [5, 0])


def test_what_is_adopted_is_kept_first_and_can_be_taken_back() -> None:
    made, kept = fitting()
    made.adopt(Fit(num_images=4), EARLY)
    made.adopt(Fit(num_images=4), LATE)
    made.adopt(Fit(num_images=2), LATE)
    assert [schedule.at(1, 2).num_images for schedule in kept] == [4, 4, 2]
    assert made.at(LATE) == Fit(num_images=2)
    made.take_back(LATE)
    assert kept[-1] == PLANNED.changed(0, 1, Fit(num_images=4))
    made.take_back(EARLY)
    assert made.at(EARLY) == Fit(num_images=4), "what fitted stays"


def test_a_misfit_says_what_is_left_to_try() -> None:
    made, _ = fitting(recompute=Layers(), num_least=2)
    made.begin(EARLY)
    fit = Fit(num_images=8)
    assert made.misfit(6) == Misfit(fit=fit, planned=fit, num_images=6, num_least=2, num_layers=5)


@pytest.mark.parametrize(("num_images", "parts"), [(8, [2, 2, 2, 2]), (7, [2, 2, 3]), (3, [3]), (2, [2]), (1, [1])])
def test_no_part_is_smaller_than_the_least(num_images: int, parts: list[int]) -> None:
    made, _ = fitting(FitSchedule(planned=Fit(num_images=2)), num_least=2)
    made.begin(EARLY)
    assert sizes(made, num_images) == parts


# --- going on ---


def known(schedule: FitSchedule, file: Path) -> None:
    file.write_text(json.dumps({"fits": schedule.to_list()}))


def resumed(checkpoint: FitSchedule | None, cursor: Cursor, file: Path) -> FitSchedule:
    plan = {} if checkpoint is None else {"fits": checkpoint.to_list()}
    return schedule_of("fits", Fit(num_images=8), start=(plan, cursor), plan_file=file)


def test_a_new_run_begins_as_planned_whatever_lies_there(tmp_path: Path) -> None:
    known(PLANNED.changed(0, 1, Fit(num_images=1)), tmp_path / "plan.json")
    assert schedule_of("fits", Fit(num_images=8), start=None, plan_file=tmp_path / "plan.json") == PLANNED


def test_faults_after_the_checkpoint_are_known_from_the_runs_plan(tmp_path: Path) -> None:
    later = PLANNED.changed(0, 1, Fit(num_images=4)).changed(1, 2, Fit(num_images=2))
    known(later, tmp_path / "plan.json")
    assert resumed(PLANNED.changed(0, 1, Fit(num_images=4)), LATE, tmp_path / "plan.json") == later
    assert resumed(PLANNED, EARLY, tmp_path / "plan.json") == later


def test_a_plan_that_is_older_than_the_checkpoint_does_not_count(tmp_path: Path) -> None:
    checkpoint = PLANNED.changed(0, 1, Fit(num_images=4))
    known(PLANNED, tmp_path / "plan.json")
    assert resumed(checkpoint, LATE, tmp_path / "plan.json") == checkpoint


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"fits": []}', '{"fits": [{"num": 1}]}', '{"fits": 3}'])
def test_a_plan_that_cannot_be_read_does_not_count(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    checkpoint = PLANNED.changed(0, 1, Fit(num_images=4))
    assert resumed(checkpoint, LATE, tmp_path / "plan.json") == checkpoint


def test_a_checkpoint_of_a_version_that_knew_of_no_fits_is_read(tmp_path: Path) -> None:
    assert resumed(None, LATE, tmp_path / "plan.json") == PLANNED
