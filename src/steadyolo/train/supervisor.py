"""Runs the loop to its end through the faults that a run survives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from steadyolo.errors import Diverged
from steadyolo.plan.recovery import Stop, next_move
from steadyolo.state.run_state import Cursor, RunState
from steadyolo.train.loop import Run, train


class NotFinite(Exception):
    """A loss or gradient that is not finite. The optimizer has not used it."""

    def __init__(self, what: str, batches: tuple[Cursor, ...]) -> None:
        super().__init__(f"{what} is not finite")
        self.what = what
        self.batches = batches  # those whose gradients the failed step would have used


class Recoverable(Run, Protocol):
    """A run that can go back. `rewind` puts everything where the newest good checkpoint had it."""

    def rewind(self, *, skip: tuple[Cursor, ...]) -> RunState: ...
    def report(self, fault: NotFinite, attempt: int, action: str) -> None: ...


def supervise(run: Recoverable, state: RunState, *, num_tries: int, loop: Callable[..., RunState] = train) -> RunState:
    """Train to the end, going back to the newest good checkpoint when numbers stop being finite.

    Raises: Diverged after `num_tries` such faults without an epoch being scored in between.
    """
    faults: list[int] = []  # epochs closed when each fault struck
    while True:
        try:
            return loop(run, state)
        except NotFinite as fault:
            epoch = fault.batches[-1].epoch
            faults = [*(e for e in faults if e == epoch), epoch]
            move = next_move(faults_since_progress=len(faults), num_tries=num_tries)
            if isinstance(move, Stop):
                run.report(fault, len(faults), "giving up")
                raise Diverged(
                    f"training stopped at epoch {epoch + 1}: {fault.what} is not finite; {move.why}",
                    remedy="lower lr0, use precision.compute=fp32, or look at the images of the batches named in "
                    "events.jsonl; the newest good checkpoint is kept and `steadyolo resume` goes on from it",
                ) from fault
            run.report(fault, len(faults), "going back to the newest checkpoint and leaving the batch out")
            state = run.rewind(skip=fault.batches)
