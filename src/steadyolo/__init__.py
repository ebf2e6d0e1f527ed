"""steadyolo: YOLO training that survives, and serving that starts warm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steadyolo.version import __version__ as __version__

if TYPE_CHECKING:
    from steadyolo.adapters.ultralytics.trainer import SteadyTrainer as SteadyTrainer
    from steadyolo.cli.detector import Detector as Detector


def __getattr__(name: str) -> Any:
    if name == "SteadyTrainer":  # importing Ultralytics has effects, so it waits until it is asked for
        from steadyolo.cli.wiring import wired_trainer

        return wired_trainer()
    if name == "Detector":  # numpy and a runtime come with it
        from steadyolo.cli.detector import Detector

        return Detector
    raise AttributeError(f"module 'steadyolo' has no attribute {name!r}")
