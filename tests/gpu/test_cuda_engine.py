"""TensorRT engines, where there is a GPU and ONNX Runtime's provider for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from steadyolo.adapters.ultralytics.export_process import ExportRequest, export_model
from steadyolo.serve.served_model import Source, open_served

pytestmark = pytest.mark.gpu


def test_an_engine_answers_as_its_source(weights: Callable[..., Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has no TensorRT provider here")
    request = ExportRequest(weights=weights("detect"), forms=("onnx", "engine"))
    model = export_model(request, tmp_path / "m.served", Source(name="m.pt", sha256=""))
    assert open_served(model.folder).graphs["engine"] == "model.engine.onnx"
    assert any(name.startswith("engine ") for name in model.comparison)
