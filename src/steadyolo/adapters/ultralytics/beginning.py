"""Where a run begins, or goes on: everything as the checkpoint has it, announced, right before the first batch.

Written against ultralytics 8.4.190.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from steadyolo import events
from steadyolo.adapters.ultralytics.run import UltralyticsRun
from steadyolo.state.run_state import RunState
from steadyolo.vault.checkpoints import Checkpoints

if TYPE_CHECKING:
    from steadyolo.adapters.ultralytics.trainer import SteadyTrainer


def begin(trainer: SteadyTrainer, run: UltralyticsRun, checkpoints: Checkpoints, log: events.EventLog) -> RunState:
    """The state to start from, with everything in place and told."""
    trainer.stop, trainer.plot_idx, trainer.epoch = False, [0, 1, 2], 0
    trainer.train_time_start = trainer.epoch_time_start = time.time()
    if trainer.args.close_mosaic:
        base = (trainer.epochs - trainer.args.close_mosaic) * len(trainer.train_loader)
        trainer.plot_idx.extend([base, base + 1, base + 2])
    trainer.optimizer.zero_grad()
    checkpoints.sweep()
    state = _resumed(trainer, run)
    start = trainer.opened.start
    for rejected in trainer.opened.rejected:
        log.emit(events.CheckpointRejected(name=rejected.name, why=rejected.why))
    log.emit(
        events.RunStarted(
            model=str(trainer.args.model),
            task=str(trainer.args.task),
            data=str(trainer.spec.arguments["data"]),
            device=str(trainer.device),
            precision=trainer.precision.compute + (" channels_last" if trainer.precision.channels_last else ""),
            threads=torch.get_num_threads(),
            num_train_images=len(trainer.train_loader.dataset),
            num_val_images=len(trainer.test_loader.dataset),
            resumed_from=start.name if start else None,
            epochs=trainer.epochs,
            num_batches=len(trainer.train_loader),
        )
    )
    if start is not None:
        log.emit(
            events.Resumed(
                name=start.name,
                step=state.step,
                epoch=state.cursor.epoch,
                batch=state.cursor.batch,
                best_fitness=state.ledger.best_fitness,
                best_epoch=state.ledger.best_epoch,
            )
        )
    return state


def begin_along(trainer: SteadyTrainer, run: UltralyticsRun) -> RunState:
    """On a rank that follows: the state to start from, with everything in place."""
    trainer.stop, trainer.epoch = False, 0
    trainer.train_time_start = trainer.epoch_time_start = time.time()
    trainer.optimizer.zero_grad()
    return _resumed(trainer, run)


def best_name_in(trainer: SteadyTrainer, checkpoints: Checkpoints) -> str | None:
    """The committed checkpoint that holds the best weights so far, if there is one."""
    start = trainer.opened.start
    if start is None or not start.state.ledger.best_tick:
        return None
    suffix = f".{start.state.ledger.best_tick:08d}"
    return next((name for name in checkpoints.committed() if name.endswith(suffix)), None)


def _resumed(trainer: SteadyTrainer, run: UltralyticsRun) -> RunState:
    """Everything where the checkpoint that the run goes on from has it."""
    start = trainer.opened.start
    if start is None:
        return RunState.fresh()
    state = _reconsider_stop(trainer, run.restore(start))
    if start.made_from["plan"]["num_batches"] != len(trainer.train_loader):
        state = run.start_epoch_over(state)
    # Its tensors are mapped from files that retention may delete.
    trainer.opened = replace(trainer.opened, start=replace(start, tensors={}))
    return state


def _reconsider_stop(trainer: SteadyTrainer, state: RunState) -> RunState:
    """More patience than before takes an early stop back."""
    patience = int(trainer.args.patience or 0)
    since = state.epochs_closed - state.ledger.best_epoch
    return replace(state, ledger=replace(state.ledger, stop=bool(patience) and since >= patience))
