"""`Together`: a run that several processes drive in step. What one of them knows, all of them decide by."""

from __future__ import annotations

from typing import Protocol

from steadyolo.state.run_state import RunState
from steadyolo.train.loop import Run
from steadyolo.train.ranks import Ranks
from steadyolo.train.signals import StopRequest


class Led(Run, Protocol):
    """A run whose followers learn from rank 0 what an epoch came to."""

    @property
    def num_epochs(self) -> int: ...  # planned, as of now
    def resolve_doubts(self) -> None: ...  # raises what the last batch may still hide, on each rank
    def follow_epoch(self, state: RunState, num_epochs: int) -> RunState: ...  # instead of `close_epoch`


class Together:
    """Asks `run` the loop's questions in each process, and answers all of them alike.

    A yes of any rank is a yes: a signal, a callback or a clock of one of them ends the batch, the epoch or the run of
    all at the same place. Only rank 0 scores, and only it has something to save.
    """

    def __init__(self, run: Led, ranks: Ranks, stop: StopRequest) -> None:
        self._run, self._ranks, self._stop = run, ranks, stop
        self._is_trained = self._save_is_due = False
        self._state: RunState | None = None

    def is_over(self, state: RunState) -> bool:
        is_over, self._is_trained = self._ranks.any(self._run.is_over(state), self._run.is_trained(state))
        return is_over

    def is_trained(self, state: RunState) -> bool:
        return self._is_trained  # asked together with `is_over`, which the loop asks first

    def train_batch(self, state: RunState) -> RunState:
        self._state = self._run.train_batch(state)
        return self._state

    def close_epoch(self, state: RunState) -> RunState:
        self._run.resolve_doubts()
        closed = self._ranks.lead(lambda: self._run.close_epoch(state))
        told = self._ranks.told([closed.to_dict(), self._run.num_epochs] if closed is not None else None)
        self._state = closed or self._run.follow_epoch(RunState.from_dict(told[0]), told[1])
        return self._state

    def is_stopping(self) -> bool:
        is_due = self._ranks.rank == 0 and self._state is not None and self._run.save_is_due(self._state)
        is_stopping, self._save_is_due = self._ranks.any(self._run.is_stopping(), is_due)
        if is_stopping and not self._stop.requested:
            self._stop.request("another rank's signal")
        return is_stopping and self._run.is_stopping()  # asked again: a request of now has not been told yet

    def save_is_due(self, state: RunState) -> bool:
        return self._save_is_due  # asked together with `is_stopping`, which the loop asks first

    def save(self, state: RunState, *, required: bool) -> None:
        self._run.save(state, required=required)

    def drain(self) -> None:
        self._ranks.lead(self._run.drain)
