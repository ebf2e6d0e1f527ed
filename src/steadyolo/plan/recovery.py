"""What to do after a fault in training: decided purely, carried out by the supervisor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rewind:
    """Go back to the newest good checkpoint and leave out the offending batches."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Give up: going back again would not help."""

    why: str


Move = Rewind | Stop


def next_move(*, faults_since_progress: int, num_tries: int) -> Move:
    """The move after a loss or gradient that is not finite.

    `faults_since_progress` counts such faults, this one included, since the last epoch was scored: a run that goes on
    learning may meet any number of bad batches, one that does not is stopped after `num_tries`.
    """
    if faults_since_progress > num_tries:
        return Stop(why=f"{faults_since_progress} batches of one epoch gave a loss or gradient that is not finite")
    return Rewind()
