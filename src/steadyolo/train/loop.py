"""The training loop: only the verbs of training, in the order they happen."""

from __future__ import annotations

from typing import Protocol

from steadyolo.state.run_state import RunState


class Run(Protocol):
    """What the loop drives. Every method returns with its work done; faults are raised."""

    def is_over(self, state: RunState) -> bool: ...  # the plan's epochs are closed, or the scores said stop
    def is_trained(self, state: RunState) -> bool: ...  # the epoch's batches are consumed, its score is due
    def train_batch(self, state: RunState) -> RunState: ...  # consumes the batch at the cursor
    def close_epoch(self, state: RunState) -> RunState: ...  # scores; unchanged when a stop cut the scoring short
    def is_stopping(self) -> bool: ...  # a signal asked for the end
    def save_is_due(self, state: RunState) -> bool: ...
    def save(self, state: RunState, *, required: bool) -> None: ...  # returns once staged; writing goes on behind
    def drain(self) -> None: ...  # returns when the last required save is committed


def train(run: Run, state: RunState) -> RunState:
    """Advance `state` to the end of the plan, or to a requested stop.

    Raises the first fault; the supervisor decides what comes next.
    """
    while not run.is_over(state):
        trained = run.is_trained(state)
        state = run.close_epoch(state) if trained else run.train_batch(state)
        stopping = run.is_stopping()  # read once: a late signal waits one batch
        required = trained or stopping  # scores are decided from saved weights, and a run ends with a save
        if required or run.save_is_due(state):
            run.save(state, required=required)
        if stopping:
            break
    run.drain()
    return state
