"""What is learned from has the distribution of Ultralytics' own augmentation, sample by sample."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steadyolo.data.boards import write_boards
from steadyolo.state.run_state import Cursor
from tests.unit.adapters.ultralytics.set_up import trainer_for

pytestmark = pytest.mark.slow

NUM_SAMPLES = 500
NUM_IMAGES = 50
# Means of two sets of 500 samples differ by more than this many standard errors once in 30,000 comparisons.
TOLERANCE_SE = 4.2

SETTINGS = {
    "defaults": {},
    "everything": {
        "mixup": 0.5,
        "cutmix": 0.3,
        "copy_paste": 0.5,
        "degrees": 15.0,
        "shear": 5.0,
        "perspective": 0.0005,
        "flipud": 0.5,
        "bgr": 0.3,
    },
    "no mosaic": {"mosaic": 0.0},
}
GREY = 114 / 255  # what Ultralytics fills with where no image is


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("many")
    return lambda task: write_boards(folder / task, task=task, num_train=NUM_IMAGES, num_val=1, size_px=(128, 96))


def measure(sample: dict[str, Any]) -> dict[str, float]:
    """What describes one sample: its boxes, its colours, how much of it is filled."""
    image = sample["img"].float().numpy() / 255
    boxes = sample["bboxes"].numpy().reshape(-1, sample["bboxes"].shape[-1])
    area = boxes[:, 2] * boxes[:, 3] if len(boxes) else np.zeros(1)
    filled = np.abs(image - GREY).max(0) < 0.01
    cls = sample["cls"].numpy().reshape(-1)
    described = {
        "boxes": float(len(boxes)),
        "box area": float(area.mean()),
        "box area squared": float((area**2).mean()),
        "box x": float(boxes[:, 0].mean()) if len(boxes) else 0.5,
        "box y": float(boxes[:, 1].mean()) if len(boxes) else 0.5,
        "class": float(cls.mean()) if len(cls) else 2.5,
        "grey": float(filled.mean()),
        "contrast": float(image.std()),
        **{f"channel {number}": float(channel.mean()) for number, channel in enumerate(image)},
    }
    if "masks" in sample:
        described["mask"] = float((sample["masks"] > 0).float().mean())
    if "keypoints" in sample and len(sample["keypoints"]):
        described["keypoint x"] = float(sample["keypoints"][..., 0].mean())
        described["visible"] = float((sample["keypoints"][..., 2] > 0).float().mean())
    return described


def theirs(trainer: Any, num_samples: int) -> list[dict[str, float]]:
    """Samples of Ultralytics' own data set, in the order of a shuffling loader without workers."""
    from ultralytics.data.build import build_yolo_dataset

    dataset = build_yolo_dataset(
        trainer.args, trainer.data["train"], trainer.batch_size, trainer.data, mode="train", rect=False, stride=32
    )
    random.seed(11)
    np.random.seed(11)
    torch.manual_seed(11)
    found = []
    while len(found) < num_samples + NUM_IMAGES:
        found += [measure(dataset[int(index)]) for index in torch.randperm(len(dataset))]
    return found[NUM_IMAGES : NUM_IMAGES + num_samples]  # its buffer is filled by then


def ours(trainer: Any, num_samples: int) -> list[dict[str, float]]:
    dataset = trainer.train_loader.dataset
    return [measure(dataset[position]) for position in range(num_samples)]


def apart(mine: list[dict[str, float]], other: list[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """What differs by more than the tolerance: both means, and by how many standard errors."""
    found = {}
    for name in mine[0]:
        one, two = (np.array([sample[name] for sample in samples if name in sample]) for samples in (mine, other))
        error = max(float(np.sqrt((one.var() + two.var()) / NUM_SAMPLES)), 1e-9)
        if abs(one.mean() - two.mean()) > TOLERANCE_SE * error:
            found[name] = (float(one.mean()), float(two.mean()), float(abs(one.mean() - two.mean()) / error))
    return found


@pytest.mark.parametrize(
    ("task", "setting"),
    [
        ("detect", "defaults"),
        ("detect", "everything"),
        ("detect", "no mosaic"),
        ("segment", "everything"),
        ("pose", "defaults"),
        ("obb", "everything"),
    ],
)
def test_samples_are_distributed_as_ultralytics_samples(
    task: str, setting: str, many: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path
) -> None:
    changes = {"close_mosaic": 0, "batch": 16, "imgsz": 64, **SETTINGS[setting]}
    with trainer_for(task, tmp_path, many, models, **changes) as trainer:
        mine, other = ours(trainer, NUM_SAMPLES), theirs(trainer, NUM_SAMPLES)
    assert apart(mine, other) == {}


@pytest.mark.parametrize(
    "changes",
    [{"mosaic": 0.0}, {"scale": 0.1}, {"hsv_v": 0.0}, {"degrees": 45.0}],
    ids=str,
)
def test_a_difference_would_be_noticed(
    changes: dict[str, float], many: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path
) -> None:
    """The same comparison tells settings apart that a wrong transform would amount to."""
    with trainer_for("detect", tmp_path, many, models, close_mosaic=0, batch=16) as trainer:
        other = theirs(trainer, NUM_SAMPLES)
    (tmp_path / "second").mkdir()
    with trainer_for("detect", tmp_path / "second", many, models, close_mosaic=0, batch=16, **changes) as trainer:
        mine = ours(trainer, NUM_SAMPLES)
    assert apart(mine, other)


def test_sizes_of_multi_scale_batches_depend_on_the_batch_alone(
    boards: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path
) -> None:
    from steadyolo.data.randomness import seed_generators

    with trainer_for("detect", tmp_path, boards, models, multi_scale=0.5, imgsz=128) as trainer:
        order = trainer.train_loader.order

        def side(cursor: Cursor) -> int:
            seed_generators(order.batch_key(cursor))
            return int(trainer.preprocess_batch(trainer.train_loader.batch(cursor))["img"].shape[-1])

        cursors = [Cursor(epoch=epoch, batch=batch) for epoch in range(3) for batch in range(4)]
        forwards = [side(cursor) for cursor in cursors]
        assert len(set(forwards)) >= 3
        assert all(size % 32 == 0 for size in forwards)
        assert [side(cursor) for cursor in reversed(cursors)] == forwards[::-1]
