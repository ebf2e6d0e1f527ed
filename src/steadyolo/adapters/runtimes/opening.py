"""Opens a session of the runtime that was asked for, importing that one alone."""

from __future__ import annotations

from dataclasses import replace

from steadyolo.errors import UserError
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.session import Session, SessionSettings

RUNTIMES = ("auto", "openvino", "onnxruntime", "tensorrt")


def open_session(model: ServedModel, settings: SessionSettings) -> Session:
    """See `OpenSession`."""
    match settings.runtime:
        case "auto":
            from steadyolo.adapters.runtimes.choosing import choose

            return open_session(model, replace(settings, runtime=choose(model, settings, open_session).runtime))
        case "openvino":
            from steadyolo.adapters.runtimes.openvino import OpenVinoSession

            return OpenVinoSession(model, settings)
        case "onnxruntime" | "tensorrt":
            from steadyolo.adapters.runtimes.onnxruntime import OnnxRuntimeSession

            return OnnxRuntimeSession(model, settings)
        case "torch":
            raise UserError("torch is the reference, and serves nothing", remedy="use auto, or Detector and detect")
    raise UserError(f"no runtime is called {settings.runtime}", remedy=f"use one of {', '.join(RUNTIMES)}")
