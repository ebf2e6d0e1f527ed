"""`UltralyticsRun`: what the training loop drives, made of an Ultralytics trainer's parts.

Written against ultralytics 8.4.190. Callbacks fire where that version's `BaseTrainer._do_train` fires them, with the
attributes that its integrations read.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from steadyolo import events
from steadyolo.adapters.memory.watch import MemoryWatch
from steadyolo.adapters.ultralytics.criterion import Criterion
from steadyolo.adapters.ultralytics.fitting import Fitting
from steadyolo.adapters.ultralytics.tensors import (
    gradients,
    groups_to_json,
    named_state,
    restore_gradients,
    restore_model,
    restore_optimizer,
)
from steadyolo.data.randomness import seed_generators
from steadyolo.errors import DataLoss, DoesNotFit
from steadyolo.judge.ledger import observe
from steadyolo.plan.cadence import is_due
from steadyolo.plan.fit import Fit
from steadyolo.state.run_state import Cursor, RunState
from steadyolo.state.snapshot import Snapshot, checkpoint_name
from steadyolo.train.ema import MovingAverage
from steadyolo.train.host_copy import Copies, HostCopies
from steadyolo.train.out_of_memory import OutOfMemory, Shortage, free_memory, told_apart
from steadyolo.train.signals import StopRequest
from steadyolo.train.step import BatchOutcome, Stepper
from steadyolo.train.supervisor import NotFinite
from steadyolo.vault.files import replace_file

if TYPE_CHECKING:
    from steadyolo.adapters.ultralytics.trainer import SteadyTrainer
    from steadyolo.vault.checkpoints import Checkpoints
    from steadyolo.vault.writer import BackgroundWriter

_READ_NOTHING = {"ultralytics.utils.callbacks.base", "ultralytics.utils.callbacks.platform"}  # always registered
_DRAIN_S = 600.0  # a disk that takes longer for one checkpoint is not coming back
_SHOW_EVERY_S = 0.25  # on an accelerator, reading a loss for display waits for it; this often is often enough


class ScoringCut(Exception):
    """A stop was requested while scoring: the epoch stays unclosed and is scored again on resume."""


@dataclass(frozen=True, slots=True)
class _Before:
    """What a batch changes beside tensors, as it was before the batch."""

    state: RunState
    tloss: Any
    loss: Any
    loss_items: Any
    window: tuple[Cursor, ...]
    doubts: tuple[Any, ...]


class UltralyticsRun:
    """One process's run: implements `steadyolo.train.supervisor.Recoverable` over a set-up trainer."""

    def __init__(
        self,
        trainer: SteadyTrainer,
        *,
        checkpoints: Checkpoints,
        writer: BackgroundWriter,
        log: events.EventLog,
        stop: StopRequest,
        copies: HostCopies,
        made_from: dict[str, Any],
        fitting: Fitting,
        best_name: str | None,
        stalls_s: dict[str, float],
    ) -> None:
        self._trainer = trainer
        self._ranks = trainer.ranks
        self._leads = self._ranks.rank == 0
        self._checkpoints = checkpoints
        self._writer = writer
        self._log = log
        self._stop = stop
        self._copies = copies
        self._made_from = made_from
        self._nominal_accumulate = self._accumulate = int(made_from["plan"]["accumulate"])
        self._num_batches = len(trainer.train_loader)
        model = self._model
        self._criterion = Criterion(model)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._model_state = model.state_dict()  # all of it is updated in place
        self._ema_state = trainer.ema.ema.state_dict()
        self._statistics = {f"model/{name}" for name, _ in model.named_buffers()}
        self._names: dict[torch.Tensor, str] = {p: name for name, p in self._parameters.items()}
        self._average = MovingAverage(self._ema_state, self._model_state)
        self._fitting = fitting
        self._stepper = Stepper(
            trainer.model,
            trainer.optimizer,
            criterion=self._criterion,
            split=fitting.split,
            precision=trainer.precision,
            scaler=trainer.scaler,
            branch_of=lambda name: "one2one" if ".one2one_" in name else "main",
            ranks=self._ranks,
        )
        self._memory = MemoryWatch(trainer.device, log.emit)
        trainer.name_losses(self._criterion.names)
        trainer.tloss = None
        trainer.loss = torch.zeros((), device=trainer.device)  # upstream's `validate` reads these before any batch has
        trainer.loss_items = dict.fromkeys(self._criterion.names, trainer.loss)
        # Over this process's life: the checkpoint gone back to does not know what later ones left out.
        self._skipped: set[Cursor] = set()
        self._open_epoch: int | None = None  # the epoch whose start has been announced
        self._doubts: list[tuple[torch.Tensor, tuple[Cursor, ...]]] = []  # finiteness not yet read from the device
        self._window: tuple[Cursor, ...] = ()  # batches since the last update
        self._before: _Before | None = None
        self.best_name = best_name  # the checkpoint that retention spares for its score
        self._stalls_s = stalls_s  # how long the loop stood still, by checkpoint; read when it is committed
        self._csv = b""
        self._copying = ""  # the newest save, which may still be being copied
        self._just_closed = False  # an epoch was scored and its callbacks wait for the save
        self._last_save_s = time.monotonic()
        self._last_save_step = 0
        self._clock_s = time.monotonic()
        self._shown_s = time.monotonic()
        self._num_unshown_images = 0
        self._epoch_started_s = time.monotonic()

    @property
    def _model(self) -> torch.nn.Module:
        return self._trainer.bare_model

    # -- where the run is ------------------------------------------------------------------------------------------

    def is_over(self, state: RunState) -> bool:
        args = self._trainer.args
        late = bool(args.time) and state.seconds > args.time * 3600
        told = bool(self._trainer.stop) and not state.cursor.batch  # by a callback; its epoch is closed first
        return state.epochs_closed >= self._trainer.epochs or state.ledger.stop or late or told

    def is_trained(self, state: RunState) -> bool:
        # A callback that sets `stop` ends the epoch where it is; the epoch is still scored and saved, as upstream does.
        cut = bool(self._trainer.stop) and state.cursor.batch > 0
        return cut or state.cursor.batch >= self._num_batches

    def is_stopping(self) -> bool:
        return self._stop.acknowledged()

    # -- one batch -------------------------------------------------------------------------------------------------

    def train_batch(self, state: RunState) -> RunState:
        """Consume the batch at the cursor.

        Raises: NotFinite when its loss, or the window's gradient, is not finite; OutOfMemory when an allocation failed,
        after which `undo` has to be called.
        """
        if self._open_epoch != state.cursor.epoch:
            self._start_epoch(state.cursor)
        self._fitting.begin(state.cursor)
        trainer = self._trainer
        self._before = _Before(
            state, trainer.tloss, trainer.loss, trainer.loss_items, self._window, tuple(self._doubts)
        )
        try:
            with told_apart(lambda: self._stepper.moment):
                state = self._train_batch(state)
        except OutOfMemory as fault:
            if not fault.is_shared:
                self._ranks.any(True)
            raise
        (is_short,) = self._ranks.any(False)
        if is_short:
            raise OutOfMemory(self._stepper.moment, "in another process of this run", is_shared=True)
        self._stepper.settle()
        return state

    def _train_batch(self, state: RunState) -> RunState:
        trainer, cursor = self._trainer, state.cursor
        batch = trainer.train_loader.batch(cursor)
        pending = state.pending_batches + 1
        if cursor in state.skipped:
            return self._advanced(state, pending=pending)
        trainer.run_callbacks("on_train_batch_start")
        self._warm_up(cursor)
        seed_generators(trainer.train_loader.order.batch_key(cursor), everywhere=True)
        if trainer.precision.channels_last and trainer.device.type == "cpu":
            # Reordered while a value is one byte: as fp32 it takes ten times as long.
            batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
        batch = trainer.preprocess_batch(batch)
        if self._ranks.rank:  # until here all ranks draw the same
            seed_generators(trainer.train_loader.order.share_key(cursor, self._ranks.rank), everywhere=True)
        outcome = self._stepper.accumulate(batch, weight=trainer.train_loader.weight(cursor))
        self._window = (*self._window, cursor)
        self._doubt("the loss or its gradient", outcome.finite, (cursor,))
        self._note_losses(cursor, outcome)
        if pending >= self._accumulate:
            self._update()
            state, pending = replace(state, step=state.step + 1, ema_updates=trainer.ema.updates), 0
        trainer.run_callbacks("on_train_batch_end")
        trainer.plot_if_asked(batch, cursor.batch + self._num_batches * cursor.epoch)
        state = self._advanced(state, pending=pending)
        self._show(state, cursor)
        return state

    def _advanced(self, state: RunState, *, pending: int) -> RunState:
        now = time.monotonic()
        elapsed, self._clock_s = now - self._clock_s, now
        cursor = Cursor(epoch=state.cursor.epoch, batch=state.cursor.batch + 1)
        return replace(state, cursor=cursor, pending_batches=pending, seconds=state.seconds + elapsed)

    def _start_epoch(self, cursor: Cursor) -> None:
        trainer, epoch = self._trainer, cursor.epoch
        self._open_epoch = epoch
        self._epoch_started_s = self._shown_s = time.monotonic()
        trainer.epoch = epoch
        trainer.run_callbacks("on_train_epoch_start")
        if cursor.batch == 0:  # until now callbacks may ask for the last epoch's means
            trainer.tloss = None
        trainer.scheduler.last_epoch = epoch - 1
        trainer.step_scheduler()
        trainer._model_train()

    def _warm_up(self, cursor: Cursor) -> None:
        """Accumulation, learning rates and momentum during warm-up, as Ultralytics interpolates them."""
        trainer, args = self._trainer, self._trainer.args
        done = cursor.batch + self._num_batches * cursor.epoch
        span = trainer._get_warmup_iterations(self._num_batches)
        if not span or done > span:
            self._accumulate = self._nominal_accumulate
            return
        self._accumulate = max(1, int(np.interp(done, [0, span], [1, self._nominal_accumulate]).round()))
        for group in trainer.optimizer.param_groups:
            start = args.warmup_bias_lr if group.get("param_group") == "bias" else 0.0
            target = group["initial_lr"] * trainer.lf(cursor.epoch)
            group["lr"] = float(np.interp(done, [0, span], [start, target]))
            if "momentum" in group:
                group["momentum"] = float(np.interp(done, [0, span], [args.warmup_momentum, args.momentum]))

    def _update(self) -> None:
        self.resolve_doubts()
        waited_s = self._copies.wait()  # what a save copies in the background is about to change
        if self._copying in self._stalls_s:
            self._stalls_s[self._copying] += waited_s
        finite = self._stepper.update()
        self._doubt("the gradient", finite, self._window)
        self._window = ()
        self._stepper.moment, ema = "ema", self._trainer.ema
        ema.updates = self._average.advance(ema.updates)

    def _doubt(self, what: str, finite: torch.Tensor, batches: tuple[Cursor, ...]) -> None:
        """Check now where that costs nothing; on an accelerator, remember to look before the next update or save."""
        if finite.device.type == "cpu":
            if not bool(finite):
                raise NotFinite(what, batches)
        else:
            self._doubts.append((finite, batches))

    def resolve_doubts(self) -> None:
        """Raises: NotFinite for a batch whose numbers were not looked at yet."""
        doubts, self._doubts = self._doubts, []
        if doubts:
            verdicts = torch.stack([finite for finite, _ in doubts]).tolist()
            for verdict, (_, batches) in zip(verdicts, doubts, strict=True):
                if not verdict:
                    raise NotFinite("the loss or gradient", batches)

    def _note_losses(self, cursor: Cursor, outcome: BatchOutcome) -> None:
        trainer = self._trainer
        trainer.loss, trainer.loss_items = outcome.loss, outcome.items
        count = cursor.batch
        trainer.tloss = (
            outcome.items
            if not trainer.tloss
            else {name: (trainer.tloss[name] * count + item) / (count + 1) for name, item in outcome.items.items()}
        )

    def _show(self, state: RunState, cursor: Cursor) -> None:
        now = time.monotonic()
        self._num_unshown_images += len(self._trainer.train_loader.order.positions(cursor))
        is_last = cursor.batch + 1 == self._num_batches
        if self._trainer.device.type != "cpu" and now - self._shown_s < _SHOW_EVERY_S and not is_last:
            return
        seconds, self._shown_s = now - self._shown_s, now
        num_images, self._num_unshown_images = self._num_unshown_images, 0
        self._log.emit(
            events.StepDone(
                epoch=cursor.epoch,
                batch=cursor.batch,
                step=state.step,
                losses={name: float(value) for name, value in (self._trainer.tloss or {}).items()},
                num_images=num_images,
                seconds=seconds,
                learning_rate=float(self._trainer.optimizer.param_groups[0]["lr"]),
            )
        )

    # -- the end of an epoch ---------------------------------------------------------------------------------------

    def close_epoch(self, state: RunState) -> RunState:
        """Score the epoch and write its row. Returns `state` unchanged when a stop cut the scoring short."""
        self.resolve_doubts()
        trainer, epoch = self._trainer, state.cursor.epoch
        trainer.epoch = epoch
        if self._open_epoch != epoch:  # resumed between the last batch and the score
            rates = [group["lr"] for group in trainer.optimizer.param_groups]
            self._start_epoch(state.cursor)
            for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # as its last batch left it, which in warm-up is not what the schedule says
        trainer.lr = {f"lr/pg{i}": group["lr"] for i, group in enumerate(trainer.optimizer.param_groups)}
        trainer.run_callbacks("on_train_epoch_end")
        trainer.ema.update_attr(trainer.model, include=["yaml", "nc", "args", "names", "stride", "class_weights"])
        final = epoch + 1 >= trainer.epochs
        if trainer.args.val or final or trainer.stopper.possible_stop or trainer.stop:
            try:
                trainer.metrics, trainer.fitness = trainer.validate()
            except ScoringCut:
                return state
            except DoesNotFit:
                self.save(state, required=True)
                self.drain()
                raise
        now = time.monotonic()
        elapsed, self._clock_s = now - self._clock_s, now
        closed = replace(
            state,
            cursor=Cursor(epoch=epoch + 1, batch=0),
            epochs_closed=state.epochs_closed + 1,
            seconds=state.seconds + elapsed,
            loss_means={},
        )
        fitness = None if trainer.fitness is None else float(trainer.fitness)
        tick = closed.tick(self._num_batches)
        ledger = observe(
            state.ledger, epoch=epoch + 1, tick=tick, fitness=fitness, patience=int(trainer.args.patience or 0)
        )
        closed = replace(closed, ledger=ledger)
        trainer.show_ledger(ledger, epoch + 1)
        self._append_row(closed)
        self._criterion.after_epochs(closed.epochs_closed)
        trainer.epoch_time = now - self._epoch_started_s
        self._log.emit(
            events.EpochClosed(
                epoch=epoch + 1,
                metrics={name: float(value) for name, value in trainer.metrics.items()},
                fitness=fitness,
                is_best=ledger.best_tick == tick,
                seconds=trainer.epoch_time,
            )
        )
        self._re_estimate_epochs(closed)
        self._memory.close_epoch(epoch + 1, num_epochs_left=trainer.epochs - closed.epochs_closed)
        self._just_closed = True
        return closed

    @property
    def num_epochs(self) -> int:
        """Epochs planned, as of now: with a time limit they change."""
        return self._trainer.epochs

    def follow_epoch(self, state: RunState, num_epochs: int) -> RunState:
        """Where another rank scores: do what an epoch's end does to training. `state` is what scoring made of it."""
        trainer = self._trainer
        if not state.cursor.batch:  # else a stop cut the scoring short
            trainer.run_callbacks("on_train_epoch_end")
            trainer.show_ledger(state.ledger, state.epochs_closed)
            self._criterion.after_epochs(state.epochs_closed)
            trainer.set_epochs(num_epochs)
            self._just_closed = True
        return state

    def _append_row(self, closed: RunState) -> None:
        trainer = self._trainer
        means = trainer.tloss or dict.fromkeys(trainer.loss_names, math.nan)  # an epoch whose batches were all left out
        losses = trainer.label_loss_items(means)
        row = {"epoch": closed.epochs_closed, "time": closed.seconds, **losses, **trainer.metrics, **trainer.lr}
        if not self._csv:
            self._csv = (",".join(row) + "\n").encode()
        self._csv += (",".join(f"{float(value):.6g}" for value in row.values()) + "\n").encode()
        self._write_csv()

    def _write_csv(self) -> None:
        try:
            replace_file(self._trainer.csv, self._csv)
        except OSError as error:  # the checkpoint carries the same bytes; a full disk stops no training
            self._log.emit(events.SaveFailed(name=self._trainer.csv.name, error=str(error)))

    def _re_estimate_epochs(self, state: RunState) -> None:
        """With a time limit, plan as many epochs as fit, so that the learning rate ends where it should."""
        trainer = self._trainer
        if trainer.args.time:
            trainer.set_epochs(max(math.ceil(trainer.args.time * 3600 / (state.seconds / state.epochs_closed)), 1))

    # -- keeping ---------------------------------------------------------------------------------------------------

    def save_is_due(self, state: RunState) -> bool:
        return self._writer.idle and is_due(
            self._trainer.spec.cadence,
            since_try_s=time.monotonic() - self._last_save_s,
            steps_since_try=state.step - self._last_save_step,
            cost_s=self._writer.last_cost_s,
        )

    def save(self, state: RunState, *, required: bool) -> None:
        """Have `state` committed. What nothing changes before the next update is copied while training goes on.

        On a rank that follows, only callbacks hear of it.
        """
        started = time.monotonic()
        self.resolve_doubts()
        if not self._leads:
            if self._just_closed:
                self._just_closed = False
                self._trainer.run_callbacks("on_fit_epoch_end")
                self._trainer._clear_memory(0.5)
            return
        name, state, csv = self.name_of(state), self._described(state), self._csv
        is_best = self._just_closed and state.ledger.best_tick == state.tick(self._num_batches)
        best_before, self.best_name = self.best_name, name if is_best else self.best_name

        def submit(tensors: Copies) -> None:
            files = {"results.csv": csv}
            snapshot = Snapshot(name=name, state=state, tensors=tensors, made_from=self._made_from, files=files)
            self._writer.submit(snapshot, pin=is_best)
            if is_best and best_before is not None and best_before != name:
                self._writer.unpin(best_before)

        self._copying, self._stalls_s[name] = name, 0.0
        tensors = self._tensors()
        at_once = {*self._statistics, *(f"gradients/{gradient}" for gradient in tensors["gradients"])}
        try:
            with told_apart(lambda: "saving"):
                self._copies.begin(tensors, at_once=at_once, then=submit)
        except OutOfMemory as error:  # of the host; a run goes on without a save as it does when the disk is full
            self._log.emit(events.SaveFailed(name=name, error=str(error)))
        self._last_save_s, self._last_save_step = time.monotonic(), state.step
        self._stalls_s[name] += self._last_save_s - started
        if self._just_closed:
            self._just_closed = False
            if any(hook.__module__ not in _READ_NOTHING for hook in self._trainer.callbacks["on_model_save"]):
                self.drain()  # loggers read last.pt and best.pt
            self._trainer.run_callbacks("on_model_save")
            self._trainer.run_callbacks("on_fit_epoch_end")
            self._trainer._clear_memory(0.5)

    def _described(self, state: RunState) -> RunState:
        """`state` with what the trainer's parts know of it."""
        trainer = self._trainer
        means = trainer.tloss if trainer.tloss and state.cursor.batch else {}
        scaler = trainer.scaler.state_dict() if trainer.scaler.is_enabled() else None
        return replace(
            state,
            loss_means={name: float(value) for name, value in means.items()},
            optimizer_groups=groups_to_json(trainer.optimizer),
            scaler=scaler or None,
        )

    def name_of(self, state: RunState) -> str:
        """Name of the checkpoint that holds `state`."""
        return checkpoint_name(step=state.step, tick=state.tick(self._num_batches))

    def _tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        trainer = self._trainer
        return {
            "model": self._model_state,
            "ema": self._ema_state,
            "optimizer": named_state(trainer.optimizer, self._names),
            "gradients": gradients(self._model),
        }

    def drain(self) -> None:
        self._copies.wait()
        self._writer.drain(_DRAIN_S)

    # -- going back ------------------------------------------------------------------------------------------------

    def restore(self, snapshot: Snapshot) -> RunState:
        """Put everything where `snapshot` had it, and return its state."""
        trainer, state = self._trainer, snapshot.state
        restore_model(self._model, snapshot.tensors["model"], what="model")
        restore_model(trainer.ema.ema, snapshot.tensors["ema"], what="EMA")
        optimizer = snapshot.tensors.get("optimizer", {})
        restore_optimizer(trainer.optimizer, self._parameters, optimizer, state.optimizer_groups)
        restore_gradients(self._parameters, snapshot.tensors.get("gradients", {}))
        trainer.ema.updates = state.ema_updates
        if state.scaler is not None:
            trainer.scaler.load_state_dict(state.scaler)
        self._criterion.after_epochs(state.epochs_closed)
        trainer.show_ledger(state.ledger, state.epochs_closed)
        trainer.tloss = {
            name: torch.tensor(value, device=trainer.device) for name, value in state.loss_means.items()
        } or None
        if trainer.tloss:
            trainer.loss_items = trainer.tloss
        if self._leads:
            self._csv = snapshot.files.get("results.csv", b"")
            self._write_csv() if self._csv else trainer.csv.unlink(missing_ok=True)
            self._copies.release(self._copies.take(self._tensors()))  # pay for the first touch before training
        self._stepper.settle()
        self._open_epoch, self._doubts = None, []
        first = state.cursor.batch - state.pending_batches + state.cursor.epoch * self._num_batches
        self._window = tuple(
            Cursor(epoch=(first + i) // self._num_batches, batch=(first + i) % self._num_batches)
            for i in range(state.pending_batches)
        )
        self._re_estimate_epochs(state) if state.epochs_closed else None
        self._last_save_s, self._last_save_step = time.monotonic(), state.step
        self._clock_s = time.monotonic()
        return state

    def start_epoch_over(self, state: RunState) -> RunState:
        """The start of the epoch that `state` is in: its batches are others now, a place among them means nothing."""
        self._trainer.optimizer.zero_grad()
        self._trainer.tloss, self._window = None, ()
        return replace(state, cursor=Cursor(epoch=state.cursor.epoch, batch=0), pending_batches=0, loss_means={})

    def rewind(self, *, skip: tuple[Cursor, ...]) -> RunState:
        """Go back to the newest checkpoint that verifies and leave out `skip` from then on. All ranks take the same."""
        found = self._ranks.lead(self._newest)
        name = self._ranks.told(found and found.name)
        self._trainer.train_loader.reset()
        state = self.restore(found or self._checkpoints.load(name))
        for cursor in skip:
            self._log.emit(events.BatchSkipped(epoch=cursor.epoch, batch=cursor.batch, why="loss not finite"))
        self._skipped |= {*state.skipped, *skip}
        return replace(state, skipped=tuple(sorted(self._skipped)))

    def _newest(self) -> Snapshot:
        self.drain()
        found = self._checkpoints.newest_verified()
        for rejected in found.rejected:
            self._log.emit(events.CheckpointRejected(name=rejected.name, why=rejected.why))
        if found.snapshot is None:
            raise DataLoss(
                f"no checkpoint in {self._checkpoints.root} verifies, so the run cannot go back",
                remedy="look at the disk (`steadyolo doctor`), then start a new run from weights/last.pt",
            )
        return found.snapshot

    def report(self, fault: NotFinite, attempt: int, action: str) -> None:
        at = fault.batches[-1]
        self._log.emit(
            events.NonFinite(epoch=at.epoch, batch=at.batch, what=fault.what, attempt=attempt, action=action)
        )

    # -- memory that does not suffice ------------------------------------------------------------------------------

    def undo(self, fault: OutOfMemory) -> Shortage:
        """Put the failed batch's start back: in place or, once the optimizer began its step, from a checkpoint."""
        trainer, before = self._trainer, self._before
        if before is None:
            raise fault
        trainer.train_loader.reset()
        (is_applied,) = self._ranks.any(self._stepper.is_applied)
        if is_applied:
            free_memory()
            state = self.rewind(skip=())
        else:
            self._stepper.roll_back()
            trainer.tloss, trainer.loss, trainer.loss_items = before.tloss, before.loss, before.loss_items
            self._window, self._doubts = before.window, list(before.doubts)
            free_memory()
            state = before.state
        at = before.state.cursor
        num_images = -(-len(trainer.train_loader.order.positions(at)) // self._ranks.count)
        return Shortage(at=at, misfit=self._fitting.misfit(num_images), state=state)

    def adopt(self, fit: Fit, shortage: Shortage) -> None:
        self._fitting.adopt(fit, shortage.at)

    def tell(self, fault: OutOfMemory, shortage: Shortage, attempt: int, action: str) -> None:
        at = shortage.at
        fit = asdict(self._fitting.at(at))
        self._log.emit(
            events.OutOfMemory(
                where=fault.moment,
                epoch=at.epoch,
                batch=at.batch,
                attempt=attempt,
                action=action,
                fit=fit,
                error=fault.error,
            )
        )

    def give_up(self, fault: OutOfMemory, shortage: Shortage, why: str) -> DoesNotFit:
        """Save what there is, and say what would fit."""
        self._fitting.take_back(shortage.at)
        self.save(shortage.state, required=True)
        self.drain()
        return self._trainer.does_not_fit(fault.moment, f"{why} ({fault.error})")
