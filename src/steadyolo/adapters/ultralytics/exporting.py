"""The process that exports: reads one request on standard input, tells on standard output what it does, and ends.

Written against ultralytics 8.4.190 and torch 2.14.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from steadyolo.adapters.ultralytics.export_process import ExportRequest
from steadyolo.errors import SteadyError

GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml", "engine": "model.engine.onnx"}
Tell = Callable[[str], None]


def export_here(request: ExportRequest, tell: Tell) -> dict[str, Any]:
    """See `run_export`."""
    from steadyolo.adapters.ultralytics.weights import check_weights

    tell("reading the weights")
    check_weights(request.weights)

    from steadyolo.adapters.runtimes import conversion
    from steadyolo.adapters.ultralytics import comparing, source_model

    if "engine" in request.forms:
        conversion.check_engine()
    source = source_model.load(request)
    tell("asking the source model")
    pictures = comparing.pictures(source, request.picture)
    trials = comparing.trials(source, pictures)
    comparison = comparing.rounding(source, trials[0])
    onnx = request.staged / GRAPHS["onnx"]
    for form in request.forms:
        tell(f"writing {form}")
        path = request.staged / GRAPHS[form]
        if form == "onnx":
            source_model.write_onnx(source, onnx)
            run = conversion.open_onnx(onnx)
        elif form == "openvino":
            conversion.write_openvino(onnx, path)
            run = conversion.open_openvino(path)
        else:
            conversion.write_engine(onnx, path, shape_px=source.shape_px, least_px=2 * source.stride_px)
            run = conversion.open_engine(path)
        tell(f"comparing {form} with the source model")
        if form == "engine":  # it rounds to fewer digits, as sessions may
            comparison |= comparing.compare_rounded(run, trials[0], source, comparison, form=form)
        else:
            comparison |= comparing.compare(run, trials, source, form=form)
    comparing.write_golden(request.staged, source, pictures, trials)
    runtimes = ["openvino" if form == "openvino" else "onnxruntime" for form in request.forms]
    return {
        **source.described(),
        "outputs": comparing.output_shapes(trials),
        "graphs": {form: GRAPHS[form] for form in request.forms},
        "comparison": comparison,
        "made_with": {name: version(name) for name in ("numpy", "onnx", "torch", "ultralytics", *runtimes)},
    }


def main() -> None:
    """Answer one request."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what upstream prints is no answer
    request = ExportRequest.from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        answer(exported=export_here(request, lambda what: answer(doing=what)))
    except SteadyError as error:
        answer(error=type(error).__name__, message=error.message, remedy=error.remedy)


def _end_with_parent() -> None:
    """The parent keeps our standard input open for as long as it lives."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
