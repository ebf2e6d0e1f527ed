"""`SteadyTrainer`: an Ultralytics trainer, for each task, whose training loop is steadyolo's.

Written against ultralytics 8.4.190. Models, losses, datasets, validators and plots are upstream's; order, randomness,
the step, saving, recovery and stopping are ours.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
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
from steadyolo.adapters.ultralytics.arguments import check_image_size
from steadyolo.adapters.ultralytics.attempt import Attempt, exit_code_of
from steadyolo.adapters.ultralytics.criterion import bounded_criterion
from steadyolo.adapters.ultralytics.launching import Launching, device_of, ranks_asked
from steadyolo.adapters.ultralytics.opening import (
    Opened,
    clear_disk_errors,
    num_cores,
    open_existing,
    open_new,
    open_together,
)
from steadyolo.adapters.ultralytics.optimizers import fused
from steadyolo.adapters.ultralytics.planning import Planning
from steadyolo.adapters.ultralytics.run import ScoringCut
from steadyolo.adapters.ultralytics.run_data import ClassifiedRunData, RunData, in_turn
from steadyolo.adapters.ultralytics.workarounds import hide_ranks, light_determinism, patient_nms
from steadyolo.errors import DoesNotFit, SteadyError, UserError
from steadyolo.plan.recovery import Stop
from steadyolo.state.host_memory import arrange_freed_memory
from steadyolo.state.run_state import Ledger
from steadyolo.train.precision import Precision, choose_precision
from steadyolo.train.ranks import Ranks, is_among_ranks, join
from steadyolo.train.signals import StopRequest, exit_at_once
from steadyolo.vault.files import OURS_FOLDER
from steadyolo.vault.lock import RunLock

_GRACE_S = 20.0  # a stop must be over within 25 s; what is committed by then is what there is


class SteadyTrainer(BaseTrainer):  # type: ignore[misc]  # upstream is untyped
    """`YOLO(...).train(trainer=SteadyTrainer, ...)`: made for the model's task; takes our dotted arguments too.

    `resume=RUN` (a run folder) goes on with that run. Raises: UserError for what is wrong with the request or the data,
    SystemExit(75) after a stop signal, once the state is saved.
    """

    data_type: ClassVar[type[RunData]] = RunData  # what makes its datasets and loaders
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
        self._log: events.EventLog | None = None
        self._stop_request = StopRequest(grace_s=_GRACE_S, overdue=exit_at_once, on_signal=self._note_signal)
        self._run_data = self.data_type(self, self._stop_request)
        self._planning = Planning(self)
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
        self.opened, self.spec = opened, opened.spec
        arguments = dict(self.spec.arguments)
        self.amp_given = "amp" in arguments
        if self.ranks.count > 1:
            local_rank = int(os.environ.get("LOCAL_RANK", self.ranks.rank))
            arguments["device"] = device_of(arguments, local_rank=local_rank)
        if opened.start is not None:
            before = opened.start.made_from["plan"]
            arguments.update(before["optimizer"])  # what `optimizer=auto` chose holds, and what `batch=auto` did
            arguments |= {"batch": before["batch"]} if "batch" in before else {}
        with light_determinism(arguments.get("compile")):
            super().__init__(cfg, {**arguments, "save_dir": str(opened.folder)}, callbacks)
        if self.device.type in {"cpu", "mps"}:  # upstream loads in the training process there; so do we unless asked
            self.args.workers = int(arguments.get("workers") or 0)
        if self.device.type == "cpu":  # upstream leaves one core idle
            before = opened.start.made_from["plan"] if opened.start else {}
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
        return self._run_data.found(super().get_dataset)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """As upstream builds it, of our classes, with what cannot be used left out, counted and listed."""
        return self._run_data.dataset(img_path, mode, batch)

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        if mode != "train":
            return in_turn(self.ranks, partial(super().get_dataloader, dataset_path, batch_size, rank, mode))
        return self._run_data.train_loader(dataset_path, batch_size)

    def set_model_attributes(self) -> None:
        super().set_model_attributes()
        check_image_size(self.args.imgsz, stride=max(int(unwrap_model(self.model).stride.max()), 32))
        self.precision: Precision = choose_precision(
            asked=self.spec.compute,
            amp=self.args.amp,
            amp_given=self.amp_given,
            channels_last=self.args.channels_last,
            device=self.device,
        )
        if self.precision.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)

    def build_optimizer(self, model: Any, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Upstream's optimizer in its fused form where there is one: faster, and needs no word from the host."""
        optimizer: torch.optim.Optimizer = super().build_optimizer(model, *args, **kwargs)
        return fused(optimizer) if self.device.type in {"cpu", "cuda"} else optimizer

    def auto_batch(self) -> int:
        """The largest batch that fits: what upstream asks for where `batch=-1`. All ranks have an equal share of it."""
        return int(self.ranks.told(self._planning.largest_share() * self.ranks.count if self.ranks.rank == 0 else None))

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

    def validate(self) -> Any:
        """Score the EMA. Raises: DoesNotFit when there is not enough memory for a single image."""
        bounded_criterion(self.ema.ema)  # scoring computes losses too, of twice as many images at once
        with patient_nms():
            return self._scored(super().validate)

    def _scored(self, score: Callable[[], Any]) -> Any:
        scores = self.scoring(score, self.epoch)
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
        self._run_data.close()
        if self._lock is not None:
            self._lock.release()
        self.ranks.leave(exit_code_of(error))

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
        path = self.opened.folder / OURS_FOLDER / "events.jsonl"
        with contextlib.closing(events.EventLog(path if self.ranks.rank == 0 else None)) as log:
            self._log = log
            Attempt(self, planning=self._planning, data=self._run_data, log=log, stop=self._stop_request).train()

    # -- small services for the run --------------------------------------------------------------------------------

    def does_not_fit(self, where: str, why: str) -> DoesNotFit:
        """The error for a run that cannot go on with the memory that there is."""
        size = int(self.args.imgsz)
        smaller = max(size // 2 // self.stride, 1) * self.stride
        sizes = f"imgsz={smaller}, " if smaller < size else ""
        return DoesNotFit(
            f"there is not enough memory ({where}) for {self.args.model} at imgsz={size}: {why}",
            remedy=f"use {sizes}a smaller model or batch, or free memory; what was trained is saved, "
            f"and where there is more memory steadyolo resume {self.opened.folder} goes on",
        )

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
            self.train_loader.dataset.close_from(self._run_data.first_closed_epoch())
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

    data_type = ClassifiedRunData


_BY_TASK: dict[str, type[SteadyTrainer]] = {
    "detect": SteadyDetectionTrainer,
    "segment": SteadySegmentationTrainer,
    "pose": SteadyPoseTrainer,
    "obb": SteadyOBBTrainer,
    "classify": SteadyClassificationTrainer,
}
