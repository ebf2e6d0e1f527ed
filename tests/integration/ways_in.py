"""The same training through Ultralytics' own door, with its trainer or with ours, and what can be seen on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def train_in_python(words: Sequence[str], *, steady: bool, told: Path, through_resume: Path | None = None) -> None:
    """`YOLO(model).train(...)` with the arguments of a command line, in this process; tells what it saw in `told`."""
    from ultralytics import YOLO

    from steadyolo.adapters.ultralytics.arguments import known_arguments
    from steadyolo.spec.run_spec import parse_pairs

    arguments, ours = parse_pairs(words[1:], known_arguments())
    model = YOLO(str(arguments.pop("model")))
    if steady:
        import steadyolo

        arguments |= {**ours, "trainer": steadyolo.SteadyTrainer}
    if through_resume is not None:
        arguments = {"trainer": arguments["trainer"], "resume": str(through_resume)}
    seen: list[tuple[str, list[str]]] = []
    for event in list(model.callbacks):
        model.add_callback(event, _Witness(event, seen))
    metrics = model.train(**arguments)
    told.write_text(
        json.dumps(
            {
                "events": seen,
                "metrics": sorted(getattr(metrics, "results_dict", {})),
                "best": str(model.trainer.best),
                "trained": [type(model.model).__name__, model.ckpt is not None, model.task, sorted(model.overrides)],
                "names": {str(key): name for key, name in model.names.items()},
            }
        )
    )


class _Witness:
    """Notes that an event happened, and which attributes its object had."""

    def __init__(self, event: str, seen: list[tuple[str, list[str]]]) -> None:
        self._event, self._seen = event, seen

    def __call__(self, source: Any) -> None:
        self._seen.append((self._event, sorted(name for name, value in vars(source).items() if value is not None)))


def use_weights(weights: Path, data: Path, image: Path, told: Path) -> None:
    """Load weights with plain Ultralytics, predict, and score: without any of ours in the process."""
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "steadyolo"]:
        del sys.modules[name]
    from ultralytics import YOLO

    model = YOLO(str(weights))
    results = model.predict(str(image), imgsz=64, verbose=False)
    metrics = model.val(data=str(data), imgsz=64, plots=False, verbose=False, batch=4)
    assert not any(name.partition(".")[0] == "steadyolo" for name in sys.modules), "plain Ultralytics needed ours"
    told.write_text(
        json.dumps(
            {
                "results": len(results),
                "task": model.task,
                "names": {str(key): name for key, name in model.names.items()},
                "metrics": {name: float(value) for name, value in metrics.results_dict.items()},
                "dtype": str(next(model.model.parameters()).dtype),
            }
        )
    )
