"""What an export leaves behind computes what its source does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from steadyolo.serve.served_model import ServedModel, open_served
from tests.conftest import TASKS

OTHERS = [("detect", family) for family in ("yolov5", "yolo11", "yolo12", "yolov10", "yolo26")]
OTHERS += [(task, "yolo26") for task in TASKS if task != "detect"]


@pytest.mark.parametrize(("task", "family"), [*((task, "yolov8") for task in TASKS), *OTHERS])
def test_graphs_of_every_task_and_family(task: str, family: str, served: Callable[..., ServedModel]) -> None:
    model = served(task, family)
    assert open_served(model.folder) == model
    assert model.task == task
