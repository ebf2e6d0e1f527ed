"""Which data sets leave the cache to make room for another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from steadyolo.errors import UserError
from steadyolo.spec.size import size_text

_USUAL_BUDGET_BYTES = 100 * 1024**3
_LARGEST_SHARE = 0.8  # of what the disk could give the cache; the rest is for checkpoints and everybody else


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """A data set in the cache: the room that it takes, when it was last used (since 1970), and whether it is now."""

    name: str
    num_bytes: int
    used_at_s: float
    in_use: bool


def usual_budget_bytes(*, free_bytes: int, cached_bytes: int) -> int:
    """What the cache may take where nobody said: 100 GiB, or less on a disk that could give it little more."""
    return min(_USUAL_BUDGET_BYTES, int(_LARGEST_SHARE * (free_bytes + cached_bytes)))


def plan_eviction(
    others: Iterable[Cached], *, wanted_bytes: int, to_write_bytes: int, budget_bytes: int, free_bytes: int
) -> tuple[str, ...]:
    """Names to remove, least recently used first, as few as it takes; never one in use.

    The data set that comes will take `wanted_bytes`, of which `to_write_bytes` are not there yet. Afterwards the cache
    is within its budget and the disk has room.
    Raises: UserError when that cannot be reached; then nothing is to be removed.
    """
    others = list(others)
    if wanted_bytes > budget_bytes:
        raise UserError(
            f"the data set takes {size_text(wanted_bytes)}, and the cache may take {size_text(budget_bytes)}",
            remedy="raise data.cache_budget, or put the cache on a larger disk with data.cache=FOLDER",
        )
    over_bytes = sum(other.num_bytes for other in others) + wanted_bytes - budget_bytes
    short_bytes = to_write_bytes - free_bytes
    gone: list[str] = []
    for other in sorted(
        (other for other in others if not other.in_use), key=lambda other: (other.used_at_s, other.name)
    ):
        if over_bytes <= 0 and short_bytes <= 0:
            break
        gone.append(other.name)
        over_bytes -= other.num_bytes
        short_bytes -= other.num_bytes
    if over_bytes > 0 or short_bytes > 0:
        kept = ", ".join(sorted(other.name for other in others if other.in_use)) or "none"
        raise UserError(
            f"{size_text(max(over_bytes, short_bytes))} more are needed for the data set than the "
            f"{'disk' if short_bytes > 0 else 'cache'} can give; in use by runs: {kept}",
            remedy="free some space or wait for these runs, raise data.cache_budget, "
            "or put the cache on a larger disk with data.cache=FOLDER",
        )
    return tuple(gone)
