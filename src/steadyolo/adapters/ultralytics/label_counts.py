"""Counts the boxes that a data set's images have, from its label files alone: no image is opened, nothing is written.

Written against ultralytics 8.4.190.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ultralytics.data.base import BaseDataset
from ultralytics.data.utils import check_det_dataset, img2label_paths

from steadyolo.adapters.ultralytics.checked_data import resolve_yaml, translated
from steadyolo.adapters.ultralytics.workarounds import quiet_upstream
from steadyolo.data.boxes import BoxCounts
from steadyolo.data.fetch import is_in_store
from steadyolo.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedData:
    """What a plan needs to know of a data set."""

    train: BoxCounts
    val: BoxCounts
    num_classes: int


def count_labels(data: str, *, fraction: float = 1.0) -> CountedData:
    """Boxes per image of both splits.

    Raises: UserError where there is no data set or no labels: the loss's memory grows with the most boxes in a picture,
    so nothing can be promised without them.
    """
    if is_in_store(data):
        raise _no_labels(f"the labels of {data} are not here")
    with translated(data), quiet_upstream(), tempfile.TemporaryDirectory() as scratch:
        path = Path(data)
        resolved = resolve_yaml(path, Path(scratch)) if path.is_file() and path.suffix in {".yaml", ".yml"} else data
        found = check_det_dataset(str(resolved), autodownload=False)
        images = {split: _images(found[split], fraction if split == "train" else 1.0) for split in ("train", "val")}
    labels = {split: img2label_paths(files) for split, files in images.items()}
    counted = {split: [_num_boxes(Path(file)) for file in files] for split, files in labels.items()}
    if all(count is None for count in counted["train"]):
        first = labels["train"][0]
        raise _no_labels(f"none of the {len(labels['train'])} training images of {data} has labels: no {first}")
    train, val = (BoxCounts.of(count or 0 for count in counted[split]) for split in ("train", "val"))
    return CountedData(train=train, val=val, num_classes=int(found["nc"]))


def counts_of(labels: Iterable[dict[str, Any]]) -> BoxCounts:
    """Boxes per image of labels that a data set has read already."""
    return BoxCounts.of(len(label["cls"]) for label in labels)


def _no_labels(message: str) -> UserError:
    return UserError(
        f"{message}; memory grows with the most boxes in a picture, so nothing can be promised",
        remedy="put the labels there, or say how many boxes a picture has at most: memory.boxes=N",
    )


def _images(split: str | list[str], fraction: float) -> list[str]:
    """The image files of a split, as Ultralytics lists them."""
    lister = SimpleNamespace(prefix="", fraction=fraction)
    files: list[str] = BaseDataset.get_img_files(lister, split)
    return files


def _num_boxes(label: Path) -> int | None:
    """One line is one box; None where there is no file."""
    try:
        text = label.read_bytes()
    except OSError:
        return None
    return sum(1 for line in text.splitlines() if line.strip())
