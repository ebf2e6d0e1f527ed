"""`Planning`: what is decided for a run before its first batch, and kept in its plan and in each checkpoint.

Written against ultralytics 8.4.190.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from ultralytics.utils import LOGGER

from steadyolo import events
from steadyolo.adapters.ultralytics.fitting import Fitting, schedule_of
from steadyolo.adapters.ultralytics.opening import package_versions, to_json
from steadyolo.adapters.ultralytics.request import may_be_short, planned
from steadyolo.adapters.ultralytics.scoring import Scoring
from steadyolo.data.fingerprint import fingerprint
from steadyolo.errors import UserError
from steadyolo.plan.fit import Fit, FitSchedule
from steadyolo.plan.memory_plan import MemoryPlan
from steadyolo.plan.recovery import Again, Stop
from steadyolo.train.recompute import Recompute
from steadyolo.vault.files import OURS_FOLDER, replace_file

if TYPE_CHECKING:
    from steadyolo.adapters.ultralytics.trainer import SteadyTrainer

_USUAL_BATCH = 16  # what a data set is built with before its batch is known


class Planning:
    """Decides for a trainer's run; a run that goes on keeps what was decided before where it holds."""

    def __init__(self, trainer: SteadyTrainer) -> None:
        self._trainer = trainer
        self._memory_plan: MemoryPlan | None = None

    def largest_share(self) -> int:
        """How many images of a batch one rank can take, on the data as it is found."""
        trainer = self._trainer
        train, val = (
            trainer.build_dataset(trainer.data[split], mode, _USUAL_BATCH)
            for split, mode in (("train", "train"), (trainer.args.split, "val"))
        )
        self._memory_plan = plan = planned(trainer, train, val, num_batch_images=None)
        return plan.num_batch_images

    def plan_memory(self, log: events.EventLog) -> None:
        """Decide how batches go through the network, where memory may be short; a run that goes on keeps what holds."""
        started_s = time.monotonic()
        trainer, start = self._trainer, self._trainer.opened.start
        if start is None and self._memory_plan is None and may_be_short(trainer):
            datasets = trainer.train_loader.dataset, trainer.test_loader.dataset
            self._memory_plan = planned(trainer, *datasets, num_batch_images=self._num_share_images)
        plan = self._memory_plan
        before = (start.made_from["plan"].get("memory") if start else None) or {}
        if plan is not None:
            trainer.precision = replace(trainer.precision, compute=plan.workload.compute)
        elif before.get("device") == trainer.device.type:
            trainer.precision = replace(trainer.precision, compute=before["compute"])
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
        return -(-int(self._trainer.batch_size) // self._trainer.ranks.count)

    def _planned_fits(self) -> dict[str, Fit]:
        """How a batch of training, and one of validation, go through the network."""
        num_val_images = self._trainer.test_loader.batch_size
        if self._memory_plan is None:
            whole = Fit(num_images=self._trainer.spec.num_micro_batch_images or self._num_share_images)
            return {"fits": whole, "val_fits": Fit(num_images=num_val_images)}
        chosen = self._memory_plan.workload
        return {"fits": chosen.fit, "val_fits": Fit(num_images=min(chosen.val_batch, num_val_images))}

    def plan(self) -> dict[str, Any]:
        """What was decided for this run. A run that goes on keeps what changes its mathematics."""
        trainer, opened = self._trainer, self._trainer.opened
        start = None if opened.start is None else (opened.start.made_from["plan"], opened.start.state.cursor)
        fits = {
            name: schedule_of(name, fit, start=start, plan_file=opened.folder / OURS_FOLDER / "plan.json").to_list()
            for name, fit in self._planned_fits().items()
        }
        num_ranks = trainer.ranks.count
        if opened.start is not None:
            before = opened.start.made_from["plan"]
            threads = before["threads"] if before.get("ranks", 1) == num_ranks else torch.get_num_threads()
            now = {"num_batches": len(trainer.train_loader), "ranks": num_ranks, "threads": threads}
            return {**before, **now, **fits}
        chosen = ("optimizer", "lr0", "warmup_bias_lr")
        return {
            **fits,
            "optimizer": {name: getattr(trainer.args, name) for name in chosen},
            "accumulate": int(trainer.accumulate),
            "batch": int(trainer.batch_size),
            "memory": self._memory_plan.to_dict() if self._memory_plan else None,
            "num_batches": len(trainer.train_loader),
            "compute": trainer.precision.compute,
            "channels_last": trainer.precision.channels_last,
            "device": trainer.device.type,
            "threads": torch.get_num_threads(),
            "ranks": num_ranks,
        }

    def made_from(self, plan: dict[str, Any]) -> dict[str, Any]:
        """The origin that each checkpoint carries. Raises: UserError when a resumed run's data has changed."""
        trainer, opened = self._trainer, self._trainer.opened
        dataset = trainer.train_loader.dataset
        found = fingerprint(dataset.im_files, dataset.labels, trainer.data["names"])
        if opened.start is not None:
            before = opened.start.made_from["dataset"]
            if before["fingerprint"] != found and "dataset" not in opened.allowed:
                raise UserError(
                    f"the dataset {trainer.args.data} is not the one this run was made from: it had "
                    f"{before['num_train_images']} images, now it has {len(dataset)}, or labels or sizes differ",
                    remedy="put the data back as it was, or pass allow=dataset to go on with what is there",
                )
            ranks_before = opened.start.made_from["plan"].get("ranks", 1)
            if ranks_before != trainer.ranks.count:
                LOGGER.warning(
                    f"this run was trained by {ranks_before} processes, and goes on in {trainer.ranks.count}: the same "
                    "samples in each step, but not bit for bit"
                )
            if plan["compute"] != trainer.precision.compute or plan["device"] != trainer.device.type:
                LOGGER.warning(
                    f"this run began in {plan['compute']} on {plan['device']}, and goes on in "
                    f"{trainer.precision.compute} on {trainer.device.type}: not bit for bit"
                )
        return {
            "spec": trainer.spec.to_dict(),
            "plan": plan,
            "versions": package_versions(),
            "dataset": {"fingerprint": found, "num_train_images": len(dataset)},
        }

    def fitting(self, plan: dict[str, Any]) -> Fitting:
        """What puts batches through the network, in the way that fits."""
        trainer = self._trainer
        smallest = trainer.args.imgsz * (1 - float(trainer.args.multi_scale))
        return Fitting(
            FitSchedule.from_list(plan["fits"]),
            recompute=Recompute(trainer.bare_model),
            overlap_masks=bool(trainer.args.overlap_mask),
            num_least=1 if smallest >= 2 * trainer.stride else 2,  # else the last layers see one pixel of an image
            keep=lambda schedule: self._keep_fits("fits", schedule, plan),
        )

    def scoring(self, plan: dict[str, Any], log: events.EventLog) -> Scoring:
        """What validates, in the way that fits."""
        trainer = self._trainer

        def tell(error: str, epoch: int, attempt: int, move: Again | Stop) -> None:
            log.emit(
                events.OutOfMemory(
                    where="validation",
                    epoch=epoch,
                    batch=trainer.validator.batch_i or 0,
                    attempt=attempt,
                    action="giving up" if isinstance(move, Stop) else move.action,
                    fit={} if isinstance(move, Stop) else asdict(move.fit),
                    error=error,
                )
            )

        return Scoring(
            trainer.validator,
            trainer.ema.ema,
            FitSchedule.from_list(plan["val_fits"]),
            keep=lambda schedule: self._keep_fits("val_fits", schedule, plan),
            tell=tell,
        )

    def _keep_fits(self, name: str, schedule: FitSchedule, plan: dict[str, Any]) -> None:
        """Keep what was learned to fit in the plan: in the run folder, and in each checkpoint from now on."""
        plan[name] = schedule.to_list()
        if self._trainer.ranks.rank:
            return
        try:
            replace_file(self._trainer.opened.folder / OURS_FOLDER / "plan.json", to_json(plan))
        except OSError as error:  # the next checkpoint carries it too
            LOGGER.warning(f"plan.json could not be written: {error}")
