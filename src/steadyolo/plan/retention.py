"""Which checkpoints to delete."""

from __future__ import annotations

from collections.abc import Iterable

from steadyolo.errors import UserError


def plan_retention(committed: Iterable[str], *, keep_last: int, pinned: Iterable[str] = ()) -> tuple[str, ...]:
    """Names to delete, oldest first; never one of the last `keep_last` nor a pinned one.

    Takes names that sort in the order of saving, and only those of checkpoints known to be good, so that a torn save
    can never push a good one out.
    """
    if keep_last < 1:
        raise UserError(f"keep_last is {keep_last}", remedy="keep at least 1; 2 survives one bad checkpoint")
    names = sorted(set(committed))
    kept = {*names[-keep_last:], *pinned}
    return tuple(name for name in names if name not in kept)
