from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from steadyolo.adapters.ultralytics.label_counts import count_labels, counts_of
from steadyolo.errors import UserError
from tests.unit.adapters.ultralytics.set_up import trainer_for


@pytest.fixture
def data(boards: Callable[[str], Path], tmp_path: Path) -> Path:
    source = boards("detect").parent
    copy = Path(shutil.copytree(source, tmp_path / "data", ignore=shutil.ignore_patterns("*.cache")))
    (copy / "data.yaml").write_text((copy / "data.yaml").read_text().replace(str(source), str(copy)))
    return copy / "data.yaml"


def test_what_is_counted_is_what_training_reads(
    data: Path, boards: Callable[[str], Path], models: Callable[..., Path], tmp_path: Path
) -> None:
    before = set(data.parent.rglob("*"))
    counted = count_labels(str(data))
    assert set(data.parent.rglob("*")) == before, "a plan leaves a data set as it was"
    with trainer_for("detect", tmp_path, boards, models) as trainer:
        assert counts_of(trainer.train_loader.dataset.labels) == counted.train
        assert counts_of(trainer.test_loader.dataset.labels) == counted.val
        assert trainer.data["nc"] == counted.num_classes
    assert counted.train.most_in_image > 1


def test_a_crowded_image_counts(data: Path) -> None:
    label = next((data.parent / "labels" / "train").glob("*.txt"))
    label.write_text("0 0.5 0.5 0.1 0.1\n" * 777 + "\n\n")
    assert count_labels(str(data)).train.most_in_image == 777


def test_images_without_a_file_have_no_boxes(data: Path) -> None:
    files = sorted((data.parent / "labels" / "train").glob("*.txt"))
    num_images = count_labels(str(data)).train.num_images
    files[0].unlink()
    counted = count_labels(str(data)).train
    assert counted.num_images == num_images
    assert counted.images_by_boxes[0] >= 1


def test_nothing_is_promised_without_labels(data: Path) -> None:
    shutil.rmtree(data.parent / "labels" / "train")
    with pytest.raises(UserError, match="has labels") as error:
        count_labels(str(data))
    assert "memory.boxes=N" in error.value.remedy


@pytest.mark.parametrize("url", ["s3://bucket/pcb/", "gs://bucket/pcb/data.yaml"])
def test_nothing_is_promised_of_data_elsewhere(url: str) -> None:
    with pytest.raises(UserError, match="are not here") as error:
        count_labels(url)
    assert "memory.boxes=N" in error.value.remedy


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        count_labels(str(tmp_path / "nothing.yaml"))
