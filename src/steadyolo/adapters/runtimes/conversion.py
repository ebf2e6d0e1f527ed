"""From one graph format to another, and each format's plain answer in fp32, as exports are checked with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from steadyolo.serve.session import Images, Output

Run = Callable[[Images], list[Output]]


def write_openvino(onnx: Path, xml: Path) -> None:
    """Write the graph in `onnx` as OpenVINO's IR: `xml`, and beside it the weights, in fp32, as a `.bin`."""
    import openvino

    openvino.save_model(openvino.convert_model(onnx), xml, compress_to_fp16=False)


def open_onnx(path: Path) -> Run:
    """The graph as ONNX Runtime computes it on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: [np.asarray(one) for one in session.run(None, {name: images})]


def open_openvino(path: Path) -> Run:
    """The graph as OpenVINO computes it on the CPU, in fp32 whatever the processor likes best."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: [np.array(one) for one in compiled(images).values()]
