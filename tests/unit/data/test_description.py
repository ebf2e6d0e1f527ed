from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from steadyolo.data.description import find_description, resolve_description
from steadyolo.errors import UserError


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    for name in ("images/train", "images/val", "more/images", "sub/pcb/images/train", "train/images", "val/images"):
        (folder / name).mkdir(parents=True)
    (folder / "train.txt").write_text("./images/train/1.jpg\n")
    return folder


def resolved(files: Path, text: str, key: str = "data.yaml") -> dict[str, object]:
    """What the copy says, its paths as parts below the mirror."""
    (files / key).write_text(text)
    path = resolve_description(files, key, files.parent / "data.yaml")
    assert (files / key).read_text() == text
    content = yaml.safe_load(path.read_text())

    def shortened(value: object) -> object:
        if isinstance(value, list):
            return [shortened(item) for item in value]
        if not isinstance(value, str) or not value.startswith("/"):
            return value
        assert Path(value).resolve().is_relative_to(files)
        return Path(value).relative_to(files).as_posix()

    return {name: shortened(value) for name, value in content.items()}


@pytest.mark.parametrize(
    ("text", "path", "train"),
    [
        ("train: images/train", ".", "images/train"),
        ("path: .\ntrain: images/train", ".", "images/train"),
        ("path: /disk/datasets/pcb\ntrain: images/train", ".", "images/train"),
        ("path: ../datasets/pcb\ntrain: images/train", ".", "images/train"),
        ("path: pcb\ntrain: images/train", ".", "images/train"),
        ("path: sub/pcb\ntrain: images/train", "sub/pcb", "sub/pcb/images/train"),
        ("path: /disk/sub/pcb\ntrain: images/train", "sub/pcb", "sub/pcb/images/train"),
        ("path: ../../../..\ntrain: ../train/images", ".", "train/images"),  # as Roboflow writes it
        ("train: ../train/images", ".", "train/images"),
        ("train: /disk/datasets/pcb/images/train", ".", "images/train"),
        ("train: /", ".", "."),
        ("train: .", ".", "."),
        ("train: train.txt", ".", "train.txt"),
        ("train: [images/train, more/images]", ".", ["images/train", "more/images"]),
        ("path: images\ntrain: train", "images", "images/train"),
    ],
)
def test_paths_mean_the_mirror(files: Path, text: str, path: str, train: object) -> None:
    meant = resolved(files, f"{text}\nval: images/val\nnames: [a]\n")
    assert (meant["path"], meant["train"], meant["val"], meant["names"]) == (path, train, "images/val", ["a"])


def test_a_yaml_in_a_folder_is_read_from_there_and_from_the_top(files: Path) -> None:
    (files / "sub/x.yaml").write_text("")
    meant = resolved(files, "path: ..\ntrain: images/train\nval: pcb/images/train\n", key="sub/x.yaml")
    assert (meant["train"], meant["val"]) == ("images/train", "sub/pcb/images/train")


def test_nothing_is_downloaded_or_run_and_other_entries_stay(files: Path) -> None:
    meant = resolved(files, "train: images/train\nval:\ntest: /gone/test\nkpt_shape: [2, 3]\ndownload: import os\n")
    assert meant == {"train": "images/train", "val": None, "test": "test", "kpt_shape": [2, 3], "path": "."}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/missing\nval: images/val", "names train: images/missing, which is not stored there"),
        ("train: images/train\nval: /etc", "names val: /etc"),
        ("train: images/train\nvalidation: [images/val, ../../../etc]", "names validation: ../../../etc"),
        ("- a list", "no mapping"),
        ("train: [", "cannot be read"),
    ],
)
def test_what_is_not_there_is_refused(files: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved(files, text)


@pytest.mark.parametrize(
    ("keys", "wants_folder", "found"),
    [
        ("data.yaml train/a/1.jpg", False, "data.yaml"),
        ("pcb.yml images/1.jpg sub/other.yaml", False, "pcb.yml"),
        ("data.yaml other.yaml", False, "data.yaml"),
        ("train/a/1.jpg val/a/1.jpg", False, None),
        ("train/a/1.jpg val/a/1.jpg data.yaml", True, None),
    ],
)
def test_what_describes_a_data_set(keys: str, wants_folder: bool, found: str | None) -> None:
    assert find_description(keys.split(), named=None, wants_folder=wants_folder, url="s3://b/pcb") == found


def test_a_folder_for_classification_needs_its_train_split() -> None:
    with pytest.raises(UserError, match="no folder train"):
        find_description(["a/1.jpg"], named=None, wants_folder=True, url="s3://b/pcb")
