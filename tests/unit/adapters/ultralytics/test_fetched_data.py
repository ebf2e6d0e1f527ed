"""What Ultralytics makes of a data set in the cache: it finds it there, writes beside it, and repairs images in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_cls_dataset, check_det_dataset

from steadyolo.adapters.ultralytics.checked_data import resolve_yaml
from steadyolo.data.boards import write_boards
from steadyolo.data.fetch import Dataset
from steadyolo.vault.folder_store import FolderStore
from tests.unit.data.stored import contents, fetch


def scan(dataset: Dataset) -> YOLODataset:
    """Ultralytics' own look at the train split."""
    data = check_det_dataset(resolve_yaml(dataset.data, dataset.entry.folder), autodownload=False)
    assert Path(data["train"]).is_relative_to(dataset.entry.files)
    assert Path(data["val"]).is_relative_to(dataset.entry.files)
    return YOLODataset(img_path=data["train"], data=data, task="detect", augment=False)


@pytest.mark.parametrize("path", ["/disk/datasets/pcb", "../datasets/pcb", "pcb"])
def test_labels_and_repaired_images_are_tolerated(tmp_path: Path, path: str) -> None:
    boards = write_boards(tmp_path / "boards", num_train=4, num_val=2, size_px=(96, 96))
    boards.write_text(f"path: {path}\ntrain: images/train\nval: images/val\nnames: {list('abcdef')}\n")
    broken = boards.parent / "images/train/board_000001.jpg"
    broken.write_bytes(broken.read_bytes() + bytes(2))  # its end marker is not at the end
    store = FolderStore(boards.parent)
    with fetch(store, tmp_path / "cache") as dataset:
        mirrored = dataset.entry.files / "images/train/board_000001.jpg"
        assert mirrored.read_bytes() == broken.read_bytes()
        first = scan(dataset)
        repaired = mirrored.read_bytes()
        assert repaired != broken.read_bytes(), "nothing was repaired, so this proves nothing"
        with fetch(store, tmp_path / "cache") as beside:
            assert mirrored.name in beside.warnings[0]
            assert mirrored.read_bytes() == repaired
    with fetch(store, tmp_path / "cache") as dataset:
        assert (dataset.num_fetched, dataset.warnings) == (1, ())
        assert (dataset.entry.files / "labels/train.cache").exists()
        assert {key: (dataset.entry.files / key).read_bytes() for key in contents(store)} == contents(store)
        again = scan(dataset)
    assert mirrored.read_bytes() == repaired, "the repair depends on more than the image"
    assert [label["im_file"] for label in again.labels] == [label["im_file"] for label in first.labels]
    assert len(again.labels) == 4
    with Image.open(mirrored) as image:
        assert image.size == (96, 96)


def test_a_folder_for_classification(tmp_path: Path) -> None:
    folder = write_boards(tmp_path / "boards", task="classify", num_train=6, num_val=6, size_px=(48, 48))
    with fetch(FolderStore(folder), tmp_path / "cache", wants_folder=True) as dataset:
        found = check_cls_dataset(dataset.data)
    assert found["nc"] == 6
    assert Path(found["train"]).is_relative_to(dataset.entry.files)
