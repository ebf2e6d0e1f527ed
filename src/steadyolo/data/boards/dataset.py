"""`BoardSet`: a data set of boards on disk, in the layout that Ultralytics reads for each task."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from steadyolo.data.boards.defect import DEFECTS, Defect, Points
from steadyolo.data.boards.picture import Picture, take_picture
from steadyolo.errors import UserError

TASKS = ("detect", "segment", "pose", "obb", "classify")
SPLITS = ("train", "val")
RECORD = "boards.json"  # written last, before the folder gets its name: what the folder holds
JPEG_QUALITY = 90
MIN_SIDE_PX = {"board": 96, "crop": 32}
MAX_SIDE_PX = 8192
MAX_DEFECTS = 12  # what finds room on any board
CROP_SHARE = 4  # a crop for classify is this part of its board's side, so that the defect fills much of it
NUM_ATTEMPTS = 50  # boards drawn until one has room for the fewest defects asked for


def write_boards(
    folder: Path,
    *,
    task: str = "detect",
    num_train: int,
    num_val: int,
    size_px: tuple[int, int] = (640, 480),
    seed: int = 0,
    defects_per_board: tuple[int, int] = (1, 6),
    workers: int = 1,
) -> Path:
    """Make sure that `folder` holds this data set, whole; returns what Ultralytics takes as `data=`.

    That is `data.yaml`, or the folder itself for classify, whose images are crops of `size_px` around one defect each
    (`defects_per_board` is not used). Images are JPEG. The same arguments give the same bytes, and each image depends
    only on `seed`, its split and its index, for any number of `workers` (processes; a board of 1280x960 takes
    about 30 ms of one and 200 kB). With more than 1, the calling script needs the usual `__main__` guard.
    A folder that already holds this set is left as it is. One appears under its name only when it is complete, so a
    killed call leaves nothing that counts; the next one starts over.
    Raises: UserError for arguments out of range, for a folder with other contents, and where it cannot be written.
    """
    boards = BoardSet(
        task=task,
        num_train=num_train,
        num_val=num_val,
        size_px=(size_px[0], size_px[1]),
        seed=seed,
        defects_per_board=(defects_per_board[0], defects_per_board[1]),
    )
    if workers < 1:
        raise UserError(f"workers is {workers}", remedy="use at least 1; the number of cores is a good choice")
    folder = Path(folder).expanduser().resolve()
    try:
        if not boards.is_in(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                if not boards.is_in(folder):  # another process may just have made it
                    _make(boards, folder, workers)
        return _describe(boards, folder)
    except OSError as error:
        raise UserError(
            f"cannot write {num_train + num_val} boards to {folder}: {error}",
            remedy="choose a folder on a disk that can be written and has room",
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardSet:
    """What was asked for. Equal ones have equal files."""

    VERSION: ClassVar[int] = 1  # goes up when the same arguments give other pictures

    task: str
    num_train: int
    num_val: int
    size_px: tuple[int, int]
    seed: int
    defects_per_board: tuple[int, int]

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"task is {self.task!r}", remedy=f"use one of {', '.join(TASKS)}")
        for name in ("num_train", "num_val"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", remedy="use at least 1: training needs both splits")
        least = MIN_SIDE_PX["crop" if self.task == "classify" else "board"]
        most = MAX_SIDE_PX // CROP_SHARE if self.task == "classify" else MAX_SIDE_PX
        if not all(least <= side <= most for side in self.size_px) or max(self.size_px) > 4 * min(self.size_px):
            raise UserError(
                f"size_px is {self.size_px} for task {self.task}",
                remedy=f"use (width, height) of {least} to {most} pixels, the longer at most 4 times the shorter",
            )
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}", remedy="use 0 or more")
        fewest, most = self.defects_per_board
        if not 0 <= fewest <= most <= MAX_DEFECTS:
            raise UserError(
                f"defects_per_board is {self.defects_per_board}",
                remedy=f"use (fewest, most) with 0 <= fewest <= most <= {MAX_DEFECTS}",
            )

    def record(self) -> dict[str, object]:
        """This set as JSON values, lists for tuples."""
        raw: dict[str, object] = json.loads(json.dumps({"version": self.VERSION, **asdict(self)}))
        if self.task == "classify":
            del raw["defects_per_board"]
        return raw

    def is_in(self, folder: Path) -> bool:
        """Whether `folder` holds this set, whole. Raises UserError if it holds anything else."""
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return False
        elsewhere = "choose another folder, or delete this one if nothing in it is needed"
        try:
            there = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise UserError(f"{folder} is in use by something other than boards", remedy=elsewhere) from None
        wanted = self.record()
        if there != wanted:
            keys = sorted(key for key in wanted.keys() | there.keys() if there.get(key) != wanted.get(key))
            difference = ", ".join(f"{key} {there.get(key)} instead of {wanted.get(key)}" for key in keys)
            raise UserError(f"{folder} holds other boards: {difference}", remedy=elsewhere)
        return True

    def draw(self, split: str, index: int) -> Picture:
        """Board `index` of `split`."""
        for attempt in range(NUM_ATTEMPTS):
            key = (self.seed, SPLITS.index(split), index, attempt)
            if self.task == "classify":
                board_px = (CROP_SHARE * self.size_px[0], CROP_SHARE * self.size_px[1])
                kinds, fewest = [DEFECTS[index % len(DEFECTS)]], 1
                picture = take_picture(key, board_px=board_px, kinds=kinds, crop_px=self.size_px)
            else:
                rng = np.random.default_rng(key)
                fewest, most = self.defects_per_board
                kinds = [str(kind) for kind in rng.choice(DEFECTS, rng.integers(fewest, most + 1))]
                picture = take_picture(key, board_px=self.size_px, kinds=kinds)
            if len(picture.defects) >= fewest:
                return picture
        raise UserError(
            f"no board of {self.size_px} pixels has room for {fewest} defects", remedy="lower defects_per_board"
        )


def label_line(task: str, defect: Defect, size_px: tuple[int, int]) -> str:
    """The defect as a line of an Ultralytics label file: class, then coordinates as shares of the picture's sides."""
    x1, y1, x2, y2 = defect.box
    box = np.array([[(x1 + x2) / 2, (y1 + y2) / 2], [x2 - x1, y2 - y1]])

    def shares(points: Points) -> list[str]:
        return [f"{share:.6f}" for share in (points / size_px).clip(0, 1).ravel()]

    match task:
        case "segment":
            values = shares(defect.outline)
        case "obb":
            values = shares(defect.corners)
        case "pose":
            (ax, ay), (bx, by) = shares(defect.ends[:1]), shares(defect.ends[1:])
            values = [*shares(box), ax, ay, "2", bx, by, "2"]  # 2: labelled and visible
        case _:
            values = shares(box)
    return " ".join([str(DEFECTS.index(defect.kind)), *values]) + "\n"


def _make(boards: BoardSet, folder: Path, workers: int) -> None:
    """Write the set beside `folder`, then give it its name. The caller makes sure that nobody else does."""
    for left in folder.parent.glob(f"{folder.name}.partial-*"):
        shutil.rmtree(left, ignore_errors=True)  # of an interrupted call
    unfinished = folder.with_name(f"{folder.name}.partial-{secrets.token_hex(4)}")
    try:
        for split in SPLITS:
            if boards.task == "classify":
                for kind in DEFECTS:
                    (unfinished / split / kind).mkdir(parents=True)
            else:
                (unfinished / "images" / split).mkdir(parents=True)
                (unfinished / "labels" / split).mkdir(parents=True)
        items = [("train", i) for i in range(boards.num_train)] + [("val", i) for i in range(boards.num_val)]
        write = partial(_write_item, boards, unfinished)
        if workers == 1:
            for item in items:
                write(item)
        else:
            # Not forked: the caller may have threads, and torch in memory.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(workers, len(items)), context, _begin_worker) as pool:
                for _ in pool.map(write, items, chunksize=8):
                    pass
        (unfinished / RECORD).write_text(json.dumps(boards.record(), indent=2) + "\n", encoding="utf-8")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_item(boards: BoardSet, folder: Path, item: tuple[str, int]) -> None:
    split, index = item
    picture = boards.draw(split, index)
    jpeg = cv2.imencode(".jpg", picture.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    name = f"board_{index:06d}"
    if boards.task == "classify":
        (folder / split / picture.defects[0].kind / f"{name}.jpg").write_bytes(jpeg)
        return
    lines = [label_line(boards.task, defect, boards.size_px) for defect in picture.defects]
    (folder / "labels" / split / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "images" / split / f"{name}.jpg").write_bytes(jpeg)


def _describe(boards: BoardSet, folder: Path) -> Path:
    """The path to pass as `data=`. Writes `data.yaml` anew where the folder was moved: it holds the folder's path."""
    if boards.task == "classify":
        return folder
    lines = [
        f"path: {json.dumps(str(folder), ensure_ascii=False)}",
        "train: images/train",
        "val: images/val",
        "names:",
        *(f"  {number}: {kind}" for number, kind in enumerate(DEFECTS)),
    ]
    if boards.task == "pose":
        lines += ["kpt_shape: [2, 3]", "flip_idx: [0, 1]"]
    text, path = "\n".join(lines) + "\n", folder / "data.yaml"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        fresh = folder / f"data.yaml.{secrets.token_hex(4)}"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock on making `folder`. The system lets go of it when this process dies."""
    with (folder.parent / f".{folder.name}.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _begin_worker() -> None:
    cv2.setNumThreads(1)  # the processes share the cores already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's workers do not notice a killed parent by themselves and would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
