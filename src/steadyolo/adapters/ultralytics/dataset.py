"""Ultralytics' datasets with every draw keyed by (seed, epoch, index) instead of a generator's history.

Written against ultralytics 8.4.190. What is worked around, and may go when upstream changes:
- the mosaic buffer (`dataset.buffer`) depends on what a worker process loaded before; here it is the sample's own
  window of the epoch's order, and the decoded images of that window are kept in a `DecodedWindow`;
- `close_mosaic` rebuilds transforms and resets the loader in mid-run; here each sample knows its epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
from ultralytics.data.dataset import ClassificationDataset, YOLODataset
from ultralytics.data.utils import verify_image_label

from steadyolo.adapters.ultralytics.checked_data import Problems, problems_of, sixteen_bit
from steadyolo.adapters.ultralytics.transforms import QuickFormat, each_transform, quicken
from steadyolo.data.order import SampleOrder
from steadyolo.data.randomness import seed_generators
from steadyolo.data.window import DecodedWindow

OnProblems = Callable[[Problems, int], None]  # with the number of images that are left


_CHANGING = (np.ndarray, list)  # what upstream changes in place in a copied label; inside a list it only replaces


class _Label(dict[str, Any]):
    """What is known of one image. Upstream deep-copies it for each use, in a tenth of the time as below."""

    __slots__ = ()

    def __deepcopy__(self, memo: object) -> dict[str, Any]:
        return {name: value.copy() if isinstance(value, _CHANGING) else value for name, value in self.items()}


class _Partners(list[int]):
    """The indices that `Mosaic` may choose from. Loading an image must not change them."""

    def append(self, index: int) -> None:
        """Ignore what upstream's buffer would remember."""


class KeyedDataset(YOLODataset):  # type: ignore[misc]  # upstream is untyped
    """`YOLODataset` whose items are named by position in a `SampleOrder` and depend on nothing else."""

    format_class = QuickFormat

    def __init__(self, *args: Any, on_problems: OnProblems, **kwargs: Any) -> None:
        self._on_problems = on_problems
        self._order: SampleOrder | None = None
        super().__init__(*args, **kwargs)

    def get_labels(self) -> list[dict[str, Any]]:
        """As upstream, telling `on_problems` which images were left out and why, and leaving 16-bit ones out too."""
        before = list(self.im_files)
        label_file = dict(zip(before, self.get_label_files(), strict=True))
        _, scans = self.verify_args()
        rest = next(iter(scans))[2:]
        labels: list[dict[str, Any]] = []
        try:
            labels = self._scanned_labels()
        except RuntimeError:  # not one image is left; told below, with each reason
            self.im_files: list[str] = []
        deep = sixteen_bit(self.im_files)
        labels = [label for label in labels if label["im_file"] not in deep]
        self.im_files = [label["im_file"] for label in labels]
        lost = sorted(set(before) - set(self.im_files) - set(deep))
        found = problems_of(lost, lambda file: str(verify_image_label((file, label_file[file], *rest))[-1]))
        if lost or deep:
            self._on_problems(Problems({**found.images, **deep}, found.labels), len(labels))
        return labels

    def _scanned_labels(self) -> list[dict[str, Any]]:
        """Upstream's scan, again where another run that starts on the same data replaced its cache file meanwhile."""
        for tries_left in (2, 1, 0):
            try:
                return super().get_labels()  # type: ignore[no-any-return]
            except FileNotFoundError as error:
                if not tries_left or not str(error.filename).endswith(".cache"):
                    raise
        raise AssertionError("unreachable")

    def keyed(self, order: SampleOrder, *, window: DecodedWindow, first_closed_epoch: int | None, hyp: Any) -> None:
        """Bind to an order. From `first_closed_epoch` on, samples are made without mosaic and what goes with it."""
        self._order, self._window, self._first_closed_epoch = order, window, first_closed_epoch
        self._position = 0
        self._slots: dict[int, int] = {}  # where the window may hold the images that this sample may want
        self._main = (0, 0)  # the sample's own index, and its position in the epoch before
        self.labels = [_Label(label) for label in self.labels]
        self.max_buffer_length = 1 << 62  # upstream evicts at this length; nothing is in its buffer here
        self._open_transforms = self.transforms
        for transform in each_transform(self.transforms):
            if hasattr(transform, "buffer_enabled"):  # a mosaic: its partners come from the window in every cache mode
                transform.buffer_enabled = True
        closed = copy(hyp)
        closed.mosaic = closed.copy_paste = closed.mixup = closed.cutmix = 0.0
        self._closed_transforms = self.build_transforms(closed) if first_closed_epoch is not None else self.transforms

    def build_transforms(self, hyp: Any) -> Any:
        """As upstream, with the same results in less time."""
        transforms = super().build_transforms(hyp)
        quicken(transforms)
        return transforms

    def close_from(self, first_closed_epoch: int | None) -> None:
        """Move the epoch from which mosaic is closed; workers forked afterwards see it."""
        self._first_closed_epoch = first_closed_epoch

    def __getitem__(self, position: int) -> dict[str, Any]:
        if self._order is None:  # a validation set: upstream's own indices
            return super().__getitem__(position)  # type: ignore[no-any-return]
        order, index = self._order, self._order.index(position)
        closed = self._first_closed_epoch is not None and order.epoch_of(position) >= self._first_closed_epoch
        self.transforms = self._closed_transforms if closed else self._open_transforms
        partners = order.partner_positions(position)
        indices = order.indices(partners).tolist()
        self.buffer = _Partners(indices)
        self._slots = dict(zip(indices, partners, strict=True))
        self._slots[index] = position
        self._main = (index, order.position_before(position))
        if self._window.num_slots >= order.num_samples:  # a slot for every image: keep them all
            self._slots = {}
        seed_generators(order.sample_key(position))
        return self.transforms(self.get_image_and_label(index))  # type: ignore[no-any-return]

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> tuple[Any, Any, Any]:
        """As upstream, from the window where the image is there."""
        if self.cache == "ram" or self._order is None:
            return super().load_image(i, rect_mode, resize_short)  # type: ignore[no-any-return]
        position = self._slots.get(i) if self._slots else i
        held = self._window.get(position, i) if position is not None else None
        if held is None and position is not None and i == self._main[0]:  # seen at the end of the epoch before?
            held = self._window.get(self._main[1], i)
            if held is not None:
                self._window.put(position, i, *held)
        if held is not None:
            return held[0], held[1], held[0].shape[:2]
        image, original_hw, resized_hw = super().load_image(i, rect_mode, resize_short)
        self.ims[i] = self.im_hw0[i] = self.im_hw[i] = None  # upstream holds on to what it loads
        if position is not None:
            self._window.put(position, i, image, original_hw)
        return image, original_hw, resized_hw


class KeyedClassificationDataset(ClassificationDataset):  # type: ignore[misc]  # upstream is untyped
    """`ClassificationDataset` whose items are named by position in a `SampleOrder` and depend on nothing else."""

    def __init__(self, *args: Any, on_problems: OnProblems, **kwargs: Any) -> None:
        self._on_problems = on_problems
        self._order: SampleOrder | None = None
        super().__init__(*args, **kwargs)

    def verify_images(self) -> list[tuple[str, int]]:
        """As upstream, telling `on_problems` which images were left out and why, and leaving 16-bit ones out too."""
        before = [file for file, _ in self.samples]
        kept: list[tuple[str, int]] = super().verify_images()
        deep = sixteen_bit([file for file, _ in kept])
        kept = [sample for sample in kept if sample[0] not in deep]
        lost = sorted(set(before) - {file for file, _ in kept} - set(deep))
        if lost or deep:
            self._on_problems(Problems({**problems_of(lost, str).images, **deep}, {}), len(kept))
        return kept

    def keyed(self, order: SampleOrder) -> None:
        """Bind to an order; without one, items are named by upstream's own indices."""
        self._order = order

    def close_from(self, first_closed_epoch: int | None) -> None:
        """Nothing to close: classification has no mosaic."""

    def __getitem__(self, position: int) -> dict[str, Any]:
        if self._order is None:
            return super().__getitem__(position)  # type: ignore[no-any-return]
        seed_generators(self._order.sample_key(position))
        return super().__getitem__(self._order.index(position))  # type: ignore[no-any-return]

    @property
    def labels(self) -> list[dict[str, Any]]:
        """The class of each image, in the form that detection datasets keep their labels."""
        return [{"cls": np.array([[sample[1]]], np.float32)} for sample in self.samples]

    @property
    def im_files(self) -> list[str]:
        return [sample[0] for sample in self.samples]
