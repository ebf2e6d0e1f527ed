"""`Attempt`: one process's attempt at a run, from setting its trainer up to the last copy of what was trained.

Written against ultralytics 8.4.190.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ultralytics.utils import LOGGER

from steadyolo import events
from steadyolo.adapters.notices.notice import Notice
from steadyolo.adapters.notices.watch import watch_notices
from steadyolo.adapters.ultralytics.beginning import begin, begin_along, best_name_in
from steadyolo.adapters.ultralytics.export import WeightExporter
from steadyolo.adapters.ultralytics.opening import to_json
from steadyolo.adapters.ultralytics.planning import Planning
from steadyolo.adapters.ultralytics.run import ScoringCut, UltralyticsRun
from steadyolo.adapters.ultralytics.run_data import RunData
from steadyolo.adapters.ultralytics.workarounds import quiet_upstream
from steadyolo.errors import SteadyError, UserError
from steadyolo.state.run_state import RunState
from steadyolo.train.host_copy import HostCopies
from steadyolo.train.loop import train
from steadyolo.train.ranks import RankLost
from steadyolo.train.signals import EXIT_INTERRUPTED, StopRequest
from steadyolo.train.supervisor import supervise
from steadyolo.train.together import Together
from steadyolo.vault.checkpoints import Checkpoints, Committed
from steadyolo.vault.files import OURS_FOLDER, replace_file
from steadyolo.vault.tiers import Tiers
from steadyolo.vault.uploader import TierSettings
from steadyolo.vault.writer import BackgroundWriter

if TYPE_CHECKING:
    from steadyolo.adapters.ultralytics.trainer import SteadyTrainer

_NOTICE_MARGIN_S = 5.0  # a machine that is announced to end may end a little earlier
_LEAVING_S = 2.0  # of the grace after a stop, what closing everything may take
_TAKEN_OVER = "taken over"


class Attempt:
    """Trains the run of a trainer whose folder is open. On ranks that follow, `log` writes nothing."""

    def __init__(
        self, trainer: SteadyTrainer, *, planning: Planning, data: RunData, log: events.EventLog, stop: StopRequest
    ) -> None:
        self._trainer = trainer
        self._planning = planning
        self._data = data
        self._log = log
        self._stop = stop
        self._ranks = trainer.ranks
        self._leads = trainer.ranks.rank == 0
        self._folder = trainer.opened.folder
        self._checkpoints = Checkpoints(self._folder / OURS_FOLDER / "checkpoints", writer_id=trainer.opened.writer)
        self._save_error = "the disk did not answer"

    def train(self) -> None:
        """Train to the end, and log how it ended. Raises: SystemExit(75) when a stop was asked for, after saving."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._stop)
            if self._leads:
                stack.enter_context(watch_notices(self._note_notice))
            for watch in self._trainer.watchers if self._leads else ():
                stack.enter_context(watch(self._log, self._folder))
            try:
                self._train_watched()
            except SystemExit:
                self._log.emit(events.RunStopped(reason="interrupted", exit_code=EXIT_INTERRUPTED))
                raise
            except BaseException as error:
                if isinstance(error, RankLost) and self._stop.requested:
                    # It was too slow to stop; what is committed counts.
                    self._log.emit(events.RunStopped(reason="interrupted", exit_code=EXIT_INTERRUPTED))
                    raise SystemExit(EXIT_INTERRUPTED) from error
                taken = self._stop.signal_name == _TAKEN_OVER
                reason: events.StopReason = "taken_over" if taken else "failed"
                self._log.emit(events.RunStopped(reason=reason, exit_code=exit_code_of(error)))
                raise

    def _note_notice(self, notice: Notice) -> None:
        left_s = notice.seconds_left(datetime.now(UTC))
        if left_s is not None:  # a warning alone ends nothing
            self._stop.request(f"{notice.provider} {notice.kind} notice", grace_s=left_s - _NOTICE_MARGIN_S)
        self._log.emit(events.PreemptionNotice(provider=notice.provider, action=notice.kind, seconds_left=left_s))

    def _train_watched(self) -> None:
        trainer, own = self._trainer, self._folder / OURS_FOLDER
        trainer._setup_train()
        if self._data.problems:
            self._log.emit(events.ImagesSkipped(count=len(self._data.problems), listed=self._data.problems))
        if self._leads:
            self._planning.plan_memory(self._log)
        made_from = self._planning.made_from(self._planning.plan()) if self._leads else None
        compute, made_from = self._ranks.told((trainer.precision.compute, made_from))
        trainer.precision, plan = replace(trainer.precision, compute=compute), made_from["plan"]
        trainer.scoring = self._planning.scoring(plan, self._log)
        if self._leads:
            replace_file(own / "spec.json", to_json(trainer.spec.to_dict()))
            replace_file(own / "plan.json", to_json(plan))
            (own / "finished.json").unlink(missing_ok=True)
        best_name = best_name_in(trainer, self._checkpoints)
        with self._tiers(best_name) as tiers:
            state = self._train_kept(made_from, best_name, tiers)
            self._ranks.lead(lambda: self._conclude(state, tiers))
        is_late = state.epochs_closed < trainer.epochs and not state.ledger.stop
        reason: events.StopReason = "time" if is_late else "early_stopping" if state.ledger.stop else "finished"
        self._log.emit(events.RunStopped(reason=reason, exit_code=0))

    def _tiers(self, best_name: str | None) -> Tiers:
        """The places beyond the run folder. When another process takes the run over, this one saves and stops."""

        def heard(event: events.Event) -> None:
            self._log.emit(event)
            if isinstance(event, events.TakenOver):
                self._stop.request(_TAKEN_OVER)

        opened, spec = self._trainer.opened, self._trainer.spec
        settings = {
            tier: TierSettings(
                tier=tier,
                keep_last=spec.num_copies_kept[tier],
                spool_bytes=spec.spool_bytes,
                bandwidth_bytes_s=spec.bandwidth_bytes_s,
            )
            for tier in opened.stores
        }
        return Tiers(
            opened.stores,
            settings,
            opened.session,
            self._folder,
            checkpoints=self._checkpoints,
            best=best_name,
            emit=heard,
            chance=random.SystemRandom().random,  # the module's own generator belongs to training
        )

    def _train_kept(self, made_from: dict[str, Any], best_name: str | None, tiers: Tiers) -> RunState:
        """Train to the end. Raises: SystemExit(75) after a stop, `SteadyError` if taken over or not kept at the end."""
        trainer, checkpoints = self._trainer, self._checkpoints
        copies = HostCopies()
        run_stalls: dict[str, float] = {}

        def on_committed(committed: Committed) -> None:
            self._log.emit(
                events.SaveCommitted(
                    name=committed.name,
                    step=int(committed.name[5:13]),
                    num_bytes=committed.num_bytes,
                    seconds=committed.seconds,
                    stall_seconds=run_stalls.pop(committed.name, 0.0),
                )
            )
            tiers.offer(committed.name, committed.num_bytes, best=run.best_name)

        def on_failed(name: str, error: Exception) -> None:
            self._save_error = str(error)
            self._log.emit(events.SaveFailed(name=name, error=str(error)))

        writer = BackgroundWriter(
            checkpoints,
            keep_last=trainer.spec.num_keep_last,
            pinned=[best_name] if best_name else [],
            parent=trainer.opened.start.name if trainer.opened.start else None,
            spared=tiers.needed,
            exports=self._exporter(best_name),
            on_committed=on_committed,
            on_failed=on_failed,
            release=lambda snapshot: copies.release(snapshot.tensors),
        )
        run = UltralyticsRun(
            trainer,
            checkpoints=checkpoints,
            writer=writer,
            log=self._log,
            stop=self._stop,
            copies=copies,
            made_from=made_from,
            fitting=self._planning.fitting(made_from["plan"]),
            best_name=best_name,
            stalls_s=run_stalls,
        )
        state = self._ranks.lead(lambda: self._begin(run, writer)) or self._begin_along(run)
        try:
            with quiet_upstream() if trainer.watchers else contextlib.nullcontext():
                state = supervise(run, state, num_tries=trainer.spec.num_tries, loop=self._train_together)
        finally:
            trainer.train_loader.close()
            writer.close(timeout_s=max(0.0, self._stop.remaining_s()))
        if tiers.taken_over is not None:
            raise SteadyError(
                f"{tiers.taken_over}; this process saved and stopped",
                remedy=f"let that one go on; what was trained here is kept in {self._folder}",
            )
        if self._ranks.rank:
            if self._stop.acknowledged():
                self._ranks.lead(lambda: None)  # until rank 0 has saved, and ends
            return state
        if self._stop.acknowledged():
            tiers.drain(max(0.0, self._stop.remaining_s() - _LEAVING_S))
            raise SystemExit(EXIT_INTERRUPTED)
        if writer.newest_committed != run.name_of(state):
            raise SteadyError(
                f"training is over, but its last state could not be kept in {checkpoints.root}: {self._save_error}",
                remedy=f"make room, then run steadyolo resume {self._folder}",
            )
        return state

    def _exporter(self, best_name: str | None) -> WeightExporter:
        trainer = self._trainer
        exporter = WeightExporter(
            trainer.ema.ema, trainer.wdir, train_args=vars(trainer.args), save_period=int(trainer.args.save_period)
        )
        if best_name is not None and trainer.opened.session is not None:
            try:
                exporter.restore(self._checkpoints.load(best_name))
            except SteadyError as error:  # a run goes on without its best weights too
                LOGGER.warning(f"weights/best.pt is not restored: {error.message}")
        return exporter

    def _train_together(self, run: UltralyticsRun, state: RunState) -> RunState:
        return train(run if self._ranks.count == 1 else Together(run, self._ranks, self._stop), state)

    def _begin(self, run: UltralyticsRun, writer: BackgroundWriter) -> RunState:
        """The state to start from. A new run's is committed before its first batch."""
        state = begin(self._trainer, run, self._checkpoints, self._log)
        if self._trainer.opened.start is None:
            run.save(state, required=True)
            run.drain()
            if writer.newest_committed is None:
                raise UserError(
                    f"the first checkpoint could not be written to {self._checkpoints.root}: {self._save_error}",
                    remedy="make room or choose another project=",
                )
        self._trainer.run_callbacks("on_train_start")
        return state

    def _begin_along(self, run: UltralyticsRun) -> RunState:
        state = begin_along(self._trainer, run)
        self._trainer.run_callbacks("on_train_start")
        return state

    def _conclude(self, state: RunState, tiers: Tiers) -> None:
        """Score the best weights, write down that the run is finished, and wait for its copies."""
        self._finish(state)
        self._log.emit(
            events.RunFinished(
                epochs=state.epochs_closed,
                step=state.step,
                seconds=state.seconds,
                best_fitness=state.ledger.best_fitness,
                best_epoch=state.ledger.best_epoch,
            )
        )
        if late := tiers.drain(self._trainer.spec.store_drain_s, give_up=lambda: self._stop.requested):
            LOGGER.warning(
                f"the run is finished and kept here, but {' and '.join(late)} lack its last part: "
                f"run steadyolo store push {self._folder}"
            )

    def _finish(self, state: RunState) -> None:
        trainer = self._trainer
        try:
            trainer.final_eval()
        except ScoringCut:
            self._stop.acknowledged()
            raise SystemExit(EXIT_INTERRUPTED) from None
        if trainer.args.plots:
            trainer.plot_metrics()
        trainer.run_callbacks("on_train_end")
        trainer._clear_memory()
        trainer.validator.dataloader.close()
        finished = {
            "epochs": state.epochs_closed,
            "early": state.ledger.stop,
            "patience": int(trainer.args.patience or 0),
            "best_fitness": state.ledger.best_fitness,
            "best_epoch": state.ledger.best_epoch,
        }
        replace_file(self._folder / OURS_FOLDER / "finished.json", to_json(finished))


def exit_code_of(error: BaseException | None) -> int:
    """The code that a process ends with for `error`; 0 for None."""
    match error:
        case None:
            return 0
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case UserError():
            return 2
    return 1
