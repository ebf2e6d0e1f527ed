"""When a save is due."""

from __future__ import annotations

import math

from steadyolo.errors import UserError
from steadyolo.spec.cadence import Auto, EverySeconds, EverySteps, SaveCadence


def plan_interval_s(*, cost_s: float, mtbf_s: float, budget_share: float) -> float:
    """Seconds between two saves that waste least: what saving costs against what a failure would lose.

    Never so short that saving takes more than `budget_share` of the time.
    Source: J. W. Young, "A first order approximation to the optimum checkpoint interval", 1974.
    """
    if cost_s < 0 or mtbf_s <= 0 or budget_share <= 0:
        raise UserError(
            f"no interval for cost_s {cost_s}, mtbf_s {mtbf_s}, budget_share {budget_share}",
            remedy="use a cost of 0 or more, and mtbf_s and budget_share over 0",
        )
    return max(math.sqrt(2.0 * cost_s * mtbf_s), cost_s / budget_share)


def is_due(cadence: SaveCadence, *, since_try_s: float, steps_since_try: int, cost_s: float | None) -> bool:
    """Whether to save now.

    `since_try_s` and `steps_since_try` count from the last save that was tried, whether or not it worked, so that a
    full disk is not tried after every batch. `cost_s` is what the newest save cost, None while that is not known.
    """
    match cadence:
        case EverySteps(num_steps):
            return steps_since_try >= num_steps
        case EverySeconds(interval_s):
            return since_try_s >= interval_s
        case Auto() if cost_s is None:
            return since_try_s >= cadence.first_s
        case Auto():
            interval_s = plan_interval_s(cost_s=cost_s, mtbf_s=cadence.mtbf_s, budget_share=cadence.budget_share)
            shortest_s = cost_s / cadence.budget_share
            return since_try_s >= max(min(interval_s, cadence.longest_s), shortest_s)
