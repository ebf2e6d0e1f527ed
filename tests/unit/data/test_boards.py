from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from steadyolo.data.boards import DEFECTS, dataset, write_boards
from steadyolo.data.boards.dataset import BoardSet
from steadyolo.data.boards.picture import _window_on, take_picture
from steadyolo.errors import UserError

SMALL: dict[str, Any] = {"num_train": 4, "num_val": 2, "size_px": (160, 120)}
VALUES_PER_LINE = {"detect": 4, "pose": 10, "obb": 8}


def digests(folder: Path) -> dict[str, str]:
    """Of all files but `data.yaml`, which holds the folder's own path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "data.yaml")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def label_rows(folder: Path) -> list[tuple[int, np.ndarray]]:
    lines = [line for path in sorted(folder.rglob("labels/*/*.txt")) for line in path.read_text().splitlines()]
    return [(int(line.split()[0]), np.array(line.split()[1:], float)) for line in lines]


# --- the same arguments, the same bytes ---


@pytest.mark.parametrize("task", dataset.TASKS)
def test_same_arguments_give_the_same_bytes(task: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_boards(tmp_path / name, task=task, **SMALL)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    write_boards(tmp_path / "one", **SMALL)
    write_boards(tmp_path / "two", workers=2, **SMALL)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_board_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    write_boards(tmp_path / "few", **SMALL)
    write_boards(tmp_path / "more", **SMALL | {"num_train": 6})
    few, more = digests(tmp_path / "few"), digests(tmp_path / "more")
    del few["boards.json"], more["boards.json"]
    assert few.items() < more.items()


def test_seed_split_and_index_each_give_another_board(tmp_path: Path) -> None:
    write_boards(tmp_path / "a", **SMALL)
    write_boards(tmp_path / "b", seed=1, **SMALL)
    images = [path.read_bytes() for path in tmp_path.rglob("*.jpg")]
    assert len(set(images)) == len(images) == 12


# --- the truth is true ---


@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize("board_px", [(160, 120), (320, 240), (640, 480)])
def test_box_is_tight_around_what_the_defect_changed(kind: str, board_px: tuple[int, int]) -> None:
    num_found = 0
    for number in range(4):
        clean = take_picture((number, 0), board_px=board_px, kinds=())
        picture = take_picture((number, 0), board_px=board_px, kinds=(kind,))
        if not picture.defects:
            continue
        num_found += 1
        (defect,) = picture.defects
        difference = cv2.absdiff(picture.image, clean.image).max(2)
        ys, xs = np.nonzero(difference > 0.4 * difference.max())  # the lens blurs an edge over a pixel or two
        assert difference.max() > 30, "the defect can hardly be seen"
        changed = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(changed - defect.box).max() <= 2.0

        ys, xs = np.nonzero(difference)
        reach_px = 4 + 0.02 * board_px[0]
        x1, y1, x2, y2 = defect.box
        assert x1 - reach_px <= xs.min() and xs.max() < x2 + reach_px
        assert y1 - reach_px <= ys.min() and ys.max() < y2 + reach_px
    assert num_found >= 3, f"hardly any board has room for {kind}"


@pytest.mark.parametrize("kind", DEFECTS)
def test_outline_corners_and_ends_agree_with_the_box(kind: str) -> None:
    for number in range(6):
        for defect in take_picture((number, 1), board_px=(320, 240), kinds=(kind,)).defects:
            box = np.array(defect.box).reshape(2, 2)
            assert defect.kind == kind
            assert len(defect.outline) >= 3
            np.testing.assert_allclose([defect.outline.min(0), defect.outline.max(0)], box, atol=1.0)
            assert defect.corners.shape == (4, 2)
            sides = np.linalg.norm(defect.corners - np.roll(defect.corners, 1, axis=0), axis=1)
            assert (defect.corners.min(0) <= box[0] + 0.5).all() and (defect.corners.max(0) >= box[1] - 0.5).all()
            length = np.linalg.norm(defect.ends[1] - defect.ends[0])
            assert length == pytest.approx(sides.max(), abs=1e-3)
            assert defect.ends[0, 1] <= defect.ends[1, 1]


def test_defects_of_a_board_do_not_overlap() -> None:
    for number in range(4):
        boxes = [d.box for d in take_picture((number, 2), board_px=(320, 240), kinds=DEFECTS * 2).defects]
        assert len(boxes) >= 8
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def test_defects_are_large_enough_to_learn() -> None:
    for number in range(4):
        for defect in take_picture((number, 3), board_px=(640, 480), kinds=DEFECTS).defects:
            x1, y1, x2, y2 = defect.box
            assert 0.02 <= max(x2 - x1, y2 - y1) / 640 <= 0.12


# --- the formats ---


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_labels_have_the_format_of_the_task(task: str, tmp_path: Path) -> None:
    data = write_boards(tmp_path / "boards", task=task, **SMALL | {"num_train": 12})
    assert data == tmp_path / "boards" / "data.yaml"
    rows = label_rows(tmp_path / "boards")
    assert len(rows) >= 14  # at least one a board
    assert {number for number, _ in rows} <= set(range(len(DEFECTS)))
    for _, values in rows:
        if task == "segment":
            assert len(values) >= 6 and len(values) % 2 == 0
        else:
            assert len(values) == VALUES_PER_LINE[task]
        if task == "pose":
            assert values[6] == values[9] == 2
            values = np.delete(values, (6, 9))
        assert values.min() >= 0 and values.max() <= 1
        if task in ("detect", "pose"):
            assert (values[:2] - values[2:4] / 2 >= -1e-6).all() and (values[:2] + values[2:4] / 2 <= 1 + 1e-6).all()
            assert (values[2:4] > 0).all()


def test_every_image_has_its_size_and_its_labels(tmp_path: Path) -> None:
    write_boards(tmp_path / "boards", **SMALL, defects_per_board=(0, 2))
    images = sorted((tmp_path / "boards" / "images").rglob("*.jpg"))
    labels = sorted((tmp_path / "boards" / "labels").rglob("*.txt"))
    assert [(i.parent.name, i.stem) for i in images] == [(t.parent.name, t.stem) for t in labels]
    assert {cv2.imread(str(path)).shape for path in images} == {(120, 160, 3)}
    assert len(images) == 6


def test_yaml_names_the_folder_the_classes_and_the_points(tmp_path: Path) -> None:
    text = write_boards(tmp_path / 'a "quoted": né', task="pose", **SMALL).read_text(encoding="utf-8")
    yaml = pytest.importorskip("yaml").safe_load(text)
    assert yaml["path"] == str(tmp_path / 'a "quoted": né')
    assert yaml["train"] == "images/train" and yaml["val"] == "images/val"
    assert yaml["names"] == dict(enumerate(DEFECTS))
    assert yaml["kpt_shape"] == [2, 3] and yaml["flip_idx"] == [0, 1]


def test_classify_has_a_folder_of_crops_for_each_kind(tmp_path: Path) -> None:
    data = write_boards(tmp_path / "crops", task="classify", num_train=12, num_val=6, size_px=(48, 32))
    assert data == tmp_path / "crops"
    for split, num_each in (("train", 2), ("val", 1)):
        for kind in DEFECTS:
            images = list((data / split / kind).glob("*.jpg"))
            assert len(images) == num_each
            assert all(cv2.imread(str(image)).shape == (32, 48, 3) for image in images)


def test_a_crop_holds_its_whole_defect_and_lies_on_the_board() -> None:
    for number in range(24):
        kinds = (DEFECTS[number % len(DEFECTS)],)
        for defect in take_picture((number, 4), board_px=(256, 192), kinds=kinds).defects:
            window = _window_on(defect, (256, 192), (64, 48), np.random.default_rng(number))
            x, y = window.corner_px
            assert 0 <= x <= defect.box[0] and defect.box[2] <= x + 64 <= 256
            assert 0 <= y <= defect.box[1] and defect.box[3] <= y + 48 <= 192


# --- again, elsewhere, after a kill ---


def test_a_set_that_is_there_is_left_alone(tmp_path: Path) -> None:
    write_boards(tmp_path / "boards", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "boards").rglob("*")}
    (tmp_path / "boards" / "labels" / "train.cache").touch()  # what Ultralytics leaves does not matter
    before[tmp_path / "boards" / "labels"] = (tmp_path / "boards" / "labels").stat().st_mtime_ns
    write_boards(tmp_path / "boards", workers=2, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_set_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    write_boards(tmp_path / "boards", **SMALL)
    before = digests(tmp_path / "boards")
    with pytest.raises(UserError, match="seed 0 instead of 7") as refusal:
        write_boards(tmp_path / "boards", seed=7, **SMALL)
    assert "another folder" in refusal.value.remedy
    assert digests(tmp_path / "boards") == before


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="in use"):
        write_boards(tmp_path / "mine", **SMALL)
    with pytest.raises(UserError, match="in use"):
        write_boards(tmp_path / "mine" / "thesis.txt", **SMALL)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "boards").mkdir()
    assert write_boards(tmp_path / "boards", **SMALL).exists()


def test_a_moved_set_gets_its_new_path(tmp_path: Path) -> None:
    write_boards(tmp_path / "here", **SMALL)
    (tmp_path / "here").rename(tmp_path / "there")
    assert str(tmp_path / "there") in write_boards(tmp_path / "there", **SMALL).read_text(encoding="utf-8")


def test_a_failure_midway_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, drawn = BoardSet.draw, []

    def fails_at_the_third(self: BoardSet, split: str, index: int) -> Any:
        drawn.append(index)
        if len(drawn) == 3:
            raise OSError(28, "No space left on device")
        return draw(self, split, index)

    monkeypatch.setattr(BoardSet, "draw", fails_at_the_third)
    with pytest.raises(UserError, match="No space left"):
        write_boards(tmp_path / "boards", **SMALL)
    assert len(drawn) == 3, "no fault happened, so this proves nothing"
    assert [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_call_is_noticed_and_done_over(workers: int, tmp_path: Path) -> None:
    boards = tmp_path / "boards"
    call = f"write_boards(Path({str(boards)!r}), num_train=2000, num_val=2, workers={workers})"
    lines = ("from pathlib import Path", "from steadyolo.data.boards import write_boards", "if __name__ == '__main__':")
    (tmp_path / "make.py").write_text("\n".join((*lines, f"    {call}\n")))
    source = str(Path(dataset.__file__).parents[3])
    child = subprocess.Popen([sys.executable, tmp_path / "make.py"], env=os.environ | {"PYTHONPATH": source})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("boards.partial-*/images/train/*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.02)
    pool = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert list(tmp_path.glob("boards.partial-*")), "no fault happened, so this proves nothing"
    assert not boards.exists()

    assert psutil.wait_procs(pool, timeout=30)[1] == [], "the pool outlives its parent"
    write_boards(boards, **SMALL)
    assert json.loads((boards / "boards.json").read_text())["num_train"] == 4
    assert len(list(boards.rglob("*.jpg"))) == 6
    assert not list(tmp_path.glob("boards.partial-*"))


# --- bad arguments ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": "detcet"},
        {"num_train": 0},
        {"num_val": -1},
        {"size_px": (20, 20)},
        {"size_px": (160, 1600)},
        {"size_px": (10_000, 9_000)},
        {"seed": -1},
        {"defects_per_board": (3, 2)},
        {"defects_per_board": (-1, 2)},
        {"defects_per_board": (1, 99)},
        {"workers": 0},
        {"task": "classify", "size_px": (4000, 4000)},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_anything_is_written(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        write_boards(tmp_path / "boards", **SMALL | wrong)
    assert str(next(iter(wrong.values()))) in refusal.value.message or "size_px" in wrong
    assert refusal.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_boards(tmp_path / "file" / "boards", **SMALL)
