"""A session that rounds is right about the golden picture; one that answers anything else is found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from steadyolo.adapters.runtimes.conversion import Run, open_onnx, open_openvino
from steadyolo.adapters.ultralytics import source_model
from steadyolo.adapters.ultralytics.export_process import ExportRequest
from steadyolo.serve.golden import Golden, read_png, write_png
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import DeviceFault
from steadyolo.serve.session import Images, Output
from tests.conftest import TASKS

MODELS = [*((task, "yolov8") for task in TASKS), ("detect", "yolo26"), ("segment", "yolo26")]


class Plain:
    """A session over a function of images."""

    label = "plain cpu"

    def __init__(self, run: Run) -> None:
        self._run = run

    def run(self, images: Images) -> list[Output]:
        return self._run(images)

    def close(self) -> None: ...


def flipped(path: Path, number: int) -> onnx.ModelProto:
    """The graph with the sign of one layer's weights changed."""
    graph = onnx.load(path)
    layers = [one for one in graph.graph.initializer if len(one.dims) == 4]
    layers[number].CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(layers[number]), layers[number].name))
    return graph


@pytest.mark.parametrize(("task", "family"), MODELS)
def test_rounding_is_no_fault_and_garbage_is_one(
    task: str, family: str, served: Callable[..., ServedModel], weights: Callable[..., Path], tmp_path: Path
) -> None:
    model = served(task, family)
    golden = Golden(model)
    right = open_onnx(model.graph("onnx"))
    source = source_model.load(ExportRequest(weights=weights(task, family), is_end_to_end=model.is_end_to_end))
    for run in (right, open_openvino(model.graph("openvino")), source_model.rounded_to_bfloat16(source).run):
        golden.check(Plain(run))

    onnx.save(flipped(model.graph("onnx"), 0), tmp_path / "flipped.onnx")
    garbage: dict[str, Run] = {
        "zeros": lambda images: [one * 0 for one in right(images)],
        "not finite": lambda images: [one * np.nan for one in right(images)],
        "another picture": lambda images: right(1 - images),
        "colours in another order": lambda images: right(np.ascontiguousarray(images[:, ::-1])),
        "another shape": lambda images: [one[..., :-1] for one in right(images)],
        "one layer is wrong": open_onnx(tmp_path / "flipped.onnx"),
    }
    if not model.is_end_to_end:
        garbage["permuted"] = lambda images: [np.roll(one, one.shape[-1] // 3, axis=-1) for one in right(images)]
    for what, run in garbage.items():
        with pytest.raises(DeviceFault, match="golden picture"):
            golden.check(Plain(run))
            pytest.fail(f"{what} was taken for right")


def test_rows_of_an_end_to_end_model_may_change_places(served: Callable[..., ServedModel]) -> None:
    model = served("detect", "yolo26")
    golden = Golden(model)
    (rows,) = open_onnx(model.graph("onnx"))(golden.images)
    order = np.random.default_rng(0).permutation(rows.shape[1])
    golden.check(Plain(lambda _: [rows[:, order]]))
    wrong = rows.copy()
    wrong[0, 0, :4] += 40.0
    with pytest.raises(DeviceFault, match="boxes"):
        golden.check(Plain(lambda _: [wrong]))


def test_the_picture_is_a_png(served: Callable[..., ServedModel]) -> None:
    import cv2

    data = (served("detect").folder / "golden.png").read_bytes()
    picture = read_png(data)
    seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(picture, seen[..., ::-1])
    assert write_png(picture) == data
