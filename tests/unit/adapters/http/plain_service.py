"""A `Service` in this process, over a real session on a small real graph: what the front is tried on by itself."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from steadyolo.errors import UserError
from steadyolo.serve.served_model import Preparation, ServedModel, Source
from steadyolo.serve.service import (
    Answer,
    BadImage,
    DetectOptions,
    Figures,
    Inferred,
    ModelStatus,
    NoSuchModel,
    NotReady,
    Readiness,
    Tensor,
)

SIDE_PX, CLASSES = 64, ("chip", "crack")
MAX_PIXELS = 4_000_000


def small_model(version: str = "0123456789ab") -> ServedModel:
    return ServedModel(
        folder=Path("small.served"),
        version=version,
        name="small",
        task="detect",
        classes=CLASSES,
        shape_px=(SIDE_PX, SIDE_PX),
        stride_px=32,
        is_dynamic=False,
        is_end_to_end=False,
        preparation=Preparation(fit="letterbox"),
        outputs={"output0": (-1, 4 + len(CLASSES), -1)},
        keypoint_shape=None,
        num_mask_weights=None,
        graphs={"onnx": "model.onnx"},
        files={},
        source=Source(name="small.pt", sha256="00"),
        made_with={},
        comparison={},
    )


def small_graph() -> bytes:
    """(N, 3, 64, 64) to (N, 6, 4): one convolution that sees a quarter of the picture at a time."""
    random = np.random.default_rng(0)
    weights = random.normal(0, 0.01, (4 + len(CLASSES), 3, 32, 32)).astype(np.float32)
    shape = np.array([0, 4 + len(CLASSES), -1], np.int64)
    nodes = [
        helper.make_node("Conv", ["images", "weights"], ["seen"], strides=[32, 32]),
        helper.make_node("Reshape", ["seen", "shape"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIDE_PX, SIDE_PX])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["N", 4 + len(CLASSES), 4])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(shape, "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@dataclass
class PlainService:
    """One model, `small`. A test may hold answers back, and set `failure` to be raised by the next request."""

    status: ModelStatus = field(
        default_factory=lambda: ModelStatus(
            name="small",
            state="ready",
            model=small_model(),
            versions=("0123456789ab",),
            session="onnxruntime cpu fp32",
            is_required=True,
            num_bytes=1_000,
            warm_s=0.0123,
        )
    )
    failure: Exception | None = None
    is_draining: bool = False
    num_running: int = 0
    num_asked: int = 0

    def __post_init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(small_graph(), options, providers=["CPUExecutionProvider"])
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> None:
        pass

    async def detect(
        self, name: str, image: bytes, options: DetectOptions, *, version: str | None = None, timeout_s: float
    ) -> Answer:
        start = time.perf_counter()
        async with self._entered(name, version):
            pixels, height, width = _decoded(image)
            decoded = time.perf_counter()
            rows = self._run(pixels[None])["output0"][0].T
        objects = [_object(row, width, height) for row in rows[: options.max_det]]
        return Answer(
            objects=objects,
            height_px=height,
            width_px=width,
            model=name,
            version=self._model.version,
            session="onnxruntime cpu fp32",
            seconds={"decode": decoded - start, "run": time.perf_counter() - decoded},
        )

    async def infer(self, name: str, images: Tensor, *, version: str | None = None, timeout_s: float) -> Inferred:
        async with self._entered(name, version):
            numbers = np.frombuffer(images.data, np.float32).reshape(images.shape)
            if not np.isfinite(numbers).all():
                raise UserError("the tensor holds numbers that are not finite", remedy="give numbers from 0 to 1")
            outputs = {name: Tensor(one.shape, one.tobytes()) for name, one in self._run(numbers).items()}
            return Inferred(outputs=outputs, version=self._model.version)

    def readiness(self) -> Readiness:
        is_ready = self.status.state == "ready" and not self.is_draining
        return Readiness(is_ready=is_ready, models=(self.status,), is_draining=self.is_draining)

    def figures(self) -> Figures:
        return Figures(
            num_queued=0,
            num_running=self.num_running,
            num_restarts=0,
            num_fallbacks=0,
            resident_bytes={"plain": 1_000},
            more={"batch images": 1.0},
        )

    async def load(self, name: str) -> None:
        self.status = replace(self.status, state="ready", model=small_model())

    async def unload(self, name: str) -> None:
        self.status = replace(self.status, state="unloaded", model=None)

    async def drain(self, timeout_s: float) -> None:
        self.is_draining = True

    @property
    def _model(self) -> ServedModel:
        assert self.status.model is not None
        return self.status.model

    @asynccontextmanager
    async def _entered(self, name: str, version: str | None) -> AsyncIterator[None]:
        if name != "small" or version not in (None, *self.status.versions):
            raise NoSuchModel(f"no {name} {version}", remedy="use small")
        if self.status.state != "ready":
            raise NotReady(f"small is {self.status.state}", retry_after_s=1.0)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.num_asked += 1
        self.num_running += 1
        try:
            await self.gate.wait()
            yield
        finally:
            self.num_running -= 1

    def _run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return {"output0": self._session.run(None, {"images": images})[0]}


def _decoded(image: bytes) -> tuple[NDArray[np.float32], int, int]:
    try:
        with Image.open(io.BytesIO(image)) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise BadImage(f"the picture has {width}×{height} pixels", remedy="send a smaller picture")
            small = picture.convert("RGB").resize((SIDE_PX, SIDE_PX))
    # ImportError: where Ultralytics was imported too, its `Image.open` looks for a reader of HEIF
    except (OSError, ValueError, SyntaxError, ImportError, Image.DecompressionBombError) as error:
        raise BadImage(f"this is no picture: {error}"[:200], remedy="send JPEG or PNG") from None
    return np.asarray(small, np.float32).transpose(2, 0, 1).copy() / 255, height, width


def _object(row: NDArray[np.float32], width: int, height: int) -> dict[str, Any]:
    number = int(row[4:].argmax())
    box = {"x1": 0.1 * width, "y1": 0.1 * height, "x2": 0.5 * width, "y2": 0.6 * height}
    return {"name": CLASSES[number], "class": number, "confidence": round(float(abs(row[4 + number])), 5), "box": box}
