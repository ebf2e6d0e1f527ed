"""ONNX Runtime: on the processor, and on NVIDIA GPUs through its CUDA and TensorRT providers."""

from __future__ import annotations

import os
from typing import Any

from steadyolo.adapters.runtimes.cache import cache_folder, library_cache
from steadyolo.adapters.runtimes.inputs import check_images, closed
from steadyolo.errors import UserError
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import DeviceFault
from steadyolo.serve.session import Images, Output, SessionSettings

_QUIET = 3  # its log level for errors


class OnnxRuntimeSession:
    """A `Session` on exactly the provider that was asked for: one that is not there is refused, never replaced."""

    def __init__(self, model: ServedModel, settings: SessionSettings) -> None:
        onnxruntime = library()
        self._model = model
        self._faults = _faults()
        provider, options, self._precision = _provider(model, settings)
        if provider not in onnxruntime.get_available_providers():
            raise _not_here(provider, settings)
        chosen = onnxruntime.SessionOptions()
        chosen.log_severity_level = _QUIET
        if settings.num_threads is not None:
            chosen.intra_op_num_threads = settings.num_threads
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(model.graph("onnx")), chosen, providers=[(provider, options)]
            )
        except self._faults as error:
            raise DeviceFault(
                f"ONNX Runtime cannot open {model.folder} on {settings.device}: {error}",
                remedy="check the device and its driver, or use device=cpu",
            ) from error
        self._session.disable_fallback()
        if self._session.get_providers()[0] != provider:  # it may fall back in silence (microsoft/onnxruntime#21424)
            raise _not_here(provider, settings)
        self._input = self._session.get_inputs()[0].name
        kind = "tensorrt" if provider.startswith("Tensorrt") else "onnxruntime"
        self._label = f"{kind} {settings.device} {self._precision}"

    @property
    def label(self) -> str:
        """As `onnxruntime cpu fp32`."""
        return self._label

    def run(self, images: Images) -> list[Output]:
        """See `Session`."""
        check_images(self._model, images)
        if self._session is None:
            raise closed(self._model)
        try:
            return list(self._session.run(None, {self._input: images}))
        except self._faults as error:
            raise DeviceFault(
                f"ONNX Runtime: a run of {self._model.folder} on {images.shape} failed: {error}",
                remedy="start the worker again; if it stays, use device=cpu",
            ) from error

    def close(self) -> None:
        """See `Session`."""
        self._session = None


def library() -> Any:
    """ONNX Runtime, which tells nobody that it is used: from 1.32 on it would, unless this is said before it loads."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _provider(model: ServedModel, settings: SessionSettings) -> tuple[str, dict[str, Any], str]:
    """Name and options of the provider that the settings ask for, and the precision it computes in."""
    kind, _, index = settings.device.partition(":")
    if kind == "cpu" and settings.runtime != "tensorrt":
        if settings.precision not in (None, "fp32"):
            raise UserError(
                f"ONNX Runtime computes in fp32 on a processor, not {settings.precision}",
                remedy="use precision=fp32, or runtime=openvino",
            )
        return "CPUExecutionProvider", {}, "fp32"
    if kind != "cuda" or not (index or "0").isdecimal():
        raise UserError(f"no runtime for device {settings.device}", remedy="use cpu, cuda or cuda:N")
    device = {"device_id": int(index or 0)}
    if settings.runtime == "tensorrt":
        cache = library_cache((settings.cache or cache_folder(model)) / model.version / "tensorrt")
        is_fp16 = settings.precision != "fp32"
        options: dict[str, Any] = device | {"trt_fp16_enable": is_fp16}
        if cache is not None:
            options |= {
                "trt_engine_cache_enable": True,
                "trt_engine_cache_path": str(cache),
                "trt_timing_cache_enable": True,
                "trt_timing_cache_path": str(cache),
            }
        return "TensorrtExecutionProvider", options, "fp16" if is_fp16 else "fp32"
    if settings.precision not in (None, "fp32"):
        raise UserError(
            f"the CUDA provider computes in fp32, not {settings.precision}",
            remedy="use precision=fp32, or runtime=tensorrt with fp16",
        )
    # EXHAUSTIVE, its default, searches for 0.6 s at each new shape.
    return "CUDAExecutionProvider", device | {"cudnn_conv_algo_search": "HEURISTIC"}, "fp32"


def _not_here(provider: str, settings: SessionSettings) -> UserError:
    return UserError(
        f"ONNX Runtime has no {provider} here, so {settings.runtime} cannot run on {settings.device}",
        remedy="install onnxruntime-gpu and its CUDA libraries, or use device=cpu",
    )


def _faults() -> tuple[type[Exception], ...]:
    """Its exceptions, which derive from nothing narrower than `Exception`."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
             "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail")  # fmt: skip
    return (RuntimeError, ValueError, *(getattr(state, name) for name in names if hasattr(state, name)))
