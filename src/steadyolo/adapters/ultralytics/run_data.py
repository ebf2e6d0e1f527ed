"""`RunData`: the data of a run, found and checked, its samples in the run's order, and what cannot be used of it.

Written against ultralytics 8.4.190.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

from steadyolo.adapters.objects.opening import open_store
from steadyolo.adapters.ultralytics.checked_data import Problems, listed, refuse_labels, resolve_yaml, translated
from steadyolo.adapters.ultralytics.dataset import KeyedClassificationDataset, KeyedDataset
from steadyolo.adapters.ultralytics.loader import KeyedLoader, num_window_images
from steadyolo.data.cache import usual_cache
from steadyolo.data.fetch import Dataset, fetch_dataset, is_in_store
from steadyolo.data.mirror import Progress
from steadyolo.data.order import SampleOrder
from steadyolo.data.window import DecodedWindow
from steadyolo.errors import UserError
from steadyolo.spec.size import size_text
from steadyolo.train.ranks import Ranks
from steadyolo.train.signals import EXIT_INTERRUPTED, StopRequest
from steadyolo.vault.files import OURS_FOLDER

if TYPE_CHECKING:
    from steadyolo.adapters.ultralytics.trainer import SteadyTrainer

T = TypeVar("T")

_TELL_FETCHING_S = 5.0


class RunData:
    """What the datasets and loaders of a trainer come from. `problems` are the images left out so far, and why."""

    def __init__(self, trainer: SteadyTrainer, stop: StopRequest) -> None:
        self._trainer = trainer
        self._stop = stop
        self._fetched: Dataset | None = None  # the one in the cache, when it came from a store
        self.problems: dict[str, str] = {}

    def close(self) -> None:
        """Give a data set back that came from a store."""
        if self._fetched is not None:
            self._fetched.close()

    def found(self, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What upstream's `find` makes of `data=`, which is fetched, and put into a form that it reads, before."""
        return in_turn(self._trainer.ranks, partial(self._found, find))

    def _found(self, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        args = self._trainer.args
        if is_in_store(str(args.data)):
            args.data = str(self._fetch(str(args.data)))
        data = Path(str(args.data))
        with translated(args.data):
            if data.is_file() and data.suffix in {".yaml", ".yml"}:
                args.data = str(resolve_yaml(data, self._trainer.opened.folder / OURS_FOLDER))
            return find()

    def _fetch(self, url: str) -> Path:
        """The data set at `url`, mirrored into the cache and held there until the run ends."""
        last_s = 0.0

        def show(progress: Progress) -> None:
            nonlocal last_s
            if self._stop.requested:
                raise SystemExit(EXIT_INTERRUPTED)
            if time.monotonic() - last_s > _TELL_FETCHING_S:
                last_s = time.monotonic()
                LOGGER.info(f"fetching {url}: {_fetching(progress)}")

        spec = self._trainer.spec
        self._fetched = fetch_dataset(
            url,
            open_store=open_store,
            cache=spec.dataset_cache or usual_cache(os.environ),
            budget_bytes=spec.dataset_cache_bytes,
            wants_folder=self._trainer.args.task == "classify",
            on_progress=show,
        )
        for warning in self._fetched.warnings:
            LOGGER.warning(warning)
        return self._fetched.data

    def dataset(self, img_path: str, mode: str, batch: int | None) -> Any:
        """As upstream builds it, of our classes, with what cannot be used left out, counted and listed."""
        with translated(self._trainer.args.data):
            return self._make(img_path, mode, batch)

    def train_loader(self, img_path: str, batch_size: int) -> KeyedLoader:
        """The samples to train on, in batches of at most `batch_size`, of which each rank loads its share."""
        trainer = self._trainer
        dataset = in_turn(trainer.ranks, partial(self._train_dataset, img_path, batch_size))
        num_samples = len(dataset)
        batch_size = min(batch_size, num_samples)
        drop_last = bool(trainer.args.compile) and num_samples > batch_size
        rect = getattr(dataset, "rect", False)
        order = SampleOrder(
            seed=int(trainer.args.seed),
            num_samples=num_samples,
            batch_size=batch_size,
            num_batches=num_samples // batch_size if drop_last else -(-num_samples // batch_size),
            shuffle=not (rect and bool((dataset.batch_shapes != dataset.batch_shapes[0]).any())),
        )
        self._bind(dataset, order)
        return KeyedLoader(
            dataset,
            order,
            num_workers=int(trainer.args.workers),
            pin_memory=trainer.device.type == "cuda",
            rank=trainer.ranks.rank,
            num_ranks=trainer.ranks.count,
        )

    def _train_dataset(self, img_path: str, batch_size: int) -> Any:
        num_ranks = self._trainer.ranks.count
        dataset = self._trainer.build_dataset(img_path, "train", batch_size)
        if not len(dataset):
            raise UserError(f"the train split {img_path} holds no images", remedy="point train: at images")
        if (num_images := min(batch_size, len(dataset))) < num_ranks:
            raise UserError(
                f"a batch of {num_images} images leaves some of the {num_ranks} processes without any",
                remedy=f"use batch={num_ranks} or more, or fewer processes",
            )
        return dataset

    def _make(self, img_path: str, mode: str, batch: int | None) -> Any:
        trainer, args = self._trainer, self._trainer.args
        return KeyedDataset(
            img_path=img_path,
            imgsz=args.imgsz,
            batch_size=batch,
            augment=mode == "train",
            hyp=args,
            rect=args.rect or mode == "val",
            cache=args.cache or None,
            single_cls=args.single_cls or False,
            stride=max(int(unwrap_model(trainer.model).stride.max()), 32),
            pad=0.0 if mode == "train" else 0.5,
            prefix=f"{mode}: ",
            task=args.task,
            classes=args.classes,
            data=trainer.data,
            fraction=_fraction(args.fraction, mode, args.split),
            on_problems=self._note_problems,
        )

    def _note_problems(self, problems: Problems, num_left: int) -> None:
        """Refuse bad labels unless asked otherwise; leave out and list what else cannot be used."""
        if problems.labels and self._trainer.spec.bad_labels == "refuse":
            raise refuse_labels(problems.labels)
        if not num_left:
            raise UserError(
                f"none of the {len(problems.all)} images can be used:\n{listed(problems.all)}",
                remedy="look at these files",
            )
        self.problems |= problems.all

    def _bind(self, dataset: Any, order: SampleOrder) -> None:
        args = self._trainer.args
        num_workers = int(args.workers)
        closed = self.first_closed_epoch()
        channels = int(self._trainer.data.get("channels", 3))
        window = DecodedWindow(
            num_window_images(order, num_workers),
            max_image_bytes=int(args.imgsz) ** 2 * channels,
            shared=num_workers > 0 and dataset.cache != "ram",
        )
        dataset.keyed(order, window=window, first_closed_epoch=closed, hyp=args)

    def first_closed_epoch(self) -> int | None:
        """The first epoch without mosaic, of as many epochs as are planned now; None where none is."""
        trainer = self._trainer
        return trainer.epochs - trainer.args.close_mosaic if trainer.args.close_mosaic else None


class ClassifiedRunData(RunData):
    """`RunData` of pictures in a folder for each class."""

    def _make(self, img_path: str, mode: str, batch: int | None) -> Any:
        return KeyedClassificationDataset(
            img_path,
            self._trainer.args,
            augment=mode == "train",
            prefix="train" if mode == "train" else self._trainer.args.split,
            names=self._trainer.data["names"],
            on_problems=self._note_problems,
        )

    def _bind(self, dataset: Any, order: SampleOrder) -> None:
        dataset.keyed(order)


def in_turn(ranks: Ranks, work: Callable[[], T]) -> T:
    """Let rank 0 do `work` before the others do: they find there what it downloads, checks and caches."""
    result = ranks.lead(work)
    return work() if ranks.rank else result  # type: ignore[return-value]  # None only on the others


def _fetching(progress: Progress) -> str:
    if progress.is_waiting:
        return "waiting for another process that fetches it"
    return f"{progress.num_done} of {progress.num_files} files, {size_text(progress.done_bytes)}"


def _fraction(fraction: Any, mode: str, split: str) -> Any:
    from ultralytics.data.utils import get_split_fraction

    return get_split_fraction(fraction, "train" if mode == "train" else split)
