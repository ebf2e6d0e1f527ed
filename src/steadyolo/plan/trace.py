"""`Trace`: what a step of training and a pass of validation take of a device's memory and give back, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from steadyolo.plan.memory import Kind, MemoryEstimate, Peak, Workload

BEFORE = "before"  # the moment of what is there all the time
MATCHING = "loss, boxes are matched with anchors"  # grows with the boxes of the fullest picture


@dataclass(frozen=True, slots=True)
class Move:
    """A tensor's storage that is taken (`num_bytes` above 0), or given back (below 0)."""

    storage: int  # the same number when it is given back; used once
    num_bytes: int
    kind: Kind
    moment: str  # what is being done, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Both sequences begin with the taking of what is there all the time, in the order in which a run takes it.

    `training` is one step in steady state, from the batch's arrival to the EMA's update; `validation` is one batch's
    pass. What an operator takes and gives back inside itself is a pair of moves of kind `workspace`.
    """

    workload: Workload
    training: tuple[Move, ...]
    validation: tuple[Move, ...]


def peak_of(moves: Iterable[Move]) -> Peak:
    """The worst moment of a sequence when each storage takes exactly its bytes."""
    held: Counter[Kind] = Counter()
    now = most = 0
    worst, moment = dict(held), ""
    for move in moves:
        held[move.kind] += move.num_bytes
        now += move.num_bytes
        if now > most:
            most, worst, moment = now, dict(held), move.moment
    return Peak(by_kind={kind: num_bytes for kind, num_bytes in worst.items() if num_bytes}, moment=moment)


def cpu_estimate(trace: Trace) -> MemoryEstimate:
    """Bytes of tensors on a host, where an allocator in between keeps nothing."""
    return MemoryEstimate(training=peak_of(trace.training), validation=peak_of(trace.validation))
