"""OpenVINO on the processor: one graph compiled for each shape, kept on disk so that the next start only loads it."""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
import types
from dataclasses import dataclass
from typing import Any

from steadyolo.adapters.runtimes.cache import CompiledGraphs, cache_folder
from steadyolo.adapters.runtimes.inputs import check_images, closed
from steadyolo.errors import UserError
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import DeviceFault
from steadyolo.serve.session import Images, Output, SessionSettings

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
MOST_SHAPES = 24  # that are compiled at once: what is run least goes first
_NAMES = {theirs: ours for ours, theirs in PRECISIONS.items()}


@dataclass(slots=True)
class _Shape:
    request: Any
    mapped: Any
    num_runs: int = 0


class OpenVinoSession:
    """A `Session`. Shapes are compiled when they first come: 0.1 s from the disk, 0.5 s anew for a small model."""

    def __init__(self, model: ServedModel, settings: SessionSettings) -> None:
        self._ov = bindings()
        self._model = model
        self._core = self._ov.Core()
        self._properties = _properties(self._core, settings)
        self._graphs = CompiledGraphs(settings.cache or cache_folder(model), model.version)
        self._machine = (
            self._core.get_versions("CPU")["CPU"].build_number,
            self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
            sorted(self._properties.items()),
        )
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        self._is_closed = False
        self._precision = settings.precision

    @property
    def label(self) -> str:
        """As `openvino cpu bf16`. The precision that the processor chose is known once a shape was compiled."""
        if self._precision is None and not self._shapes:
            self.compile((1, 3, *self._model.shape_px))
        return f"openvino cpu {self._precision}"

    def compile(self, shape: tuple[int, ...]) -> None:
        """Make ready for this shape; nothing where it is."""
        if self._is_closed:
            raise closed(self._model)
        if shape not in self._shapes:
            if len(self._shapes) >= MOST_SHAPES:  # whoever may send tensors may send any shape
                del self._shapes[min(self._shapes, key=lambda one: self._shapes[one].num_runs)]
            try:
                compiled, mapped = self._compiled(shape)
                self._shapes[shape] = _Shape(compiled.create_infer_request(), mapped)
                self._precision = _NAMES.get(compiled.get_property("INFERENCE_PRECISION_HINT").to_string(), "unknown")
            except RuntimeError as error:
                raise _fault(f"cannot compile {self._model.folder} for {shape}", error) from error

    def run(self, images: Images) -> list[Output]:
        """See `Session`."""
        check_images(self._model, images)
        self.compile(images.shape)
        shape = self._shapes[images.shape]
        shape.num_runs += 1
        request = shape.request
        try:
            request.infer(self._ov.Tensor(images, shared_memory=True), False, False)
            return [tensor.data.copy() for tensor in request.output_tensors]
        except RuntimeError as error:
            raise _fault(f"a run of {self._model.folder} on {images.shape} failed", error) from error

    def close(self) -> None:
        """See `Session`."""
        self._is_closed = True
        self._shapes.clear()

    def _compiled(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """The graph, and what has to stay in memory for as long as it is used."""
        path = self._graphs.path(*self._machine, shape)
        kept = self._graphs.read(path)
        if kept is not None:
            compiled = self._core.import_model(self._ov.Tensor(kept, shared_memory=True), "CPU", self._properties)
            return compiled, kept  # its weights stay in the mapped file
        form = "openvino" if "openvino" in self._model.graphs else "onnx"
        graph = self._core.read_model(str(self._model.graph(form)))
        graph.reshape({0: self._ov.PartialShape(list(shape))})
        compiled = self._core.compile_model(graph, "CPU", self._properties)
        exported = compiled.export_model()
        self._graphs.write(path, exported.getbuffer() if isinstance(exported, io.BytesIO) else exported)
        return compiled, None


def bindings() -> Any:
    """OpenVINO's compiled module without the package around it.

    The package's `__init__` loads seventeen operator sets and a model converter with its telemetry, 0.25 s that no
    session needs. The module itself takes 0.02 s. Seen with 2026.4; to be removed when the package loads as fast.
    """
    name = "openvino._pyopenvino"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec("openvino")
    if spec is None or spec.submodule_search_locations is None:
        raise UserError("openvino is not installed", remedy="install it: pip install openvino; or use onnxruntime")
    package = types.ModuleType("openvino")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["openvino"] = package
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["openvino"]  # whoever wants the whole package imports it as if nothing had been


def package() -> Any:
    """The whole of OpenVINO, without the telemetry that it sends when it is imported, if it finds that installed.

    That goes out from a process that it forks, and was seen to stay behind for good.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    return importlib.import_module("openvino")


def _properties(core: Any, settings: SessionSettings) -> dict[str, Any]:
    if settings.device != "cpu":
        raise UserError(f"OpenVINO does not run on {settings.device} here", remedy="use device=cpu or onnxruntime")
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if settings.precision is not None:
        known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if settings.precision not in PRECISIONS or settings.precision.upper() not in known:
            raise UserError(
                f"this processor does not compute in {settings.precision}",
                remedy="use one of fp32, bf16, fp16 that it has, or none to let it choose",
            )
        properties["INFERENCE_PRECISION_HINT"] = PRECISIONS[settings.precision]
    if settings.num_threads is not None:
        properties["INFERENCE_NUM_THREADS"] = settings.num_threads
    return properties


def _fault(what: str, error: RuntimeError) -> DeviceFault:
    return DeviceFault(f"OpenVINO: {what}: {error}", remedy="start the worker again; if it stays, use onnxruntime")
