"""From one graph format to another, and each format's plain answer in fp32, as exports are checked with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from steadyolo.adapters.runtimes.onnxruntime import library
from steadyolo.adapters.runtimes.openvino import package
from steadyolo.errors import UserError
from steadyolo.serve.served_model import INPUT
from steadyolo.serve.session import Images, Output

_TENSORRT = "TensorrtExecutionProvider"
_MOST_IMAGES = 16  # at once through an engine

Run = Callable[[Images], list[Output]]


def write_openvino(onnx: Path, xml: Path) -> None:
    """Write the graph in `onnx` as OpenVINO's IR: `xml`, and beside it the weights, in fp32, as a `.bin`.

    Read as sessions read ONNX: `convert_model` takes seconds for the same, and has a telemetry of its own.
    """
    openvino = package()
    openvino.save_model(openvino.Core().read_model(onnx), xml, compress_to_fp16=False)


def check_engine() -> None:
    """Raise UserError unless TensorRT engines can be built here."""
    import torch

    if not torch.cuda.is_available() or _TENSORRT not in library().get_available_providers():
        lacking = "ONNX Runtime with its TensorRT provider" if torch.cuda.is_available() else "an NVIDIA GPU"
        raise UserError(
            f"format=engine needs {lacking}, which is not here",
            remedy="leave it out: a machine that has one makes its engine from the ONNX graph, and keeps it",
        )


def write_engine(onnx: Path, engine: Path, *, shape_px: tuple[int, int], least_px: int) -> None:
    """Build TensorRT's engine for this GPU, in an ONNX file that ONNX Runtime opens with the same provider.

    It takes up to sixteen images, of `least_px` up to `shape_px` high and wide. Raises: UserError as `check_engine`.
    """
    check_engine()
    sizes = {
        "min": (1, 3, least_px, least_px),
        "opt": (1, 3, *shape_px),
        "max": (_MOST_IMAGES, 3, *shape_px),
    }
    profile = {f"trt_profile_{name}_shapes": f"{INPUT}:{'x'.join(map(str, size))}" for name, size in sizes.items()}
    embedded = {
        "trt_dump_ep_context_model": True,
        "trt_ep_context_file_path": str(engine),
        "trt_ep_context_embed_mode": 1,
    }
    options = {"device_id": 0, **profile, **embedded}
    library().InferenceSession(onnx, providers=[(_TENSORRT, options), "CUDAExecutionProvider"])


def open_engine(path: Path) -> Run:
    """The engine as this GPU computes it."""
    return _run(path, [_TENSORRT, "CUDAExecutionProvider"])


def open_onnx(path: Path) -> Run:
    """The graph as ONNX Runtime computes it on the CPU."""
    return _run(path, ["CPUExecutionProvider"])


def open_openvino(path: Path) -> Run:
    """The graph as OpenVINO computes it on the CPU, in fp32 whatever the processor likes best."""
    openvino = package()
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: [np.array(one) for one in compiled(images).values()]


def _run(path: Path, providers: list[str]) -> Run:
    session = library().InferenceSession(path, providers=providers)
    return lambda images: [np.asarray(one) for one in session.run(None, {INPUT: images})]
