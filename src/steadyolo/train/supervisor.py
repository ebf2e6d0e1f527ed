"""Runs the loop to its end through the faults that a run survives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from steadyolo.errors import Diverged, DoesNotFit
from steadyolo.plan.fit import Fit
from steadyolo.plan.recovery import Stop, next_fit, next_move
from steadyolo.state.run_state import Cursor, RunState
from steadyolo.train.loop import Run, train
from steadyolo.train.out_of_memory import OutOfMemory, Shortage, forget_attempt


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
    def undo(self, fault: OutOfMemory) -> Shortage: ...  # takes the failed batch back and frees what is not in use
    def adopt(self, fit: Fit, shortage: Shortage) -> None: ...  # `fit` holds from the failed batch on, for good
    def tell(self, fault: OutOfMemory, shortage: Shortage, attempt: int, action: str) -> None: ...
    def give_up(self, fault: OutOfMemory, shortage: Shortage, why: str) -> DoesNotFit: ...  # saves before it returns


def supervise(run: Recoverable, state: RunState, *, num_tries: int, loop: Callable[..., RunState] = train) -> RunState:
    """Train to the end. Where numbers stop being finite, go back to the newest good checkpoint; where memory runs out,
    do the batch again in a way that needs less.

    Raises: Diverged after `num_tries` faults of the first kind without an epoch being scored in between; what
    `give_up` returns when there is not enough memory for a batch whatever is done.
    """
    numbers, memory = _Numbers(run, num_tries), _Memory(run)
    while True:
        try:
            return loop(run, state)
        except (NotFinite, OutOfMemory) as error:
            fault = error
        forget_attempt(fault)
        state = numbers.after(fault) if isinstance(fault, NotFinite) else memory.after(fault)


class _Numbers:
    """Recovers from numbers that are not finite."""

    def __init__(self, run: Recoverable, num_tries: int) -> None:
        self._run, self._num_tries = run, num_tries
        self._faults: list[int] = []  # epochs closed when each fault struck

    def after(self, fault: NotFinite) -> RunState:
        epoch = fault.batches[-1].epoch
        self._faults = [*(e for e in self._faults if e == epoch), epoch]
        attempt = len(self._faults)
        move = next_move(faults_since_progress=attempt, num_tries=self._num_tries)
        if isinstance(move, Stop):
            self._run.report(fault, attempt, "giving up")
            raise Diverged(
                f"training stopped at epoch {epoch + 1}: {fault.what} is not finite; {move.why}",
                remedy="lower lr0, use precision.compute=fp32, or look at the images of the batches named in "
                "events.jsonl; the newest good checkpoint is kept and `steadyolo resume` goes on from it",
            ) from fault
        self._run.report(fault, attempt, "going back to the newest checkpoint and leaving the batch out")
        return self._run.rewind(skip=fault.batches)


class _Memory:
    """Recovers from memory that does not suffice."""

    def __init__(self, run: Recoverable) -> None:
        self._run = run
        self._freed: set[tuple[int, Fit]] = set()  # epochs in which freeing alone was tried, and with which fit
        self._at: Cursor | None = None
        self._attempt = 0

    def after(self, fault: OutOfMemory) -> RunState:
        shortage = self._run.undo(fault)
        self._attempt = self._attempt + 1 if shortage.at == self._at else 1
        self._at = shortage.at
        tried = shortage.at.epoch, shortage.misfit.fit
        move = next_fit(shortage.misfit, attempt=self._attempt, is_freed=tried in self._freed)
        self._freed.add(tried)
        if isinstance(move, Stop):
            self._run.tell(fault, shortage, self._attempt, "giving up")
            raise self._run.give_up(fault, shortage, move.why)
        if move.fit != shortage.misfit.fit:
            self._run.adopt(move.fit, shortage)
        self._run.tell(fault, shortage, self._attempt, move.action)
        return shortage.state
