from __future__ import annotations

import pytest

from steadyolo.errors import UserError
from steadyolo.plan.cadence import is_due, plan_interval_s
from steadyolo.spec.cadence import Auto, EverySeconds, EverySteps, SaveCadence


@pytest.mark.parametrize(
    ("cost_s", "mtbf_s", "budget_share", "interval_s"),
    [
        (0.02, 3600, 0.01, 12.0),  # what a failure would lose decides
        (10.0, 3600, 0.01, 1000.0),  # the budget decides
        (10.0, 3600, 1.0, 268.328),
        (0.0, 3600, 0.01, 0.0),
    ],
)
def test_interval(cost_s: float, mtbf_s: float, budget_share: float, interval_s: float) -> None:
    planned_s = plan_interval_s(cost_s=cost_s, mtbf_s=mtbf_s, budget_share=budget_share)
    assert planned_s == pytest.approx(interval_s, rel=1e-5)
    assert cost_s <= budget_share * planned_s


@pytest.mark.parametrize(("cost_s", "mtbf_s", "budget_share"), [(-1, 3600, 0.01), (1, 0, 0.01), (1, 3600, 0)])
def test_no_interval_without_sense(cost_s: float, mtbf_s: float, budget_share: float) -> None:
    with pytest.raises(UserError, match="no interval"):
        plan_interval_s(cost_s=cost_s, mtbf_s=mtbf_s, budget_share=budget_share)


@pytest.mark.parametrize(
    ("cadence", "since_try_s", "steps_since_try", "cost_s", "expected"),
    [
        (EverySteps(10), 1e9, 9, None, False),
        (EverySteps(10), 0.0, 10, None, True),
        (EverySeconds(30), 29.9, 1000, 0.1, False),
        (EverySeconds(30), 30.0, 0, 0.1, True),
        (Auto(), 4.9, 100, None, False),
        (Auto(), 5.0, 0, None, True),
        (Auto(), 11.9, 100, 0.02, False),
        (Auto(), 12.1, 1, 0.02, True),
        (Auto(budget_share=0.001), 12.1, 1, 0.02, False),
    ],
)
def test_due(
    cadence: SaveCadence, since_try_s: float, steps_since_try: int, cost_s: float | None, expected: bool
) -> None:
    assert is_due(cadence, since_try_s=since_try_s, steps_since_try=steps_since_try, cost_s=cost_s) is expected


def test_copies_elsewhere_bound_the_interval_unless_saves_take_too_much() -> None:
    cadence = Auto(mtbf_s=3600, budget_share=0.01, longest_s=40)
    assert not is_due(cadence, since_try_s=39, steps_since_try=1, cost_s=0.3)
    assert is_due(cadence, since_try_s=40, steps_since_try=1, cost_s=0.3)
    assert not is_due(cadence, since_try_s=40, steps_since_try=1, cost_s=0.5)
    assert is_due(cadence, since_try_s=50, steps_since_try=1, cost_s=0.5)
