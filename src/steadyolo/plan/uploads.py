"""What an upload queue does next: decided purely, carried out by the uploader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from steadyolo.errors import UserError

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0


def plan_order(waiting: Iterable[str], *, best: str | None, newest_kept: str | None) -> tuple[str, ...]:
    """The order in which to upload: one that is newer than `newest_kept`, then the best, then the others, new to old.

    Takes names that sort in the order of saving.
    """
    newest_first = sorted(waiting, reverse=True)
    lead = newest_first[:1] if newest_first and (newest_kept is None or newest_first[0] > newest_kept) else []
    first = [*lead, *(name for name in newest_first if name == best and name not in lead)]
    return (*first, *(name for name in newest_first if name not in first))


def plan_spool(
    waiting: Mapping[str, int], *, best: str | None, under_way: str | None, budget_bytes: int
) -> tuple[str, ...]:
    """Checkpoints to give up, so that those which wait for a store take no more than `budget_bytes` of the disk.

    Middle-aged ones go first: the newest loses least work, the oldest has waited longest. Never the newest, the best or
    the one that is `under_way`.
    """
    if budget_bytes < 0:
        raise UserError(f"the spool's budget is {budget_bytes} bytes", remedy="use 0 or more, such as store.spool=4GiB")
    left = dict(waiting)
    given_up: list[str] = []
    while left and sum(left.values()) > budget_bytes:
        spared = {max(left), best, under_way}
        candidates = [name for name in sorted(left) if name not in spared]
        if not candidates:
            break
        given_up.append(candidates[len(candidates) // 2])
        del left[given_up[-1]]
    return tuple(given_up)


def plan_wait_s(*, num_failures: int, chance: float) -> float:
    """Seconds to wait after `num_failures` failures in a row; `chance` between 0 and 1 spreads many writers out.

    Source: "full jitter" of M. Brooker, "Exponential Backoff And Jitter", 2015, with a half as its least.
    """
    if num_failures < 1 or not 0 <= chance <= 1:
        raise UserError(
            f"no wait after {num_failures} failures with chance {chance}",
            remedy="use 1 or more, and a chance of 0 to 1",
        )
    longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(num_failures - 1, 16))
    return longest_s * (0.5 + chance / 2)
