from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from steadyolo.plan.fit import Fit, FitSchedule

FITS = st.builds(Fit, num_images=st.integers(1, 64), num_recomputed=st.integers(0, 24))
PLACES = st.tuples(st.integers(0, 3), st.integers(0, 3))
CHANGES = st.lists(st.tuples(PLACES, FITS), max_size=6)


def schedule(planned: Fit, changes: list[tuple[tuple[int, int], Fit]]) -> FitSchedule:
    made = FitSchedule(planned=planned)
    for place, fit in changes:
        made = made.changed(*place, fit)
    return made


@given(FITS, CHANGES)
def test_a_schedule_comes_back_from_json_as_it_was(planned: Fit, changes: list[tuple[tuple[int, int], Fit]]) -> None:
    made = schedule(planned, changes)
    assert FitSchedule.from_list(json.loads(json.dumps(made.to_list()))) == made


@given(FITS, CHANGES, PLACES, FITS, PLACES)
def test_a_change_holds_from_its_batch_on_and_changes_nothing_before(
    planned: Fit, changes: list[tuple[tuple[int, int], Fit]], at: tuple[int, int], fit: Fit, asked: tuple[int, int]
) -> None:
    before = schedule(planned, changes)
    after = before.changed(*at, fit)
    assert after.at(*asked) == (fit if asked >= at else before.at(*asked))
    assert after.until(*at) == before.until(*at)


def test_the_planned_fit_holds_first() -> None:
    made = FitSchedule(planned=Fit(num_images=8)).changed(1, 2, Fit(num_images=4, num_recomputed=3))
    assert made.at(1, 1) == Fit(num_images=8)
    assert made.at(1, 2) == made.at(2, 0) == Fit(num_images=4, num_recomputed=3)
    assert made.to_list() == [
        {"num_images": 8, "num_recomputed": 0},
        {"epoch": 1, "batch": 2, "num_images": 4, "num_recomputed": 3},
    ]
