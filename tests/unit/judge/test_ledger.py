from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.judge.ledger import observe
from steadyolo.state.run_state import Ledger


def after(scores: list[float | None], patience: int = 100) -> list[Ledger]:
    """The ledger after each epoch."""
    ledger, seen = Ledger(), []
    for epoch, fitness in enumerate(scores, start=1):
        ledger = observe(ledger, epoch=epoch, tick=10 * epoch, fitness=fitness, patience=patience)
        seen.append(ledger)
    return seen


@pytest.mark.parametrize(
    ("scores", "best_epoch", "best_fitness"),
    [
        ([0.1], 1, 0.1),
        ([0.1, 0.2, 0.15], 2, 0.2),
        ([0.2, 0.2], 1, 0.2),  # the first of equals
        ([0.0, 0.0, 0.0], 3, 0.0),  # while nothing scored, the newest
        ([0.0, 0.1, 0.0], 2, 0.1),
        ([None, 0.1, None], 2, 0.1),
        ([0.1, math.nan, 0.05], 1, 0.1),
        ([math.nan], 0, None),
        ([math.inf, 0.1], 2, 0.1),
        ([-3.0, -2.0, -5.0], 2, -2.0),  # a loss as fitness
        ([None, None], 0, None),
    ],
)
def test_best(scores: list[float | None], best_epoch: int, best_fitness: float | None) -> None:
    ledger = after(scores)[-1]
    assert (ledger.best_epoch, ledger.best_fitness) == (best_epoch, best_fitness)
    assert ledger.best_tick == 10 * best_epoch


@pytest.mark.parametrize(
    ("scores", "patience", "stops_at"),
    [
        ([0.3, 0.2, 0.1, 0.1], 2, 3),
        ([0.3, 0.2, 0.4, 0.1, 0.1], 2, 5),
        ([0.3, 0.2, 0.2, 0.2], 0, None),  # 0 never stops
        ([0.0, 0.0, 0.0, 0.0], 1, None),  # nothing has scored yet
        ([0.3, 0.2], 1, 2),
        ([0.3, 0.4, 0.5], 1, None),
    ],
)
def test_patience(scores: list[float | None], patience: int, stops_at: int | None) -> None:
    stops = [epoch for epoch, ledger in enumerate(after(scores, patience), start=1) if ledger.stop]
    assert (stops[0] if stops else None) == stops_at


@given(st.lists(st.floats(0.001, 1.0), min_size=1), st.integers(0, 5))
def test_the_best_is_the_highest_of_all(scores: list[float], patience: int) -> None:
    ledger = after(list(scores), patience)[-1]
    assert ledger.best_fitness == max(scores)
    assert ledger.best_epoch == scores.index(max(scores)) + 1
