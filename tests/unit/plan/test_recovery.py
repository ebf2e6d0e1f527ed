from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.plan.fit import Fit
from steadyolo.plan.recovery import Again, Misfit, Rewind, Stop, next_fit, next_move


@pytest.mark.parametrize(
    ("faults", "tries", "goes_back"), [(1, 3, True), (3, 3, True), (4, 3, False), (1, 1, True), (2, 1, False)]
)
def test_a_run_goes_back_so_many_times(faults: int, tries: int, goes_back: bool) -> None:
    move = next_move(faults_since_progress=faults, num_tries=tries)
    assert isinstance(move, Rewind if goes_back else Stop)
    if isinstance(move, Stop):
        assert str(faults) in move.why


# --- memory ---


def ladder(misfit: Misfit) -> list[tuple[int, int]]:
    """Images and recomputed layers of all that is tried for a batch, until nothing is left."""
    tried: list[tuple[int, int]] = []
    while isinstance(move := next_fit(misfit, attempt=len(tried) + 1, is_freed=False), Again):
        tried.append((move.fit.num_images, move.fit.num_recomputed))
        misfit = replace(misfit, fit=move.fit)
    return tried


@pytest.mark.parametrize(
    ("planned", "num_images", "num_layers", "num_least", "tried"),
    [
        (8, 8, 22, 1, [(8, 0), (4, 0), (4, 22), (2, 22), (1, 22)]),
        (8, 8, 0, 1, [(8, 0), (4, 0), (2, 0), (1, 0)]),
        (5, 5, 0, 1, [(5, 0), (3, 0), (2, 0), (1, 0)]),
        (64, 3, 0, 1, [(64, 0), (2, 0), (1, 0)]),  # the last batch of an epoch is smaller than a pass may be
        (1, 4, 22, 1, [(1, 0), (1, 22)]),
        (8, 8, 0, 2, [(8, 0), (4, 0), (2, 0)]),
        (1, 1, 0, 2, [(1, 0)]),
    ],
)
def test_what_is_tried_before_giving_up(
    planned: int, num_images: int, num_layers: int, num_least: int, tried: list[tuple[int, int]]
) -> None:
    fit = Fit(num_images=planned)
    misfit = Misfit(fit=fit, planned=fit, num_images=num_images, num_layers=num_layers, num_least=num_least)
    assert ladder(misfit) == tried


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 30), st.integers(0, 30), st.integers(1, 2))
def test_each_move_asks_for_less_until_none_is_left(
    planned: int, num_images: int, num_recomputed: int, num_layers: int, num_least: int
) -> None:
    fit = Fit(num_images=planned, num_recomputed=min(num_recomputed, num_layers))
    misfit = Misfit(fit=fit, planned=fit, num_images=num_images, num_layers=num_layers, num_least=num_least)
    for _ in range(12):
        move = next_fit(misfit, attempt=2, is_freed=False)
        if isinstance(move, Stop):
            break
        assert move.fit.num_images <= misfit.fit.num_images
        assert move.fit.num_recomputed >= misfit.fit.num_recomputed
        assert move.fit != misfit.fit
        assert move.fit.num_images >= min(num_least, planned, num_images)
        misfit = replace(misfit, fit=move.fit)
    assert isinstance(move, Stop)
    assert min(misfit.fit.num_images, num_images) <= num_least
    assert misfit.fit.num_recomputed == num_layers


def test_a_move_is_told_in_a_line() -> None:
    fit = Fit(num_images=2)
    misfit = Misfit(fit=fit, planned=fit, num_images=9, num_layers=5)
    assert next_fit(misfit, attempt=1, is_freed=False) == Again(fit, "freeing what is not in use and doing it again")
    halved = next_fit(misfit, attempt=2, is_freed=False)
    assert halved == Again(Fit(num_images=1), "doing it again with 1 image in a pass")
    last = next_fit(replace(misfit, fit=halved.fit), attempt=3, is_freed=False)
    assert last.action == "doing it again with 1 image, 5 layers recomputed, in a pass"
    assert next_fit(replace(misfit, fit=last.fit), attempt=4, is_freed=False) == Stop(
        "1 image in a pass with 5 layers recomputed already"
    )


def test_freeing_alone_is_not_tried_twice_unless_nothing_else_is_left() -> None:
    fit, least = Fit(num_images=2), Fit(num_images=1)
    misfit = Misfit(fit=fit, planned=fit, num_images=2)
    assert next_fit(misfit, attempt=1, is_freed=True).fit == least
    assert next_fit(replace(misfit, fit=least), attempt=1, is_freed=True).fit == least
    assert isinstance(next_fit(replace(misfit, fit=least), attempt=2, is_freed=True), Stop)
