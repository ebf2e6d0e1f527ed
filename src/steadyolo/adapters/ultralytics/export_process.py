"""`export_model`: an export in a process of its own, which foreign weights may fill, stop or crash as they like.

Imports neither torch nor Ultralytics: those are the other process's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from steadyolo.errors import DataLoss, SteadyError, UserError
from steadyolo.serve.keeping import keep_served, staging
from steadyolo.serve.served_model import ServedModel, Source

Form = Literal["onnx", "openvino", "engine"]
FORMS = get_args(Form)
_ERRORS: dict[str, type[SteadyError]] = {"UserError": UserError, "DataLoss": DataLoss}
_NUM_LINES_TOLD = 5  # of what a process says before it ends


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What is exported and how. `staged` is the folder that the files are put into."""

    weights: Path
    staged: Path = Path()
    tensors: Path | None = None  # of a checkpoint, in the place of those in `weights`
    forms: tuple[Form, ...] = ("onnx", "openvino")
    shape_px: tuple[int, int] | None = None  # None: what it was trained for
    is_end_to_end: bool = False  # by the head that needs no suppression, where there is one
    picture: Path | None = None  # what it is checked with; None: one that is drawn

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> ExportRequest:
        raw = json.loads(text)
        return cls(
            weights=Path(raw["weights"]),
            staged=Path(raw["staged"]),
            tensors=raw["tensors"] and Path(raw["tensors"]),
            forms=tuple(raw["forms"]),
            shape_px=raw["shape_px"] and (raw["shape_px"][0], raw["shape_px"][1]),
            is_end_to_end=raw["is_end_to_end"],
            picture=raw["picture"] and Path(raw["picture"]),
        )


def export_model(
    request: ExportRequest, folder: Path, source: Source, *, tell: Callable[[str], None] = lambda _: None
) -> ServedModel:
    """Make the served model `folder`, in the place of one that is there; that stays unless the new one is accepted.

    `tell` hears what is being done. Raises: as `run_export`; UserError where `folder` is something else; OSError.
    """
    with staging(folder) as staged:
        exported = run_export(replace(request, staged=staged), tell=tell)
        return keep_served(staged, folder, {**exported, "name": folder.stem, "source": source})


def run_export(request: ExportRequest, *, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Write graphs and golden files into `request.staged`; returns what a manifest says of them, by its names.

    `tell` hears what is being done. The other process ends with this one, however that ends.
    Raises: UserError for weights that are refused or cannot be exported so; DataLoss for a graph that computes
    something else than its source; SteadyError where the process is lost.
    """
    package = str(Path(__file__).parents[3])  # where this package was imported from
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        "YOLO_AUTOINSTALL": "false",
        "YOLO_OFFLINE": "true",
        "OMP_WAIT_POLICY": "passive",  # on a busy machine threads that spin for one that waits double the work
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "steadyolo.adapters.ultralytics.exporting"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    try:
        return _conversation(process, request, tell)
    finally:
        process.kill()
        process.wait()


def _conversation(
    process: subprocess.Popen[str], request: ExportRequest, tell: Callable[[str], None]
) -> dict[str, Any]:
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise TypeError("the process was started without pipes")
    try:
        process.stdin.write(request.to_json() + "\n")
        process.stdin.flush()  # and left open: its end is ours
    except BrokenPipeError:
        pass  # what it says before it ends is read below
    for line in process.stdout:
        match json.loads(line):
            case {"doing": str(what)}:
                tell(what)
            case {"error": kind, "message": message, "remedy": remedy}:
                raise _ERRORS.get(kind, SteadyError)(message, remedy=remedy)
            case {"exported": dict(exported)}:
                return exported
    said = "; ".join(process.stderr.read().strip().splitlines()[-_NUM_LINES_TOLD:])
    raise SteadyError(
        f"{request.weights} could not be exported: the process that does it ended with code {process.wait()}: {said}",
        remedy="free some memory, or look at what it said",
    )
