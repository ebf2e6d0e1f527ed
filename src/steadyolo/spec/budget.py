"""How much memory a run may take, as people write it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from steadyolo.errors import UserError
from steadyolo.spec.size import parse_bytes

_LEAST_BYTES = 4096  # a smaller number lacks its unit


@dataclass(frozen=True, slots=True)
class ByteBudget:
    """So many bytes, whatever the device has."""

    num_bytes: int


@dataclass(frozen=True, slots=True)
class ShareBudget:
    """A share of all the memory that the device has."""

    memory_share: float


Budget = ByteBudget | ShareBudget


def parse_budget(text: str) -> Budget:
    """A budget from `24GiB` or `80%`. Raises: UserError, with the nearest one that can be read."""
    percent = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", text)
    if not percent:
        num_bytes = parse_bytes(text)
        if num_bytes < _LEAST_BYTES:
            raise UserError(f"{text!r} is {num_bytes} bytes of memory", remedy=f"write it as {text.strip()}GiB")
        return ByteBudget(num_bytes)
    share = float(percent[1]) / 100
    if not 0.0 < share <= 1.0:
        raise UserError(f"{text!r} is not a share of memory", remedy="use 80%, or anything above 0% up to 100%")
    return ShareBudget(share)
