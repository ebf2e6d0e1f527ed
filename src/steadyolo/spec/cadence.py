"""When checkpoints are due: the alternatives behind `save.every`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from steadyolo.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto:
    """Save as often as it pays, from the measured cost of a save."""

    mtbf_s: float = 3600.0  # assumed mean time between failures
    budget_share: float = 0.01  # at most this part of the time goes into saving
    first_s: float = 5.0  # until the first save is tried; its cost is then known
    longest_s: float = math.inf  # whatever pays: with copies elsewhere, a lost machine loses what came after the last

    def __post_init__(self) -> None:
        if self.mtbf_s <= 0 or not 0 < self.budget_share <= 1 or self.first_s < 0 or self.longest_s <= 0:
            raise UserError(
                f"save cadence with mtbf_s {self.mtbf_s}, budget_share {self.budget_share}, first_s {self.first_s} and "
                f"longest_s {self.longest_s}",
                remedy="use a positive mtbf_s and longest_s, a budget_share over 0 and up to 1, a first_s of 0 or more",
            )


@dataclass(frozen=True, slots=True)
class EverySeconds:
    """Save when this much time has passed since the last save."""

    interval_s: float

    def __post_init__(self) -> None:
        if self.interval_s <= 0:
            raise UserError(f"save.every is {self.interval_s} s", remedy="use more than 0 s, such as 30s")


@dataclass(frozen=True, slots=True)
class EverySteps:
    """Save after this many optimizer steps."""

    num_steps: int

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UserError(f"save.every is {self.num_steps} steps", remedy="use at least 1 step, such as 200steps")


SaveCadence = Auto | EverySeconds | EverySteps

_SECONDS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def parse_duration_s(text: str) -> float:
    """Seconds from `30s`, `5min`, `1.5h` or a bare number. Raises `UserError` for anything else or nothing positive."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(s|m|min|h)?\s*", str(text))
    value = float(match[1]) * _SECONDS[match[2] or "s"] if match else 0.0
    if value <= 0.0:
        raise UserError(f"{text!r} is not a length of time", remedy="write it as 30s, 5min or 1h")
    return value


def parse_cadence(text: str) -> SaveCadence:
    """`auto`, `30s`, `5min` or `200steps`. Raises `UserError` for anything else."""
    if str(text).strip().lower() == "auto":
        return Auto()
    match = re.fullmatch(r"\s*([0-9]+)\s*steps?\s*", str(text))
    if match and int(match[1]) > 0:
        return EverySteps(num_steps=int(match[1]))
    try:
        return EverySeconds(interval_s=parse_duration_s(text))
    except UserError:
        raise UserError(
            f"save.every is {text!r}", remedy="use auto, a length of time such as 30s or 5min, or 200steps"
        ) from None
