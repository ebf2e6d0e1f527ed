"""`SteadyTrainer`: an Ultralytics trainer, for each task, whose training loop is steadyolo's.

Written against ultralytics 8.4.190. Models, losses, datasets, validators and plots are upstream's; order, randomness,
the step, saving, recovery and stopping are ours.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from ultralytics.cfg import DEFAULT_CFG
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

from steadyolo import events
from steadyolo.adapters.notices.notice import Notice
from steadyolo.adapters.notices.watch import watch_notices
from steadyolo.adapters.objects.opening import open_store
from steadyolo.adapters.ultralytics.checked_data import (
    Problems,
    listed,
    refuse_labels,
    resolve_yaml,
    translated,
)
from steadyolo.adapters.ultralytics.criterion import bounded_criterion
from steadyolo.adapters.ultralytics.dataset import KeyedClassificationDataset, KeyedDataset
from steadyolo.adapters.ultralytics.export import WeightExporter
from steadyolo.adapters.ultralytics.fitting import Fitting, schedule_of
from steadyolo.adapters.ultralytics.launching import Launching, device_of, ranks_asked
from steadyolo.adapters.ultralytics.loader import KeyedLoader, num_window_images
from steadyolo.adapters.ultralytics.opening import (
    Opened,
    clear_disk_errors,
    num_cores,
    open_existing,
    open_new,
    open_together,
    package_versions,
    to_json,
)
from steadyolo.adapters.ultralytics.optimizers import fused
from steadyolo.adapters.ultralytics.request import may_be_short, planned
from steadyolo.adapters.ultralytics.run import ScoringCut, UltralyticsRun
from steadyolo.adapters.ultralytics.scoring import Scoring
from steadyolo.adapters.ultralytics.workarounds import hide_ranks, light_determinism, patient_nms, quiet_upstream
from steadyolo.data.cache import usual_cache
from steadyolo.data.fetch import Dataset, fetch_dataset, is_in_store
from steadyolo.data.fingerprint import fingerprint
from steadyolo.data.mirror import Progress
from steadyolo.data.order import SampleOrder
from steadyolo.data.window import DecodedWindow
from steadyolo.errors import DoesNotFit, SteadyError, UserError
from steadyolo.plan.fit import Fit, FitSchedule
from steadyolo.plan.memory_plan import MemoryPlan
from steadyolo.plan.recovery import Again, Stop
from steadyolo.spec.size import size_text
from steadyolo.state.host_memory import arrange_freed_memory
from steadyolo.state.run_state import Ledger, RunState
from steadyolo.train.host_copy import HostCopies
from steadyolo.train.loop import train
from steadyolo.train.precision import Precision, choose_precision
from steadyolo.train.ranks import RankLost, Ranks, is_among_ranks, join
from steadyolo.train.recompute import Recompute
from steadyolo.train.signals import EXIT_INTERRUPTED, StopRequest, exit_at_once
from steadyolo.train.supervisor import supervise
from steadyolo.train.together import Together
from steadyolo.vault.checkpoints import Checkpoints, Committed
from steadyolo.vault.files import OURS_FOLDER, replace_file
from steadyolo.vault.lock import RunLock
from steadyolo.vault.tiers import Tiers
from steadyolo.vault.uploader import TierSettings
from steadyolo.vault.writer import BackgroundWriter

_GRACE_S = 20.0  # a stop must be over within 25 s; what is committed by then is what there is
_NOTICE_MARGIN_S = 5.0  # a machine that is announced to end may end a little earlier
_TELL_FETCHING_S = 5.0
_LEAVING_S = 2.0  # of that, what closing everything may take
_TAKEN_OVER = "taken over"
_USUAL_BATCH = 16  # what a data set is built with before its batch is known


class SteadyTrainer(BaseTrainer):  # type: ignore[misc]  # upstream is untyped
    """`YOLO(...).train(trainer=SteadyTrainer, ...)`: made for the model's task; takes our dotted arguments too.

    `resume=RUN` (a run folder) goes on with that run. Raises: UserError for what is wrong with the request or the data,
    SystemExit(75) after a stop signal, once the state is saved.
    """

    watchers: ClassVar[list[Callable[[events.EventLog, Path], contextlib.AbstractContextManager[Any]]]] = []

    def __new__(cls, cfg: Any = DEFAULT_CFG, overrides: Any = None, _callbacks: Any = None) -> Any:
        """A trainer for the task; or, where several processes are asked for, what starts them."""
        task = str((overrides or {}).get("task") or "detect")
        if task not in _BY_TASK:
            raise UserError(f"task={task} is not supported", remedy=f"use one of {', '.join(_BY_TASK)}")
        num_ranks = 1 if is_among_ranks(os.environ) else ranks_asked(overrides or {})
        if num_ranks > 1:
            return Launching(overrides, num_ranks, _callbacks)
        made: SteadyTrainer = object.__new__(_BY_TASK[task] if cls is SteadyTrainer else cls)
        return made

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: Any = None, _callbacks: Any = None) -> None:
        given = {name: value for name, value in (overrides or {}).items() if name != "session"}
        ours = {name: str(given.pop(name)) for name in list(given) if "." in name}
        allowed = frozenset(ours.pop("resume.allow", "").replace(",", " ").split())
        resume = given.pop("resume", None)
        self._problems: dict[str, str] = {}
        self._dataset: Dataset | None = None  # the one in the cache, when it came from a store
        self._log: events.EventLog | None = None
        self._save_error = "the disk did not answer"
        self._stop_request = StopRequest(grace_s=_GRACE_S, overdue=exit_at_once, on_signal=self._note_signal)
        self._lock: RunLock | None = None
        with self._stop_request, clear_disk_errors():  # setting up takes long enough to be interrupted
            self.ranks: Ranks = join(os.environ, self._stop_request)
            if self.ranks.count > 1:
                hide_ranks(self.ranks.rank)

            def open_run() -> Opened:
                return open_existing(Path(resume), given, ours, allowed) if resume else open_new(given, ours)

            try:
                opened = open_together(self.ranks, open_run)
                self._lock = opened.lock
                self._set_up(opened, cfg, _callbacks)
            except BaseException as error:
                self._let_go(error)
                raise

    def _set_up(self, opened: Opened, cfg: Any, callbacks: Any) -> None:
        self.spec, self._folder = opened.spec, opened.folder
        self._start, self._rejected, self._allowed = opened.start, opened.rejected, opened.allowed
        self._opened = opened
        arguments = dict(self.spec.arguments)
        self.amp_given = "amp" in arguments
        self._memory_plan: MemoryPlan | None = None
        if self.ranks.count > 1:
            local_rank = int(os.environ.get("LOCAL_RANK", self.ranks.rank))
            arguments["device"] = device_of(arguments, local_rank=local_rank)
        if self._start is not None:
            before = self._start.made_from["plan"]
            arguments.update(before["optimizer"])  # what `optimizer=auto` chose holds, and what `batch=auto` did
            arguments |= {"batch": before["batch"]} if "batch" in before else {}
        with light_determinism(arguments.get("compile")):
            super().__init__(cfg, {**arguments, "save_dir": str(self._folder)}, callbacks)
        if self.device.type in {"cpu", "mps"}:  # upstream loads in the training process there; so do we unless asked
            self.args.workers = int(arguments.get("workers") or 0)
        if self.device.type == "cpu":  # upstream leaves one core idle
            before = self._start.made_from["plan"] if self._start else {}
            is_same = before.get("ranks", 1) == self.ranks.count
            threads = before.get("threads") if is_same else self.spec.num_threads
            torch.set_num_threads(threads or self.spec.num_threads or max(1, num_cores() // self.ranks.count))
            arrange_freed_memory()
        if self.ranks.rank:
            self.args.plots = False

    # -- what upstream asks its subclasses for ---------------------------------------------------------------------

    def setup_model(self) -> Any:
        """As upstream. Raises: UserError when the model cannot be found, built or loaded."""
        try:
            return super().setup_model()
        except SteadyError:
            raise
        except Exception as error:
            raise UserError(
                f"the model {self.args.model} cannot be built: {type(error).__name__}: {error}",
                remedy="name a model of Ultralytics such as yolo11n.pt or yolo11n.yaml, or correct the file",
            ) from error

    def get_dataset(self) -> dict[str, Any]:
        return self._in_turn(self._get_dataset)

    def _in_turn(self, work: Callable[[], Any]) -> Any:
        """Let rank 0 do `work` before the others do: they find there what it downloads, checks and caches."""
        result = self.ranks.lead(work)
        return work() if self.ranks.rank else result

    def _get_dataset(self) -> dict[str, Any]:
        if is_in_store(str(self.args.data)):
            self.args.data = str(self._fetched_dataset(str(self.args.data)))
        data = Path(str(self.args.data))
        with translated(self.args.data):
            if data.is_file() and data.suffix in {".yaml", ".yml"}:
                self.args.data = str(resolve_yaml(data, self._folder / OURS_FOLDER))
            return super().get_dataset()  # type: ignore[no-any-return]

    def _fetched_dataset(self, url: str) -> Path:
        """The data set at `url`, mirrored into the cache and held there until the run ends."""
        last_s = 0.0

        def show(progress: Progress) -> None:
            nonlocal last_s
            if self._stop_request.requested:
                raise SystemExit(EXIT_INTERRUPTED)
            if time.monotonic() - last_s > _TELL_FETCHING_S:
                last_s = time.monotonic()
                LOGGER.info(f"fetching {url}: {_fetching(progress)}")

        self._dataset = fetch_dataset(
            url,
            open_store=open_store,
            cache=self.spec.dataset_cache or usual_cache(os.environ),
            budget_bytes=self.spec.dataset_cache_bytes,
            wants_folder=self.args.task == "classify",
            on_progress=show,
        )
        for warning in self._dataset.warnings:
            LOGGER.warning(warning)
        return self._dataset.data

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """As upstream builds it, of our classes, with what cannot be used left out, counted and listed."""
        with translated(self.args.data):
            dataset = self._make_dataset(img_path, mode, batch)
        return dataset

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        if mode != "train":
            return self._in_turn(partial(super().get_dataloader, dataset_path, batch_size, rank, mode))
        dataset = self._in_turn(partial(self._build_train_dataset, dataset_path, batch_size))
        num_samples = len(dataset)
        batch_size = min(batch_size, num_samples)
        drop_last = bool(self.args.compile) and num_samples > batch_size
        rect = getattr(dataset, "rect", False)
        order = SampleOrder(
            seed=int(self.args.seed),
            num_samples=num_samples,
            batch_size=batch_size,
            num_batches=num_samples // batch_size if drop_last else -(-num_samples // batch_size),
            shuffle=not (rect and bool((dataset.batch_shapes != dataset.batch_shapes[0]).any())),
        )
        self._bind(dataset, order)
        return KeyedLoader(
            dataset,
            order,
            num_workers=int(self.args.workers),
            pin_memory=self.device.type == "cuda",
            rank=self.ranks.rank,
            num_ranks=self.ranks.count,
        )

    def _build_train_dataset(self, img_path: str, batch_size: int) -> Any:
        dataset = self.build_dataset(img_path, "train", batch_size)
        if not len(dataset):
            raise UserError(f"the train split {img_path} holds no images", remedy="point train: at images")
        if (num_images := min(batch_size, len(dataset))) < self.ranks.count:
            raise UserError(
                f"a batch of {num_images} images leaves some of the {self.ranks.count} processes without any",
                remedy=f"use batch={self.ranks.count} or more, or fewer processes",
            )
        return dataset

    def _make_dataset(self, img_path: str, mode: str, batch: int | None) -> Any:
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        dataset = KeyedDataset(
            img_path=img_path,
            imgsz=self.args.imgsz,
            batch_size=batch,
            augment=mode == "train",
            hyp=self.args,
            rect=self.args.rect or mode == "val",
            cache=self.args.cache or None,
            single_cls=self.args.single_cls or False,
            stride=stride,
            pad=0.0 if mode == "train" else 0.5,
            prefix=f"{mode}: ",
            task=self.args.task,
            classes=self.args.classes,
            data=self.data,
            fraction=_fraction(self.args.fraction, mode, self.args.split),
            on_problems=self._note_problems,
        )
        return dataset

    def _note_problems(self, problems: Problems, num_left: int) -> None:
        """Refuse bad labels unless asked otherwise; leave out and list what else cannot be used."""
        if problems.labels and self.spec.bad_labels == "refuse":
            raise refuse_labels(problems.labels)
        if not num_left:
            raise UserError(
                f"none of the {len(problems.all)} images can be used:\n{listed(problems.all)}",
                remedy="look at these files",
            )
        self._problems |= problems.all

    def _bind(self, dataset: Any, order: SampleOrder) -> None:
        num_workers = int(self.args.workers)
        closed = self._first_closed_epoch()
        channels = int(self.data.get("channels", 3))
        window = DecodedWindow(
            num_window_images(order, num_workers),
            max_image_bytes=int(self.args.imgsz) ** 2 * channels,
            shared=num_workers > 0 and dataset.cache != "ram",
        )
        dataset.keyed(order, window=window, first_closed_epoch=closed, hyp=self.args)

    def _first_closed_epoch(self) -> int | None:
        return self.epochs - self.args.close_mosaic if self.args.close_mosaic else None

    def set_model_attributes(self) -> None:
        super().set_model_attributes()
        self._check_image_size()
        self.precision: Precision = choose_precision(
            asked=self.spec.compute,
            amp=self.args.amp,
            amp_given=self.amp_given,
            channels_last=self.args.channels_last,
            device=self.device,
        )
        if self.precision.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)

    def _check_image_size(self) -> None:
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        size = self.args.imgsz
        if not isinstance(size, int) or isinstance(size, bool) or size < stride or size % stride:
            near = (
                sorted({max(int(size) // stride, 1) * stride, -(-int(size) // stride) * stride})
                if isinstance(size, int | float)
                else [640]
            )
            raise UserError(
                f"imgsz={size} is not a multiple of the model's stride {stride}",
                remedy=f"use imgsz={' or imgsz='.join(str(n) for n in near)}",
            )

    def build_optimizer(self, model: Any, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Upstream's optimizer in its fused form where there is one: faster, and needs no word from the host."""
        optimizer: torch.optim.Optimizer = super().build_optimizer(model, *args, **kwargs)
        return fused(optimizer) if self.device.type in {"cpu", "cuda"} else optimizer

    def auto_batch(self) -> int:
        """The largest batch that fits: what upstream asks for where `batch=-1`. All ranks have an equal share of it."""
        return int(self.ranks.told(self._largest_share() * self.ranks.count if self.ranks.rank == 0 else None))

    def _largest_share(self) -> int:
        train, val = (
            self.build_dataset(self.data[split], mode, _USUAL_BATCH)
            for split, mode in (("train", "train"), (self.args.split, "val"))
        )
        self._memory_plan = plan = planned(self, train, val, num_batch_images=None)
        return plan.num_batch_images

    def get_validator(self) -> Any:
        validator = super().get_validator()
        validator.callbacks = {name: list(hooks) for name, hooks in validator.callbacks.items()}
        validator.callbacks.setdefault("on_val_batch_start", []).append(self._cut_scoring)
        return validator

    def _cut_scoring(self, _: Any) -> None:
        if self._stop_request.requested:
            raise ScoringCut

    def _note_signal(self, name: str) -> None:
        if self._log is not None:
            self._log.emit(events.SignalReceived(signal=name))

    def _note_notice(self, notice: Notice) -> None:
        left_s = notice.seconds_left(datetime.now(UTC))
        if left_s is not None:  # a warning alone ends nothing
            self._stop_request.request(f"{notice.provider} {notice.kind} notice", grace_s=left_s - _NOTICE_MARGIN_S)
        if self._log is not None:
            self._log.emit(events.PreemptionNotice(provider=notice.provider, action=notice.kind, seconds_left=left_s))

    def validate(self) -> Any:
        """Score the EMA. Raises: DoesNotFit when there is not enough memory for a single image."""
        bounded_criterion(self.ema.ema)  # scoring computes losses too, of twice as many images at once
        with patient_nms():
            return self._scored(super().validate)

    def _scored(self, score: Callable[[], Any]) -> Any:
        scores = self._scoring(score, self.epoch)
        if isinstance(scores, Stop):
            raise self.does_not_fit("validation", scores.why)
        return scores

    def final_eval(self) -> None:
        """Score `best.pt`. Upstream also strips both files in place here; ours are exported stripped."""
        if not self.best.exists():
            return
        LOGGER.info(f"\nValidating {self.best}...")
        self.validator.args.plots = self.args.plots
        self.validator.args.compile = False
        with patient_nms():
            self.metrics = self._scored(lambda: self.validator(model=self.best))
        self.metrics.pop("fitness", None)
        self.epoch += 1
        self.run_callbacks("on_fit_epoch_end")
        self.epoch -= 1

    # -- the run ---------------------------------------------------------------------------------------------------

    def train(self) -> Any:
        """Train to the end. Raises: SystemExit(75) when a signal stopped it, after saving."""
        try:
            with light_determinism(self.args.compile):
                result = super().train()
        except BaseException as error:
            self._let_go(error)
            raise
        self._let_go(None)
        return result

    def _let_go(self, error: BaseException | None) -> None:
        """Give the run's folder back, and a data set that came from a store; let the other ranks know the end."""
        if self._dataset is not None:
            self._dataset.close()
        if self._lock is not None:
            self._lock.release()
        self.ranks.leave(_exit_code(error))

    def _setup_train(self) -> None:
        super()._setup_train()
        if self.ranks.count > 1:
            self.ranks.broadcast_([*self.model.state_dict().values(), *self.ema.ema.state_dict().values()])
            (lacks_amp,) = self.ranks.any(not self.amp)
            if lacks_amp and self.amp:  # upstream found on another rank that it does not work there
                self.amp, self.scaler = False, torch.amp.GradScaler(self.device.type, enabled=False)
            self.metrics = self.metrics or {}  # upstream gives them to rank 0 only
        if self.ranks.rank and hasattr(self.test_loader, "close"):
            self.test_loader.close()  # its workers would wait for nothing: only rank 0 scores

    def _do_train(self) -> None:
        with contextlib.ExitStack() as stack:
            leads = self.ranks.rank == 0
            log = self._log = events.EventLog(self._folder / OURS_FOLDER / "events.jsonl" if leads else None)
            stack.callback(log.close)
            stop = stack.enter_context(self._stop_request)
            if leads:
                stack.enter_context(watch_notices(self._note_notice))
            for watch in self.watchers if leads else ():
                stack.enter_context(watch(log, self._folder))
            try:
                self._train_watched(log, stop)
            except SystemExit:
                log.emit(events.RunStopped(reason="interrupted", exit_code=EXIT_INTERRUPTED))
                raise
            except BaseException as error:
                if isinstance(error, RankLost) and stop.requested:  # it was too slow to stop; what is committed counts
                    log.emit(events.RunStopped(reason="interrupted", exit_code=EXIT_INTERRUPTED))
                    raise SystemExit(EXIT_INTERRUPTED) from error
                taken = stop.signal_name == _TAKEN_OVER
                reason: events.StopReason = "taken_over" if taken else "failed"
                log.emit(events.RunStopped(reason=reason, exit_code=_exit_code(error)))
                raise

    def _train_watched(self, log: events.EventLog, stop: StopRequest) -> None:
        own = self._folder / OURS_FOLDER
        self._setup_train()
        if self._problems:
            log.emit(events.ImagesSkipped(count=len(self._problems), listed=self._problems))
        leads = self.ranks.rank == 0
        if leads:
            self._plan_memory(log)
        made_from = self._made_from(self._plan()) if leads else None
        compute, made_from = self.ranks.told((self.precision.compute, made_from))
        self.precision, plan = replace(self.precision, compute=compute), made_from["plan"]
        self._scoring = self._make_scoring(plan, log)
        if leads:
            replace_file(own / "spec.json", to_json(self.spec.to_dict()))
            replace_file(own / "plan.json", to_json(plan))
            (own / "finished.json").unlink(missing_ok=True)
        checkpoints = Checkpoints(own / "checkpoints", writer_id=self._opened.writer)
        best_name = self._best_name(checkpoints)
        with self._tiers(checkpoints, best_name, log, stop) as tiers:
            state = self._train_kept(log, stop, plan, made_from, checkpoints, best_name, tiers)
            self.ranks.lead(lambda: self._conclude(state, log, stop, tiers))
        is_late = state.epochs_closed < self.epochs and not state.ledger.stop
        reason: events.StopReason = "time" if is_late else "early_stopping" if state.ledger.stop else "finished"
        log.emit(events.RunStopped(reason=reason, exit_code=0))

    def _conclude(self, state: RunState, log: events.EventLog, stop: StopRequest, tiers: Tiers) -> None:
        """Score the best weights, write down that the run is finished, and wait for its copies."""
        self._finish(state)
        log.emit(
            events.RunFinished(
                epochs=state.epochs_closed,
                step=state.step,
                seconds=state.seconds,
                best_fitness=state.ledger.best_fitness,
                best_epoch=state.ledger.best_epoch,
            )
        )
        if late := tiers.drain(self.spec.store_drain_s, give_up=lambda: stop.requested):
            LOGGER.warning(
                f"the run is finished and kept here, but {' and '.join(late)} lack its last part: "
                f"run steadyolo store push {self._folder}"
            )

    def _tiers(self, checkpoints: Checkpoints, best_name: str | None, log: events.EventLog, stop: StopRequest) -> Tiers:
        """The places beyond the run folder. When another process takes the run over, this one saves and stops."""

        def heard(event: events.Event) -> None:
            log.emit(event)
            if isinstance(event, events.TakenOver):
                stop.request(_TAKEN_OVER)

        settings = {
            tier: TierSettings(
                tier=tier,
                keep_last=self.spec.num_copies_kept[tier],
                spool_bytes=self.spec.spool_bytes,
                bandwidth_bytes_s=self.spec.bandwidth_bytes_s,
            )
            for tier in self._opened.stores
        }
        return Tiers(
            self._opened.stores,
            settings,
            self._opened.session,
            self._folder,
            checkpoints=checkpoints,
            best=best_name,
            emit=heard,
            chance=random.SystemRandom().random,  # the module's own generator belongs to training
        )

    def _train_kept(
        self,
        log: events.EventLog,
        stop: StopRequest,
        plan: dict[str, Any],
        made_from: dict[str, Any],
        checkpoints: Checkpoints,
        best_name: str | None,
        tiers: Tiers,
    ) -> RunState:
        """Train to the end. Raises: SystemExit(75) after a stop, `SteadyError` if taken over or not kept at the end."""
        copies = HostCopies()
        run_stalls: dict[str, float] = {}

        def on_committed(committed: Committed) -> None:
            log.emit(
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
            log.emit(events.SaveFailed(name=name, error=str(error)))

        exporter = WeightExporter(
            self.ema.ema, self.wdir, train_args=vars(self.args), save_period=int(self.args.save_period)
        )
        if best_name is not None and self._opened.session is not None:
            try:
                exporter.restore(checkpoints.load(best_name))
            except SteadyError as error:  # a run goes on without its best weights too
                LOGGER.warning(f"weights/best.pt is not restored: {error.message}")
        writer = BackgroundWriter(
            checkpoints,
            keep_last=self.spec.num_keep_last,
            pinned=[best_name] if best_name else [],
            parent=self._start.name if self._start else None,
            spared=tiers.needed,
            exports=exporter,
            on_committed=on_committed,
            on_failed=on_failed,
            release=lambda snapshot: copies.release(snapshot.tensors),
        )
        run = UltralyticsRun(
            self,
            checkpoints=checkpoints,
            writer=writer,
            log=log,
            stop=stop,
            copies=copies,
            made_from=made_from,
            fitting=self._fitting(plan),
            best_name=best_name,
            stalls_s=run_stalls,
        )
        begun = self.ranks.lead(lambda: self._begin(run, writer, checkpoints, log))
        state = begun or self._begin_along(run)
        try:
            with quiet_upstream() if self.watchers else contextlib.nullcontext():
                state = supervise(run, state, num_tries=self.spec.num_tries, loop=partial(self._train_together, stop))
        finally:
            self.train_loader.close()
            writer.close(timeout_s=max(0.0, stop.remaining_s()))
        if tiers.taken_over is not None:
            raise SteadyError(
                f"{tiers.taken_over}; this process saved and stopped",
                remedy=f"let that one go on; what was trained here is kept in {self._folder}",
            )
        if self.ranks.rank:
            if stop.acknowledged():
                self.ranks.lead(lambda: None)  # until rank 0 has saved, and ends
            return state
        if stop.acknowledged():
            tiers.drain(max(0.0, stop.remaining_s() - _LEAVING_S))
            raise SystemExit(EXIT_INTERRUPTED)
        if writer.newest_committed != run.name_of(state):
            raise SteadyError(
                f"training is over, but its last state could not be kept in {checkpoints.root}: {self._save_error}",
                remedy=f"make room, then run steadyolo resume {self._folder}",
            )
        return state

    def _train_together(self, stop: StopRequest, run: UltralyticsRun, state: RunState) -> RunState:
        return train(run if self.ranks.count == 1 else Together(run, self.ranks, stop), state)

    def _begin_along(self, run: UltralyticsRun) -> RunState:
        """On a rank that follows: the state to start from, with everything in place."""
        self.stop, self.epoch = False, 0
        self.train_time_start = self.epoch_time_start = time.time()
        self.optimizer.zero_grad()
        state = self._resumed(run)
        self.run_callbacks("on_train_start")
        return state

    def _resumed(self, run: UltralyticsRun) -> RunState:
        """Everything where the checkpoint that the run goes on from has it."""
        if self._start is None:
            return RunState.fresh()
        state = self._reconsider_stop(run.restore(self._start))
        if self._start.made_from["plan"]["num_batches"] != len(self.train_loader):
            state = run.start_epoch_over(state)
        self._start = replace(self._start, tensors={})  # they are mapped from files that retention may delete
        return state

    def _begin(
        self, run: UltralyticsRun, writer: BackgroundWriter, checkpoints: Checkpoints, log: events.EventLog
    ) -> RunState:
        """The state to start from, with everything in place. A new run's is committed before its first batch."""
        self.stop, self.plot_idx, self.epoch = False, [0, 1, 2], 0
        self.train_time_start = self.epoch_time_start = time.time()
        if self.args.close_mosaic:
            base = (self.epochs - self.args.close_mosaic) * len(self.train_loader)
            self.plot_idx.extend([base, base + 1, base + 2])
        self.optimizer.zero_grad()
        checkpoints.sweep()
        state = self._resumed(run)
        for rejected in self._rejected:
            log.emit(events.CheckpointRejected(name=rejected.name, why=rejected.why))
        log.emit(
            events.RunStarted(
                model=str(self.args.model),
                task=str(self.args.task),
                data=str(self.spec.arguments["data"]),
                device=str(self.device),
                precision=self.precision.compute + (" channels_last" if self.precision.channels_last else ""),
                threads=torch.get_num_threads(),
                num_train_images=len(self.train_loader.dataset),
                num_val_images=len(self.test_loader.dataset),
                resumed_from=self._start.name if self._start else None,
                epochs=self.epochs,
                num_batches=len(self.train_loader),
            )
        )
        if self._start is not None:
            log.emit(
                events.Resumed(
                    name=self._start.name,
                    step=state.step,
                    epoch=state.cursor.epoch,
                    batch=state.cursor.batch,
                    best_fitness=state.ledger.best_fitness,
                    best_epoch=state.ledger.best_epoch,
                )
            )
        else:
            run.save(state, required=True)
            run.drain()
            if writer.newest_committed is None:
                raise UserError(
                    f"the first checkpoint could not be written to {checkpoints.root}: {self._save_error}",
                    remedy="make room or choose another project=",
                )
        self.run_callbacks("on_train_start")
        return state

    def _finish(self, state: RunState) -> None:
        try:
            self.final_eval()
        except ScoringCut:
            self._stop_request.acknowledged()
            raise SystemExit(EXIT_INTERRUPTED) from None
        if self.args.plots:
            self.plot_metrics()
        self.run_callbacks("on_train_end")
        self._clear_memory()
        self.validator.dataloader.close()
        finished = {
            "epochs": state.epochs_closed,
            "early": state.ledger.stop,
            "patience": int(self.args.patience or 0),
            "best_fitness": state.ledger.best_fitness,
            "best_epoch": state.ledger.best_epoch,
        }
        replace_file(self._folder / OURS_FOLDER / "finished.json", to_json(finished))

    def _reconsider_stop(self, state: RunState) -> RunState:
        """More patience than before takes an early stop back."""
        patience = int(self.args.patience or 0)
        since = state.epochs_closed - state.ledger.best_epoch
        return replace(state, ledger=replace(state.ledger, stop=bool(patience) and since >= patience))

    def _best_name(self, checkpoints: Checkpoints) -> str | None:
        """The committed checkpoint that holds the best weights so far, if there is one."""
        if self._start is None or not self._start.state.ledger.best_tick:
            return None
        suffix = f".{self._start.state.ledger.best_tick:08d}"
        return next((name for name in checkpoints.committed() if name.endswith(suffix)), None)

    def _plan_memory(self, log: events.EventLog) -> None:
        """Decide how batches go through the network, where memory may be short; a run that goes on keeps what holds."""
        started_s = time.monotonic()
        if self._start is None and self._memory_plan is None and may_be_short(self):
            datasets = self.train_loader.dataset, self.test_loader.dataset
            self._memory_plan = planned(self, *datasets, num_batch_images=self._num_share_images)
        plan = self._memory_plan
        before = (self._start.made_from["plan"].get("memory") if self._start else None) or {}
        if plan is not None:
            self.precision = replace(self.precision, compute=plan.workload.compute)
        elif before.get("device") == self.device.type:
            self.precision = replace(self.precision, compute=before["compute"])
        lines = tuple(plan.lines) if plan else ()
        log.emit(
            events.MemoryPlanned(
                lines=lines,
                predicted_bytes=plan.measurable_bytes if plan else None,
                budget_bytes=plan.room.num_bytes if plan and plan.room else None,
                seconds=time.monotonic() - started_s,
            )
        )

    @property
    def _num_share_images(self) -> int:
        """Images of a batch that one rank has at most."""
        return -(-self.batch_size // self.ranks.count)

    def _planned_fits(self) -> dict[str, Fit]:
        """How a batch of training, and one of validation, go through the network."""
        num_val_images = self.test_loader.batch_size
        if self._memory_plan is None:
            whole = Fit(num_images=self.spec.num_micro_batch_images or self._num_share_images)
            return {"fits": whole, "val_fits": Fit(num_images=num_val_images)}
        chosen = self._memory_plan.workload
        return {"fits": chosen.fit, "val_fits": Fit(num_images=min(chosen.val_batch, num_val_images))}

    def _plan(self) -> dict[str, Any]:
        """What was decided for this run. A run that goes on keeps what changes its mathematics."""
        start = None if self._start is None else (self._start.made_from["plan"], self._start.state.cursor)
        fits = {
            name: schedule_of(name, fit, start=start, plan_file=self._folder / OURS_FOLDER / "plan.json").to_list()
            for name, fit in self._planned_fits().items()
        }
        if self._start is not None:
            before = self._start.made_from["plan"]
            threads = before["threads"] if before.get("ranks", 1) == self.ranks.count else torch.get_num_threads()
            now = {"num_batches": len(self.train_loader), "ranks": self.ranks.count, "threads": threads}
            return {**before, **now, **fits}
        chosen = ("optimizer", "lr0", "warmup_bias_lr")
        return {
            **fits,
            "optimizer": {name: getattr(self.args, name) for name in chosen},
            "accumulate": int(self.accumulate),
            "batch": int(self.batch_size),
            "memory": self._memory_plan.to_dict() if self._memory_plan else None,
            "num_batches": len(self.train_loader),
            "compute": self.precision.compute,
            "channels_last": self.precision.channels_last,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "ranks": self.ranks.count,
        }

    def _fitting(self, plan: dict[str, Any]) -> Fitting:
        """What puts batches through the network, in the way that fits."""
        smallest = self.args.imgsz * (1 - float(self.args.multi_scale))
        return Fitting(
            FitSchedule.from_list(plan["fits"]),
            recompute=Recompute(self.bare_model),
            overlap_masks=bool(self.args.overlap_mask),
            num_least=1 if smallest >= 2 * self.stride else 2,  # else the last layers see one pixel of an image
            keep=lambda schedule: self._keep_fits("fits", schedule, plan),
        )

    def _make_scoring(self, plan: dict[str, Any], log: events.EventLog) -> Scoring:
        """What validates, in the way that fits."""

        def tell(error: str, epoch: int, attempt: int, move: Again | Stop) -> None:
            log.emit(
                events.OutOfMemory(
                    where="validation",
                    epoch=epoch,
                    batch=self.validator.batch_i or 0,
                    attempt=attempt,
                    action="giving up" if isinstance(move, Stop) else move.action,
                    fit={} if isinstance(move, Stop) else asdict(move.fit),
                    error=error,
                )
            )

        return Scoring(
            self.validator,
            self.ema.ema,
            FitSchedule.from_list(plan["val_fits"]),
            keep=lambda schedule: self._keep_fits("val_fits", schedule, plan),
            tell=tell,
        )

    def _keep_fits(self, name: str, schedule: FitSchedule, plan: dict[str, Any]) -> None:
        """Keep what was learned to fit in the plan: in the run folder, and in each checkpoint from now on."""
        plan[name] = schedule.to_list()
        if self.ranks.rank:
            return
        try:
            replace_file(self._folder / OURS_FOLDER / "plan.json", to_json(plan))
        except OSError as error:  # the next checkpoint carries it too
            LOGGER.warning(f"plan.json could not be written: {error}")

    def _made_from(self, plan: dict[str, Any]) -> dict[str, Any]:
        """The origin that each checkpoint carries. Raises: UserError when a resumed run's data has changed."""
        dataset = self.train_loader.dataset
        found = fingerprint(dataset.im_files, dataset.labels, self.data["names"])
        if self._start is not None:
            before = self._start.made_from["dataset"]
            if before["fingerprint"] != found and "dataset" not in self._allowed:
                raise UserError(
                    f"the dataset {self.args.data} is not the one this run was made from: it had "
                    f"{before['num_train_images']} images, now it has {len(dataset)}, or labels or sizes differ",
                    remedy="put the data back as it was, or pass allow=dataset to go on with what is there",
                )
            ranks_before = self._start.made_from["plan"].get("ranks", 1)
            if ranks_before != self.ranks.count:
                LOGGER.warning(
                    f"this run was trained by {ranks_before} processes, and goes on in {self.ranks.count}: the same "
                    "samples in each step, but not bit for bit"
                )
            if plan["compute"] != self.precision.compute or plan["device"] != self.device.type:
                LOGGER.warning(
                    f"this run began in {plan['compute']} on {plan['device']}, and goes on in "
                    f"{self.precision.compute} on {self.device.type}: not bit for bit"
                )
        return {
            "spec": self.spec.to_dict(),
            "plan": plan,
            "versions": package_versions(),
            "dataset": {"fingerprint": found, "num_train_images": len(dataset)},
        }

    def does_not_fit(self, where: str, why: str) -> DoesNotFit:
        """The error for a run that cannot go on with the memory that there is."""
        size = int(self.args.imgsz)
        smaller = max(size // 2 // self.stride, 1) * self.stride
        sizes = f"imgsz={smaller}, " if smaller < size else ""
        return DoesNotFit(
            f"there is not enough memory ({where}) for {self.args.model} at imgsz={size}: {why}",
            remedy=f"use {sizes}a smaller model or batch, or free memory; what was trained is saved, "
            f"and where there is more memory steadyolo resume {self._folder} goes on",
        )

    # -- small services for the run --------------------------------------------------------------------------------

    @property
    def bare_model(self) -> torch.nn.Module:
        """The model without compile or parallel wrappers."""
        return unwrap_model(self.model)  # type: ignore[no-any-return]

    def step_scheduler(self) -> None:
        """Set this epoch's learning rates, in closed form."""
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wants an optimizer step first; the epoch alone decides here
            self.scheduler.step()

    def name_losses(self, names: tuple[str, ...]) -> None:
        """Tell upstream what the loss items are called."""
        self.loss_names = names
        self.metrics.update(dict.fromkeys(self.label_loss_items(prefix="val"), 0.0))

    def show_ledger(self, ledger: Ledger, epoch: int) -> None:
        """Let callbacks and the validator read from upstream's attributes what was decided from scores."""
        self.best_fitness = ledger.best_fitness
        self.stopper.best_fitness = ledger.best_fitness or 0.0
        self.stopper.best_epoch = ledger.best_epoch
        self.stopper.possible_stop = epoch - ledger.best_epoch >= self.stopper.patience - 1

    def set_epochs(self, epochs: int) -> None:
        """Plan another number of epochs from here on."""
        if epochs != self.epochs:
            self.epochs = self.args.epochs = epochs
            self._setup_scheduler()
            self.train_loader.dataset.close_from(self._first_closed_epoch())
            self.train_loader.reset()

    def plot_if_asked(self, batch: dict[str, Any], done: int) -> None:
        if self.args.plots and done in self.plot_idx:
            self.plot_training_samples(batch, done)


class SteadyDetectionTrainer(SteadyTrainer, DetectionTrainer):  # type: ignore[misc]  # upstream is untyped
    """Detection over steadyolo's loop."""


class SteadySegmentationTrainer(SteadyTrainer, SegmentationTrainer):  # type: ignore[misc]  # upstream is untyped
    """Instance segmentation over steadyolo's loop."""


class SteadyPoseTrainer(SteadyTrainer, PoseTrainer):  # type: ignore[misc]  # upstream is untyped
    """Keypoints over steadyolo's loop."""


class SteadyOBBTrainer(SteadyTrainer, OBBTrainer):  # type: ignore[misc]  # upstream is untyped
    """Oriented boxes over steadyolo's loop."""


class SteadyClassificationTrainer(SteadyTrainer, ClassificationTrainer):  # type: ignore[misc]  # upstream is untyped
    """Classification over steadyolo's loop."""

    def _make_dataset(self, img_path: str, mode: str, batch: int | None) -> Any:
        return KeyedClassificationDataset(
            img_path,
            self.args,
            augment=mode == "train",
            prefix="train" if mode == "train" else self.args.split,
            names=self.data["names"],
            on_problems=self._note_problems,
        )

    def _bind(self, dataset: Any, order: SampleOrder) -> None:
        dataset.keyed(order)


_BY_TASK: dict[str, type[SteadyTrainer]] = {
    "detect": SteadyDetectionTrainer,
    "segment": SteadySegmentationTrainer,
    "pose": SteadyPoseTrainer,
    "obb": SteadyOBBTrainer,
    "classify": SteadyClassificationTrainer,
}


def _exit_code(error: BaseException | None) -> int:
    match error:
        case None:
            return 0
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case UserError():
            return 2
    return 1


def _fetching(progress: Progress) -> str:
    if progress.is_waiting:
        return "waiting for another process that fetches it"
    return f"{progress.num_done} of {progress.num_files} files, {size_text(progress.done_bytes)}"


def _fraction(fraction: Any, mode: str, split: str) -> Any:
    from ultralytics.data.utils import get_split_fraction

    return get_split_fraction(fraction, "train" if mode == "train" else split)
