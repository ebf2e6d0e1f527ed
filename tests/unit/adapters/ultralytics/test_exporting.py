"""What an export leaves behind computes what its source does, or there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import psutil
import pytest
from onnx import numpy_helper

from steadyolo.adapters.ultralytics import source_model
from steadyolo.adapters.ultralytics.export_process import ExportRequest, export_model
from steadyolo.errors import DataLoss, SteadyError, UserError
from steadyolo.serve.served_model import ServedModel, Source, open_served
from tests.conftest import TASKS
from tests.served import END_TO_END, export_in_this_process
from tests.unit.adapters.ultralytics.test_weights import Call, write

OTHERS = [("detect", "yolo11"), ("detect", "yolo26"), ("segment", "yolo26")]
SOURCE = Source(name="m.pt", sha256="")


@pytest.mark.parametrize(("task", "family"), [*((task, "yolov8") for task in TASKS), *OTHERS])
def test_graphs_of_every_task_and_family(task: str, family: str, served: Callable[..., ServedModel]) -> None:
    model = served(task, family)
    assert open_served(model.folder) == model
    assert (model.task, set(model.graphs)) == (task, {"onnx", "openvino"})
    assert model.is_end_to_end == (family in END_TO_END)
    assert all(shape[0] == -1 for shape in model.outputs.values())
    assert list(model.outputs) == (["output0", "output1"] if task == "segment" else ["output0"])
    compared = {name for name in model.comparison if name.startswith(("onnx ", "openvino "))}
    assert len(compared) >= (2 if task == "classify" else 4)


def damaged_onnx(source: source_model.SourceModel, path: Path) -> None:
    """A graph with one weight that is not the model's."""
    WRITE_ONNX(source, path)
    graph = onnx.load(path)
    weights = next(one for one in graph.graph.initializer if len(one.dims) == 4)
    values = numpy_helper.to_array(weights).copy()
    values.ravel()[0] += 1.0
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(graph, path)


WRITE_ONNX = source_model.write_onnx


def test_a_graph_that_computes_something_else_is_refused(
    weights: Callable[..., Path], served: Callable[..., ServedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m.served"
    shutil.copytree(served("detect").folder, folder)
    before = open_served(folder)
    monkeypatch.setattr(source_model, "write_onnx", damaged_onnx)
    with pytest.raises(DataLoss, match=r"onnx graph does not compute what the detect model does: boxes by \d"):
        export_in_this_process(weights("detect"), folder)
    assert open_served(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.served"]


def test_weights_that_carry_code_are_refused_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "m.pt", {"model": Call(os.system, "touch RAN")})
    with pytest.raises(UserError, match="would run code"):
        export_model(ExportRequest(weights=path), tmp_path / "m.served", SOURCE)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.pt"]


def test_an_export_whose_process_is_killed_leaves_nothing(weights: Callable[..., Path], tmp_path: Path) -> None:
    told: list[str] = []

    def kill(what: str) -> None:
        told.append(what)
        if what.startswith("asking"):
            (child,) = (one for one in psutil.Process().children() if "exporting" in " ".join(one.cmdline()))
            child.kill()

    with pytest.raises(SteadyError, match="ended with code -9"):
        export_model(ExportRequest(weights=weights("detect")), tmp_path / "m.served", SOURCE, tell=kill)
    assert told[-1].startswith("asking"), "nothing was killed, so this proves nothing"
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_served_model_is_not_replaced(weights: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "m.served"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is no served model"):
        export_model(ExportRequest(weights=weights("detect")), folder, SOURCE)
    assert (folder / "thesis.txt").read_text() == "mine"


def test_a_shape_that_the_model_cannot_take_is_refused(weights: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiple of the model's stride 32"):
        source_model.load(ExportRequest(weights=weights("detect"), shape_px=(100, 160)))
