"""Pictures in and results out are Ultralytics' own: its predictor runs the same graph on the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from steadyolo.adapters.runtimes.opening import open_session
from steadyolo.data.boards.defect import DEFECTS
from steadyolo.data.boards.picture import take_picture
from steadyolo.serve.engine import Engine
from steadyolo.serve.letterbox import tightest_shape
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import DetectOptions
from steadyolo.serve.session import Session, SessionSettings

TOLERANCE_PX = 0.01  # of boxes, corners and keypoints
MASK_TOLERANCE_SHARE = 2e-3  # of a mask's pixels: where a logit is 0 within rounding
SIZES = ((120, 160), (331, 97), (53, 640), (1, 1), (700, 2), (161, 159))

_PREDICTORS: dict[str, Any] = {}
_SESSIONS: dict[Path, Session] = {}

Served = Callable[..., ServedModel]


def picture(height: int, width: int) -> np.ndarray:
    """BGR."""
    board = take_picture((3, height, width), board_px=(160, 160), kinds=DEFECTS).image
    return cv2.resize(board, (width, height), interpolation=cv2.INTER_AREA)


def labelled(model: ServedModel) -> str:
    """The model's graph with the notes that Ultralytics looks for in it, in a file beside."""
    path = model.folder.parent / f"{model.folder.stem}-labelled.onnx"
    if path.exists():
        return str(path)
    graph = onnx.load(model.graph("onnx"))
    notes = {
        "task": model.task,
        "stride": model.stride_px,
        "batch": 1,
        "imgsz": list(model.shape_px),
        "names": dict(enumerate(model.classes)),
        "channels": 3,
        "end2end": model.is_end_to_end,
        "args": {"dynamic": model.is_dynamic, "batch": 1},
    } | ({"kpt_shape": list(model.keypoint_shape)} if model.keypoint_shape else {})
    graph.metadata_props.extend(onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in notes.items())
    onnx.save(graph, path)
    return str(path)


def theirs(model: ServedModel, image: np.ndarray, **options: Any) -> Any:
    from ultralytics import YOLO

    path = labelled(model)
    if path not in _PREDICTORS:
        _PREDICTORS[path] = YOLO(path, task=model.task)
    defaults = {"conf": 0.25, "iou": 0.7, "max_det": 300, "classes": None, "agnostic_nms": False}
    return (
        _PREDICTORS[path]
        .predict(image, imgsz=list(model.shape_px), device="cpu", verbose=False, **defaults | options)[0]
        .numpy()
    )


def ours(model: ServedModel, image: np.ndarray, **options: Any) -> Any:
    full = model.shape_px
    shapes = (full, tightest_shape(image.shape[:2], full, model.stride_px)) if model.is_dynamic else (full,)
    if model.folder not in _SESSIONS:
        _SESSIONS[model.folder] = open_session(model, SessionSettings(runtime="onnxruntime"))
    return Engine(model, _SESSIONS[model.folder], shapes_px=shapes).detect(image, DetectOptions(**options))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_results_are_those_of_ultralytics(served: Served, task: str, size: tuple[int, int]) -> None:
    model = served(task)
    image = picture(*size)
    assert_alike(ours(model, image, conf=0.1), theirs(model, image, conf=0.1))


@pytest.mark.parametrize(
    "options",
    [{"conf": 0.001}, {"classes": (0, 2)}, {"max_det": 3}, {"agnostic_nms": True}, {"iou": 0.2}, {"iou": 0.95}],
    ids=str,
)
@pytest.mark.parametrize("task", ["detect", "obb"])
def test_options_mean_what_they_mean_there(served: Served, task: str, options: dict[str, Any]) -> None:
    image = picture(150, 160)
    mine = ours(served(task), image, **{"conf": 0.05, **options})
    assert len(mine), "nothing found, so nothing was compared"
    assert_alike(mine, theirs(served(task), image, **{"conf": 0.05, **options}))


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_rows_that_are_final_already(served: Served, task: str) -> None:
    model = served(task, "yolo26")
    assert model.is_end_to_end
    for options in ({"conf": 0.05}, {"conf": 0.05, "classes": (1,)}, {"conf": 0.01, "max_det": 4}):
        image = picture(160, 120)
        assert_alike(ours(model, image, **options), theirs(model, image, **options))


def matches(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each row the other that is nearest; each other one once."""
    far = np.abs(rows[:, None] - others[None]).max(-1)
    index = np.empty(len(rows), int)
    for row in range(len(rows)):
        index[row] = far[row].argmin()
        far[:, index[row]] = np.inf
    return index


def assert_alike(mine: Any, reference: Any) -> None:
    assert len(mine) == len(reference)
    assert mine.orig_shape == reference.orig_shape
    assert mine.names == reference.names
    if mine.probs is not None:
        is_thin = max(mine.orig_shape) > 8 * min(mine.orig_shape)
        np.testing.assert_allclose(mine.probs.data, reference.probs.data, atol=1e-2 if is_thin else 1e-5)
        assert [one["class"] for one in mine.summary()] == [one["class"] for one in reference.summary()]
        return
    found, expected = (mine.obb, reference.obb) if mine.obb is not None else (mine.boxes, reference.boxes)
    if not len(found):
        return
    np.testing.assert_allclose(found.conf, expected.conf, atol=1e-5)
    same = matches(found.data, expected.data)  # equal scores, as of sure ones, leave the order open
    reference = reference[same]
    found, expected = (mine.obb, reference.obb) if mine.obb is not None else (mine.boxes, reference.boxes)
    np.testing.assert_allclose(found.data[:, :4], expected.data[:, :4], atol=TOLERANCE_PX)
    np.testing.assert_allclose(found.data[:, 4:], expected.data[:, 4:], atol=1e-5)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=TOLERANCE_PX)
    if mine.obb is not None:
        np.testing.assert_allclose(found.xyxyxyxyn, expected.xyxyxyxyn, atol=TOLERANCE_PX)
    else:
        np.testing.assert_allclose(found.xywh, expected.xywh, atol=TOLERANCE_PX)
        np.testing.assert_allclose(found.xywhn, expected.xywhn, atol=TOLERANCE_PX)
    if mine.keypoints is not None:
        np.testing.assert_allclose(mine.keypoints.data, reference.keypoints.data, atol=TOLERANCE_PX)
        np.testing.assert_allclose(mine.keypoints.xyn, reference.keypoints.xyn, atol=TOLERANCE_PX)
    if reference.masks is not None:
        assert (mine.masks.data != reference.masks.data).mean() <= MASK_TOLERANCE_SHARE
        if (mine.masks.data == reference.masks.data).all():
            assert [one.shape for one in mine.masks.xy] == [one.shape for one in reference.masks.xy]
            for outline, expected_outline in zip(mine.masks.xy, reference.masks.xy, strict=True):
                np.testing.assert_allclose(outline, expected_outline, atol=TOLERANCE_PX)
    assert [list(one) for one in mine.summary()] == [list(one) for one in reference.summary()]
